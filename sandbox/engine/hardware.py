"""Describe accelerators and models: what step times and memory follow from.

Peaks are the vendors' data-sheet figures (dense, without sparsity). The efficiencies and the
step overhead are chosen so that the simulation lands near published vLLM throughput; they
are the simulation's own and no measurement.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 1024**3


@dataclass(frozen=True)
class Accelerator:
    """One chip; rates are peaks, `*_efficiency` the share of them that vLLM reaches."""

    name: str
    kind: str  # "gpu" or "tpu"
    hbm_gib: float
    hbm_gb_per_s: float
    bf16_tflops: float
    fp8_tflops: float | None  # None: no FP8 units; weights cannot stay in FP8
    int8_tflops: float
    memory_efficiency: float
    compute_efficiency: float
    step_overhead_s: float
    reserved_gib: float  # programs, activations and fragments beside weights and KV


ACCELERATORS = {
    "nvidia-h100-80gb": Accelerator("H100", "gpu", 80, 3350, 989, 1979, 1979, 0.62, 0.36, 0.0035, 2.0),
    "nvidia-h100-mega-80gb": Accelerator("H100", "gpu", 80, 3350, 989, 1979, 1979, 0.62, 0.36, 0.0035, 2.0),
    "nvidia-h200-141gb": Accelerator("H200", "gpu", 141, 4800, 989, 1979, 1979, 0.62, 0.36, 0.0035, 2.0),
    "nvidia-a100-80gb": Accelerator("A100", "gpu", 80, 2039, 312, None, 624, 0.65, 0.45, 0.004, 1.5),
    "nvidia-tesla-a100": Accelerator("A100", "gpu", 40, 1555, 312, None, 624, 0.65, 0.45, 0.004, 1.5),
    "nvidia-l4": Accelerator("L4", "gpu", 24, 300, 121, 242, 242, 0.7, 0.45, 0.004, 1.0),
    "tpu-v5-lite-podslice": Accelerator("v5e", "tpu", 16, 819, 197, None, 393, 0.65, 0.45, 0.0035, 0.25),
    "tpu-v5-lite-device": Accelerator("v5e", "tpu", 16, 819, 197, None, 393, 0.65, 0.45, 0.0035, 0.25),
    "tpu-v5p-slice": Accelerator("v5p", "tpu", 95, 2765, 459, None, 918, 0.65, 0.45, 0.0045, 0.5),
    "tpu-v6e-slice": Accelerator("v6e", "tpu", 32, 1638, 918, 918, 1836, 0.65, 0.4, 0.0045, 0.5),
    "tpu7x": Accelerator("v7x", "tpu", 192, 7380, 2307, 4614, 2307, 0.6, 0.4, 0.0045, 1.0),
}


@dataclass(frozen=True)
class Model:
    """The shape of a language model; KV bytes a token are 2 × layers × KV heads × head size × 2."""

    name: str
    parameters: float
    layers: int
    kv_heads: int
    head_size: int
    max_position: int
    multimodal: bool = False

    def kv_bytes_per_token(self, kv_dtype_bytes: float = 2.0) -> float:
        return 2 * self.layers * self.kv_heads * self.head_size * kv_dtype_bytes


# Pattern on the lower-cased model id → shape (from the models' public config.json files).
_KNOWN = (
    (r"gemma-?3.*27b", Model("gemma-3-27b", 27.4e9, 62, 16, 128, 131072, True)),
    (r"gemma-?3.*12b", Model("gemma-3-12b", 12.2e9, 48, 8, 256, 131072, True)),
    (r"gemma-?3.*4b", Model("gemma-3-4b", 4.3e9, 34, 4, 256, 131072, True)),
    (r"gemma-?3.*1b", Model("gemma-3-1b", 1.0e9, 26, 1, 256, 32768)),
    (r"llama.*70b", Model("llama-70b", 70.6e9, 80, 8, 128, 131072)),
    (r"llama.*8b", Model("llama-8b", 8.0e9, 32, 8, 128, 131072)),
    (r"llama.*[^\d]3b", Model("llama-3b", 3.2e9, 28, 8, 128, 131072)),
    (r"llama.*[^\d]1b", Model("llama-1b", 1.24e9, 16, 8, 64, 131072)),
    (r"mistral.*7b", Model("mistral-7b", 7.25e9, 32, 8, 128, 32768)),
    (r"qwen3-?0\.6b", Model("qwen3-0.6b", 0.6e9, 28, 8, 128, 40960)),
    (r"qwen.*72b", Model("qwen-72b", 72.7e9, 80, 8, 128, 32768)),
    (r"qwen.*32b", Model("qwen-32b", 32.8e9, 64, 8, 128, 40960)),
    (r"qwen.*7b", Model("qwen-7b", 7.6e9, 28, 4, 128, 32768)),
)
_SIZE = re.compile(r"(?<![a-z\d.])(\d+(?:\.\d+)?)b(?![a-z\d])")


def find_model(model_id: str) -> Model:
    """Return the shape behind a model id or path: a known one, else one scaled from its size."""
    name = model_id.lower()
    for pattern, model in _KNOWN:
        if re.search(pattern, name):
            return model
    size = _SIZE.search(name)
    billions = float(size[1]) if size else 0.3
    layers = max(12, round(16 * billions**0.38))
    return Model(model_id, billions * 1e9, layers, 8 if billions >= 3 else 2, 128, 32768)


def checkpoint_format(model_id: str) -> str:
    """Return how the weights are stored, as far as the id tells: fp8, int8, int4 or bf16."""
    name = model_id.lower()
    if re.search(r"fp8|f8_e4m3", name):
        return "fp8"
    if re.search(r"w8a8|int8|w8a16", name):
        return "int8"
    if re.search(r"awq|gptq|int4|w4a16|nvfp4|mxfp4|-fp4", name):
        return "int4"
    return "bf16"


def weight_format(model_id: str, quantization: str | None) -> str:
    """Return the format the weights have in HBM: an explicit --quantization wins over the id."""
    for format_name, flags in _FORMATS.items():
        if quantization in flags:
            return format_name
    return checkpoint_format(model_id)


# Values of --quantization that settle the format; compressed-tensors and others leave it to the id.
_FORMATS = {
    "fp8": {"fp8", "fbgemm_fp8", "fp8_per_tensor", "modelopt", "deepseek_v4_fp8"},
    "int8": {"int8", "experts_int8", "tpu_int8"},
    "int4": {
        "awq",
        "awq_marlin",
        "auto_awq",
        "gptq",
        "gptq_marlin",
        "bitsandbytes",
        "modelopt_fp4",
        "gpt_oss_mxfp4",
    },
}
WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.55}
