"""Count bytes on a device: weights, KV cache, activations, after tensor parallelism.

Rules of vLLM's TPU build (tpu_inference 0.32): KV heads are replicated up to the tensor-parallel degree
(utils.get_padded_num_heads), a head is padded to a multiple of 128 except 64 (utils.get_padded_head_dim), the KV
cache gets utilization x limit - what the weights took, and nothing is set aside for programs and activations
(worker/tpu_worker.py): these live in the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tpu_migration.domain.fit.shape import Shape

GIB = 1024**3
# Bytes a parameter, scales included: 4-bit groups of 128 have a 16-bit scale; MXFP4 blocks of 32 an 8-bit one.
WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5 + 2 / 128, "mxfp4": 0.5 + 1 / 32}
VOCAB_MULTIPLE = 64  # vLLM pads the vocabulary to it
# Compiled programs and fragments on a device. Ours, no measurement: vllm#16521 shows that they are not nothing.
PROGRAM_GIB = 0.5


@dataclass(frozen=True)
class Place:
    """Describe where a model is to run: one pod's accelerators. GiB are a device's, as its runtime reports."""

    name: str
    kind: str  # "tpu" or "gpu"
    chips: int
    devices: int
    usable_gib: float
    native_types: tuple[str, ...]

    @property
    def usable_total_gib(self) -> float:
        return self.usable_gib * self.devices


@dataclass(frozen=True)
class Serving:
    """Hold the arguments that size a server. `tensor_parallel` None: all devices of the place."""

    max_model_len: int
    max_num_seqs: int = 256
    utilization: float = 0.90
    max_num_batched_tokens: int = 2048
    kv_dtype: str = "auto"
    tensor_parallel: int | None = None
    quantization: str | None = None  # online, such as fp8; the checkpoint's own is in the shape
    text_only: bool = False


def tensor_parallel_problem(shape: Shape, degree: int) -> str | None:
    """Say why a tensor-parallel degree is illegal for a model; None for a legal one."""
    if degree < 1:
        return f"tensor parallel {degree} is no degree"
    if shape.heads % degree:
        return f"{shape.heads} attention heads cannot be split {degree} ways"
    low, high = sorted((shape.kv_heads, degree))
    if high % low:
        return f"{shape.kv_heads} KV heads can be neither split nor replicated {degree} ways"
    return None


def legal_degrees(shape: Shape, most: int) -> list[int]:
    """List the legal tensor-parallel degrees up to `most`."""
    return [degree for degree in range(1, most + 1) if tensor_parallel_problem(shape, degree) is None]


def effective_types(shape: Shape, serving: Serving, place: Place) -> tuple[str, str, list[str]]:
    """Return how the matrices and the KV cache are held on this place, and what is to be said about it.

    What a TPU has no units for is counted in BF16, as the translation serves it.
    """
    stored = shape.quantization.stored if shape.quantization else "bf16"
    if serving.quantization and "fp8" in serving.quantization.lower() and stored == "bf16":
        stored = "fp8"
    kv = "fp8" if serving.kv_dtype.lower().startswith("fp8") else "bf16"
    notes = []
    if place.kind == "tpu":
        if stored == "fp8" and "fp8" not in place.native_types:
            stored = "bf16"
            notes.append("FP8 weights are counted in BF16: this TPU has no FP8")
        elif shape.quantization and shape.quantization.gpu_only:
            stored = "bf16"
            notes.append(f"weights are counted in BF16: {shape.quantization.method} runs on GPUs only")
        elif stored in {"int4", "int8", "mxfp4"}:
            notes.append(f"{stored} weights are counted as stored; little tested on TPU")
        if kv == "fp8":
            kv = "bf16"
            notes.append("an FP8 KV cache is counted in BF16: untested on TPU")
    return stored, kv, notes


def weight_bytes(shape: Shape, stored: str, degree: int, *, text_only: bool) -> float:
    """Count the weights on one device: matrices split, KV projections split or replicated, the small ones whole."""
    moved = WEIGHT_BYTES["bf16"]
    matrices = WEIGHT_BYTES.get(stored, moved)
    experts = matrices
    if stored == "mxfp4":
        matrices = moved  # MXFP4 checkpoints quantize the experts only
    kv_copies = max(1.0, degree / shape.kv_heads)
    moe_layers = shape.layers - shape.dense_layers
    split = (
        shape.layers * (shape.attention_parameters + shape.kv_parameters * kv_copies)
        + shape.dense_layers * shape.dense_parameters
    ) * matrices + moe_layers * shape.expert_parameters * experts
    vocabulary = math.ceil(shape.vocab / VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    embeddings = vocabulary * shape.hidden * (1 if shape.tied else 2) * moved
    whole = (shape.layers * shape.small_parameters + shape.hidden) * moved
    vision = 0.0
    if shape.vision and not text_only:
        copies = degree if shape.vision.heads % degree else 1
        vision = shape.vision.parameters * moved * copies
    return (split + embeddings + vision) / degree + whole


def kv_bytes_per_token(shape: Shape, kv_type: str, degree: int, place: Place) -> float:
    """Count the bytes that one token takes in one layer on one device: a key and a value of each head there."""
    heads = max(1, shape.kv_heads // degree) if degree <= shape.kv_heads else 1
    width = shape.head_dim
    if place.kind == "tpu" and width != 64:
        width = math.ceil(width / 128) * 128
    return 2 * heads * width * (1 if kv_type == "fp8" else 2)


def window_tokens(shape: Shape, length: int, serving: Serving) -> int:
    """Count the tokens that a sliding-window layer keeps of a request, where what left the window is freed."""
    if not shape.sliding_window:
        return length
    return min(length, shape.sliding_window + serving.max_num_batched_tokens)


def request_bytes(shape: Shape, length: int, layer_bytes: float, serving: Serving, *, freed: bool) -> float:
    """Count what one request of `length` tokens takes on a device; `freed`: windows give back what left them."""
    full = shape.layers - shape.sliding_layers
    tail = window_tokens(shape, length, serving) if freed else length
    return layer_bytes * (full * length + shape.sliding_layers * tail)


def activation_gib(shape: Shape, serving: Serving, degree: int) -> float:
    """Estimate the largest step's activations on a device: a batch of tokens, and the logits in 32 bits.

    Per token about eight hidden rows and three feed-forward rows live at once in BF16; ours, no measurement.
    """
    tokens = max(serving.max_num_batched_tokens, serving.max_num_seqs)
    rows: Sequence[float] = (
        8 * shape.hidden,
        3 * shape.active_width / degree,
        4 * shape.heads * shape.head_dim / degree,
    )
    logits = 2 * serving.max_num_seqs * math.ceil(shape.vocab / degree) * 4
    return (tokens * sum(rows) * 2 + logits) / GIB
