"""Work out how long a step takes and how many tokens fit: pure arithmetic, no clock.

A step is a roofline: reading every weight once, or the FLOPs of its tokens, whichever is
longer; then the KV cache of its sequences; then a fixed overhead. Four things therefore show
as they do on hardware: TPOT grows slowly with concurrency, long prompts stall running
streams, FP8 halves the weights, and a full KV cache preempts.
"""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.engine.hardware import GIB, WEIGHT_BYTES, Accelerator, Model


@dataclass(frozen=True)
class Timing:
    """Step times of one engine, in seconds."""

    weights_s: float  # reading all weights once
    kv_s_per_token: float  # reading one token's KV
    compute_s_per_token: float
    overhead_s: float
    kv_capacity_tokens: int
    weight_bytes: float
    kv_bytes_per_token: float
    hbm_bytes: float

    def step_s(self, prefill_tokens: int, decode_seqs: int, context_tokens: int) -> float:
        """Return how long one step takes that holds these tokens."""
        compute = (prefill_tokens + decode_seqs) * self.compute_s_per_token
        return max(self.weights_s, compute) + context_tokens * self.kv_s_per_token + self.overhead_s


def build_timing(
    accelerator: Accelerator,
    chips: int,
    model: Model,
    weights: str,
    *,
    utilization: float = 0.9,
    kv_dtype_bytes: float = 2.0,
) -> Timing:
    """Return the timing of `model` with `weights` (bf16, fp8, int8, int4) on `chips` chips.

    `kv_capacity_tokens` is what remains of `utilization` × HBM after the weights and the
    accelerator's reserve; zero or less says that the model does not fit.
    """
    weight_bytes = model.parameters * WEIGHT_BYTES[weights]
    bandwidth = chips * accelerator.hbm_gb_per_s * 1e9 * accelerator.memory_efficiency
    peak = {"fp8": accelerator.fp8_tflops, "int8": accelerator.int8_tflops}.get(weights) or accelerator.bf16_tflops
    flops = chips * peak * 1e12 * accelerator.compute_efficiency
    kv_bytes = model.kv_bytes_per_token(kv_dtype_bytes)
    hbm = chips * accelerator.hbm_gib * GIB
    left = hbm * utilization - weight_bytes - chips * accelerator.reserved_gib * GIB
    # Above one chip every layer ends in two all-reduces, about 10 microseconds each.
    collectives = 0.0 if chips == 1 else model.layers * 2 * 10e-6
    return Timing(
        weights_s=weight_bytes / bandwidth,
        kv_s_per_token=kv_bytes / bandwidth,
        compute_s_per_token=2 * model.parameters / flops,
        overhead_s=accelerator.step_overhead_s + collectives,
        kv_capacity_tokens=int(left // kv_bytes),
        weight_bytes=weight_bytes,
        kv_bytes_per_token=kv_bytes,
        hbm_bytes=hbm,
    )
