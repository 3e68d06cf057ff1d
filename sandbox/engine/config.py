"""Put flags and environment together, and refuse what a real server would refuse at start."""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.engine.flags import TPU_QUANTIZATION, EngineFlags
from sandbox.engine.hardware import ACCELERATORS, GIB, Accelerator, Model, find_model, weight_format
from sandbox.engine.timing import Timing, build_timing

VERSION = "0.32.0"
GONE_VARIABLES = ("VLLM_ATTENTION_BACKEND", "VLLM_USE_V1", "VLLM_TPU_MOST_MODEL_LEN")


OUT_OF_MEMORY = (
    "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Error loading program 'jit_backbone': Attempting to "
    "reserve 4.31G at the bottom of memory. That was not possible. There are 3.12G free, 0B reserved, and "
    "3.12G reservable. (simulated)"
)


class Refused(Exception):
    """Say why this engine cannot start; `late` ones come after the weights are loaded."""

    def __init__(self, message: str, *, late: bool = False) -> None:
        super().__init__(message)
        self.late = late


@dataclass(frozen=True)
class EngineConfig:
    """Everything that one engine needs to know."""

    flags: EngineFlags
    accelerator: Accelerator
    chips: int
    model: Model
    weights: str
    timing: Timing
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    host: str
    speed: float
    pod: str
    faults_path: str | None
    cache_path: str | None
    skip_precompile: bool
    check_recompilation: bool
    log_compiles: bool
    keep_alive_s: float

    @property
    def tpu(self) -> bool:
        return self.accelerator.kind == "tpu"

    @property
    def prompt_logprobs_fatal(self) -> bool:
        """The TPU build raises in the model runner for them, unless every multimodal limit is 0."""
        return self.tpu and self.model.multimodal and not self.flags.text_only

    def cache_labels(self) -> dict[str, str]:
        """Return the labels of vllm:cache_config_info."""
        timing, block = self.timing, self.flags.block_size
        unset = (
            "cache_hit_alignment_tokens effective_attention_block_size hash_block_size kv_cache_layout "
            "kv_offloading_size mamba_block_size mamba_page_size_padded num_cpu_blocks "
            "num_gpu_blocks_override prefix_match_unit skip_page_size_padded sliding_window"
        )
        off = (
            "enable_mamba_shared_prefix_checkpoint is_attention_free kv_sharing_fast_prefill "
            "use_kda_recoverssm use_replayssm user_specified_block_size"
        )
        return {
            **dict.fromkeys(unset.split(), "None"),
            **dict.fromkeys(off.split(), "False"),
            "_block_size_resolved": "True",
            "block_size": str(block),
            "cache_dtype": self.flags.kv_cache_dtype,
            "enable_prefix_caching": "True",
            "engine": "0",
            "gpu_memory_utilization": str(self.flags.gpu_memory_utilization),
            "kv_cache_dtype_skip_layers": "[]",
            "kv_cache_max_concurrency": repr(timing.kv_capacity_tokens / self.max_model_len),
            "kv_cache_memory_bytes": str(int(timing.kv_capacity_tokens * timing.kv_bytes_per_token)),
            "kv_cache_size_tokens": str(timing.kv_capacity_tokens),
            "kv_offloading_backend": "native",
            "mamba_cache_dtype": "auto",
            "mamba_cache_mode": "none",
            "mamba_ssm_cache_dtype": "float32",
            "num_gpu_blocks": str(timing.kv_capacity_tokens // block),
            "prefix_cache_retention_interval": "0",
            "prefix_caching_hash_algo": "sha256",
            "replayssm_buffer_len": "16",
            "swa_bounded_replay": "True",
        }


def find_accelerator(env: dict[str, str]) -> Accelerator:
    """Return the node's accelerator, from the label that the node agent passes on."""
    name = env.get("SANDBOX_ACCELERATOR", "")
    if not name:
        raise Refused("RuntimeError: Failed to infer device type (simulated: SANDBOX_ACCELERATOR is not set)")
    if name not in ACCELERATORS:
        known = ", ".join(sorted(ACCELERATORS))
        raise Refused(f"RuntimeError: simulated engine knows no accelerator {name!r}; it knows {known}")
    return ACCELERATORS[name]


def build_config(flags: EngineFlags, accelerator: Accelerator, env: dict[str, str]) -> EngineConfig:
    """Return the engine's configuration; raise Refused where a real server would not start."""
    chips = int(env.get("SANDBOX_CHIPS") or 1)
    model = find_model(flags.model)
    weights = weight_format(flags.model, flags.quantization)
    tpu = accelerator.kind == "tpu"
    if tpu:
        _refuse_on_tpu(flags, env)
    world = flags.tensor_parallel * flags.pipeline_parallel
    if world > chips:
        kind = "TPU chips" if tpu else "GPUs"
        raise Refused(f"ValueError: World size ({world}) is larger than the number of available {kind} ({chips})")
    max_model_len = flags.max_model_len or model.max_position
    if max_model_len > model.max_position:
        raise Refused(
            f"ValueError: User-specified max_model_len ({max_model_len}) is greater than the derived "
            f"max_model_len (max_position_embeddings={model.max_position})."
        )
    large = accelerator.hbm_gib >= 70
    timing = build_timing(
        accelerator,
        world,
        model,
        weights,
        utilization=flags.gpu_memory_utilization,
        kv_dtype_bytes=1.0 if flags.kv_cache_dtype.startswith("fp8") else 2.0,
    )
    return EngineConfig(
        flags=flags,
        accelerator=accelerator,
        chips=world,
        model=model,
        weights=weights,
        timing=timing,
        max_model_len=max_model_len,
        max_num_seqs=flags.max_num_seqs or 256,
        max_num_batched_tokens=flags.max_num_batched_tokens or (8192 if large and not tpu else 2048),
        host=env.get("SANDBOX_POD_IP") or "127.0.0.1",
        speed=max(1e-3, float(env.get("SANDBOX_SPEED") or 1)),
        pod=env.get("POD_NAME") or env.get("HOSTNAME") or "",
        faults_path=env.get("SANDBOX_FAULTS"),
        cache_path=env.get("VLLM_XLA_CACHE_PATH"),
        skip_precompile=_truthy(env.get("SKIP_JAX_PRECOMPILE")) or flags.enforce_eager,
        check_recompilation=_truthy(env.get("VLLM_XLA_CHECK_RECOMPILATION")),
        log_compiles=_truthy(env.get("JAX_LOG_COMPILES")),
        # uvicorn's is 5 s. Longer here, unless set: a client that picks a connection up in the
        # millisecond in which it closes would fail, which no user of a migration should see.
        keep_alive_s=float(env.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE") or 75),
    )


def check_fit(config: EngineConfig) -> None:
    """Refuse a model that does not fit, with what the real servers say."""
    timing, chips = config.timing, config.chips
    available = timing.kv_capacity_tokens * timing.kv_bytes_per_token
    if config.tpu and config.weights == "fp8" and config.accelerator.fp8_tflops is None:
        raise Refused(
            f"jax.errors.JaxRuntimeError: INTERNAL: float8_e4m3fn weights cannot be compiled for TPU "
            f"{config.accelerator.name}, which has no FP8 units (simulated; see tpu-inference#1262)",
            late=True,
        )
    if timing.weight_bytes / chips > config.accelerator.hbm_gib * GIB * 0.98:
        if config.tpu:
            raise Refused("jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Error allocating device buffer", late=True)
        raise Refused("torch.OutOfMemoryError: CUDA out of memory.", late=True)
    if timing.kv_capacity_tokens <= 0:
        raise Refused(
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` "
            "when initializing the engine.",
            late=True,
        )
    if config.max_model_len > timing.kv_capacity_tokens:
        needed = config.max_model_len * timing.kv_bytes_per_token
        raise Refused(
            f"ValueError: To serve at least one request with the model's max seq len "
            f"({config.max_model_len}), ({needed / GIB:.2f} GiB KV cache is needed, which is larger than the "
            f"available KV cache memory ({available / GIB:.2f} GiB). Try increasing `gpu_memory_utilization` "
            "or decreasing `max_model_len`.",
            late=True,
        )


def _refuse_on_tpu(flags: EngineFlags, env: dict[str, str]) -> None:
    gone = [name for name in GONE_VARIABLES if name in env]
    if gone and flags.fail_on_environ_validation:
        raise Refused(f"ValueError: Unknown vLLM environment variable detected: {gone[0]}")
    if flags.quantization and flags.quantization not in TPU_QUANTIZATION:
        raise Refused(f"ValueError: {flags.quantization} quantization is currently not supported in tpu.")
    if flags.speculative:
        raise Refused("NotImplementedError: speculative decoding with a draft model is not implemented on TPU")
    if flags.sleep_mode:
        raise Refused("NotImplementedError: sleep mode is not implemented on TPU")
    if flags.pipeline_parallel > 1 or flags.data_parallel > 1:
        raise Refused("NotImplementedError: the simulated TPU engine has tensor parallelism only")


def _truthy(value: str | None) -> bool:
    return (value or "").strip().lower() in {"1", "true", "yes"}
