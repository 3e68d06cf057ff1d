"""List which of vLLM's flags a TPU does without, and why (facts: vLLM and tpu-inference 0.32)."""

from __future__ import annotations

_SPECULATIVE = "speculative decoding is untested on TPU v5e, and draft models raise NotImplementedError"
_CUDA_GRAPHS = "CUDA graphs and their compilation are the GPU's; JAX compiles for the TPU"
_KERNEL = "it chooses a GPU kernel"
_ABSENT = "vLLM 0.32 has no such flag and would not start"
_DATA_PARALLEL = "one TPU pod is one replica: parallel size 1"
_MEMORY = "it counts in the GPU's memory; the TPU sizes its KV cache from its own HBM"
_OFFLOAD = "weights and KV cannot be offloaded from a TPU this way"
_NCCL = "NCCL and its groups are the GPU's"
_WEIGHTS = "it belongs to the quantized checkpoint"

REMOVED: dict[str, str] = {
    "speculative-config": _SPECULATIVE,
    "speculative-model": f"{_SPECULATIVE}; gone in 0.32",
    "num-speculative-tokens": f"{_SPECULATIVE}; gone in 0.32",
    "num-lookahead-slots": _SPECULATIVE,
    "per-request-spec-decode-metrics": _SPECULATIVE,
    "attention-backend": _KERNEL,
    "attention-config": _KERNEL,
    "mm-encoder-attn-backend": _KERNEL,
    "moe-backend": _KERNEL,
    "linear-backend": _KERNEL,
    "mamba-backend": _KERNEL,
    "gdn-prefill-backend": _KERNEL,
    "kda-decode-backend": _KERNEL,
    "kda-prefill-backend": _KERNEL,
    "kernel-config": _KERNEL,
    "sparse-indexer-topk-backend": _KERNEL,
    "enable-flashinfer-autotune": _KERNEL,
    "disable-cascade-attn": _KERNEL,
    "enforce-eager": "it skips the precompile: every shape would compile under a user's request",
    "compilation-config": _CUDA_GRAPHS,
    "optimization-level": _CUDA_GRAPHS,
    "cudagraph-capture-sizes": _CUDA_GRAPHS,
    "cuda-graph-sizes": _CUDA_GRAPHS,
    "max-cudagraph-capture-size": _CUDA_GRAPHS,
    "cudagraph-metrics": _CUDA_GRAPHS,
    "sleep-mode-offload-cudagraph": _CUDA_GRAPHS,
    "distributed-executor-backend": "the TPU platform overrides it",
    "pipeline-parallel-size": "one slice holds the whole model: pipeline parallel size 1",
    "data-parallel-size": _DATA_PARALLEL,
    "data-parallel-size-local": _DATA_PARALLEL,
    "data-parallel-address": _DATA_PARALLEL,
    "data-parallel-backend": _DATA_PARALLEL,
    "data-parallel-external-lb": _DATA_PARALLEL,
    "data-parallel-hybrid-lb": _DATA_PARALLEL,
    "data-parallel-multi-port-external-lb": _DATA_PARALLEL,
    "data-parallel-rank": _DATA_PARALLEL,
    "data-parallel-rpc-port": _DATA_PARALLEL,
    "data-parallel-start-rank": _DATA_PARALLEL,
    "decode-context-parallel-size": _DATA_PARALLEL,
    "prefill-context-parallel-size": _DATA_PARALLEL,
    "enable-sleep-mode": "NotImplementedError on TPU",
    "enable-cumem-allocator": "it is CUDA's allocator",
    "swap-space": _ABSENT,
    "device": _ABSENT,
    "num-scheduler-steps": _ABSENT,
    "multi-step-stream-outputs": _ABSENT,
    "max-seq-len-to-capture": _ABSENT,
    "max-context-len-to-capture": _ABSENT,
    "task": f"{_ABSENT} (generation is the default)",
    "rope-scaling": f"{_ABSENT} (use --hf-overrides)",
    "rope-theta": f"{_ABSENT} (use --hf-overrides)",
    "use-v2-block-manager": _ABSENT,
    "disable-frontend-multiprocessing": _ABSENT,
    "disable-async-output-proc": _ABSENT,
    "scheduler-delay-factor": _ABSENT,
    "preemption-mode": _ABSENT,
    "enable-reasoning": f"{_ABSENT} (--reasoning-parser alone turns it on)",
    "worker-use-ray": _ABSENT,
    "engine-use-ray": _ABSENT,
    "guided-decoding-disable-fallback": _ABSENT,
    "tokenizer-pool-size": _ABSENT,
    "tokenizer-pool-type": _ABSENT,
    "tokenizer-pool-extra-config": _ABSENT,
    "lora-extra-vocab-size": _ABSENT,
    "long-lora-scaling-factors": _ABSENT,
    "max-num-partial-prefills": _ABSENT,
    "max-long-partial-prefills": _ABSENT,
    "disable-mm-preprocessor-cache": _ABSENT,
    "override-neuron-config": _ABSENT,
    "block-manager-version": _ABSENT,
    "collect-model-forward-time": _ABSENT,
    "quantization-param-path": _WEIGHTS,
    "quantization-config": _WEIGHTS,
    "allow-deprecated-quantization": _WEIGHTS,
    "calculate-kv-scales": "the KV cache is not quantized on the TPU",
    "kv-cache-dtype-skip-layers": "the KV cache is not quantized on the TPU",
    "block-size": "the TPU's attention chooses its own page size",
    "num-gpu-blocks-override": _MEMORY,
    "kv-cache-memory-bytes": _MEMORY,
    "cpu-offload-gb": _OFFLOAD,
    "cpu-offload-params": _OFFLOAD,
    "kv-offloading-size": _OFFLOAD,
    "kv-offloading-backend": _OFFLOAD,
    "offload-backend": _OFFLOAD,
    "offload-group-size": _OFFLOAD,
    "offload-num-in-group": _OFFLOAD,
    "offload-params": _OFFLOAD,
    "offload-prefetch-step": _OFFLOAD,
    "disable-custom-all-reduce": _NCCL,
    "disable-nccl-for-dp-synchronization": _NCCL,
    "enable-nccl-comm-suspend": _NCCL,
    "all2all-backend": _NCCL,
    "enable-dbo": _NCCL,
    "dbo-decode-token-threshold": _NCCL,
    "dbo-prefill-token-threshold": _NCCL,
    "enable-eplb": _NCCL,
    "eplb-config": _NCCL,
    "device-ids": "it numbers GPUs",
    "ray-workers-use-nsight": "it is NVIDIA's profiler",
    "enable-layerwise-nvtx-tracing": "it is NVIDIA's profiler",
    "monokernel": _KERNEL,
    "mm-processor-device": "it names a CUDA device",
    "mm-ipc-gpu-memory-gb": _MEMORY,
}

_PREFIXES = {
    "spec-": _SPECULATIVE,
    "speculative-": _SPECULATIVE,
    "ngram-prompt-lookup-": _SPECULATIVE,
    "spec-decoding-": _SPECULATIVE,
    "typical-acceptance-sampler-": _SPECULATIVE,
    "disable-logprobs-during-spec-": _SPECULATIVE,
    "cudagraph-": _CUDA_GRAPHS,
    "cuda-": _CUDA_GRAPHS,
    "mm-encoder-fp8-": "the TPU's vision tower runs in BF16",
}

# Losing these costs users something or changes what one pod can carry: say so.
TELLING = {
    "speculative-config": "speculative decoding is lost: expect slower single streams, and let the gate measure it",
    "speculative-model": "speculative decoding is lost: expect slower single streams, and let the gate measure it",
    "spec-model": "speculative decoding is lost: expect slower single streams, and let the gate measure it",
    "data-parallel-size": "a source pod ran several engines: a TPU pod runs one, so plan the replicas for that",
    "cpu-offload-gb": "the source kept weights in host memory: check that the BF16 weights fit into the slice's HBM",
    "enable-sleep-mode": "/sleep and /wake_up are gone",
    "task": "a pooling task is a blocker if users call embeddings, scores or rewards",
}

# tpu_inference accepts these (platforms/tpu_platform.py); fp8 is treated apart.
ACCEPTED_QUANTIZATION = frozenset(
    {"compressed-tensors", "auto_awq", "gpt_oss_mxfp4", "modelopt_fp4", "deepseek_v4_fp8"}
)
SAME_QUANTIZATION = {"awq": "auto_awq", "awq_marlin": "auto_awq"}
ONLINE_FP8 = frozenset({"fp8", "fp8_per_tensor", "fp8_per_block", "fp8_per_channel", "fbgemm_fp8", "online"})
FP8_CHECKPOINT_METHODS = frozenset({"modelopt", "ptpc_fp8"})


def why_removed(name: str) -> str | None:
    """Say why a flag is removed on TPU; None for one that stays."""
    if name in REMOVED:
        return REMOVED[name]
    return next((why for prefix, why in _PREFIXES.items() if name.startswith(prefix)), None)
