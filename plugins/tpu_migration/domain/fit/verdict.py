"""Judge whether a model fits a place: fits, tight with the room that is left, or does not fit with what is missing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tpu_migration.domain.accelerators import Gpu, Slice
from tpu_migration.domain.fit import memory
from tpu_migration.domain.fit.memory import GIB, Place, Serving
from tpu_migration.domain.fit.shape import Shape

FITS, TIGHT, DOES_NOT_FIT = "fits", "tight", "does_not_fit"
# With less than this share of the HBM left for KV cache, a slice holds few requests and every other use of HBM hurts.
TIGHT_SHARE = 0.20
# At least so many requests of full length should find room.
WANTED_REQUESTS = 2


@dataclass(frozen=True)
class Fit:
    """Hold the verdict on one place. GiB are of the whole place unless `_per_device`.

    `kv_tokens` counts every layer's whole history on TPU (conservative); `kv_tokens_freed` lets sliding windows
    give back what left them, as vLLM's hybrid cache manager does on GPUs. The TPU build does so on its torchax
    path only, and not where layers have heads of two sizes (tpu_inference 0.32, runner/kv_cache_manager.py).
    `largest_context` is for one request alone, `concurrency` how many of full length fit at once.
    """

    place: Place
    verdict: str
    reasons: tuple[str, ...]
    tensor_parallel: int
    legal_tensor_parallel: tuple[int, ...]
    weights_gib: float
    weights_gib_per_device: float
    kv_gib: float
    head_room_gib: float
    kv_bytes_per_token: float
    kv_tokens: int
    kv_tokens_freed: int
    largest_context: int
    concurrency: int
    concurrency_freed: int
    spare_gib_per_device: float
    notes: tuple[str, ...] = ()


def fit(shape: Shape, serving: Serving, place: Place) -> Fit:
    """Size a model on a place and judge it."""
    degree = serving.tensor_parallel or place.devices
    legal = tuple(memory.legal_degrees(shape, place.devices))
    stored, kv_type, notes = memory.effective_types(shape, serving, place)
    illegal = memory.tensor_parallel_problem(shape, degree)
    if degree > place.devices:
        illegal = f"tensor parallel {degree} needs {degree} devices, {place.name} has {place.devices}"
    per_device = memory.weight_bytes(shape, stored, degree, text_only=serving.text_only)
    layer = memory.kv_bytes_per_token(shape, kv_type, degree, place)
    room = serving.utilization * place.usable_gib * GIB - per_device

    def tokens(*, freed: bool) -> int:
        """Tell how many tokens of full-length requests the cache holds."""
        one = memory.request_bytes(shape, serving.max_model_len, layer, serving, freed=freed)
        return max(0, int(room / one * serving.max_model_len))

    # On GPUs vLLM's cache manager does free windows; to deny them that would flatter the TPU.
    freed = tokens(freed=True)
    kept = freed if place.kind == "gpu" else tokens(freed=False)
    spare = place.usable_gib * (1 - serving.utilization) - memory.activation_gib(shape, serving, degree)
    need_gib = memory.request_bytes(shape, serving.max_model_len, layer, serving, freed=True) * degree / GIB
    missing, doubts = _reasons(shape, serving, place, room, spare, kept, freed, need_gib)
    if illegal:
        allowed = ", ".join(map(str, legal)) or "none"
        missing.insert(0, f"{illegal}; legal here: {allowed}")
    verdict = DOES_NOT_FIT if missing else TIGHT if doubts else FITS
    return Fit(
        place=place,
        verdict=verdict,
        reasons=tuple(missing or doubts),
        tensor_parallel=degree,
        legal_tensor_parallel=legal,
        weights_gib=per_device * degree / GIB,
        weights_gib_per_device=per_device / GIB,
        kv_gib=max(0.0, room) * degree / GIB,
        head_room_gib=room * degree / GIB,
        kv_bytes_per_token=layer * shape.layers * degree,
        kv_tokens=kept,
        kv_tokens_freed=freed,
        largest_context=_largest_context(shape, serving, room / layer, freed=place.kind == "gpu"),
        concurrency=kept // serving.max_model_len,
        concurrency_freed=freed // serving.max_model_len,
        spare_gib_per_device=spare,
        notes=tuple([*notes, *shape.notes]),
    )


def _reasons(
    shape: Shape, serving: Serving, place: Place, room: float, spare: float, kept: int, freed: int, need_gib: float
) -> tuple[list[str], list[str]]:
    """Name what is missing, and what makes a fit tight."""
    degree = serving.tensor_parallel or place.devices
    left = room * degree / GIB
    length = serving.max_model_len
    missing: list[str] = []
    doubts: list[str] = []
    if shape.max_position and length > shape.max_position:
        missing.append(f"context {length:,} is beyond the model's {shape.max_position:,}")
    if room <= 0:
        missing.append(f"weights alone lack {max(-left, 0.1):.1f} GiB at utilization {serving.utilization:g}")
        return missing, doubts
    if freed < length:
        missing.append(
            f"{left:.1f} GiB for KV cache holds {freed:,} tokens, one request of {length:,} needs {need_gib:.1f} GiB"
        )
    elif kept < length:
        doubts.append(
            f"{left:.1f} GiB left: {length:,} tokens fit only if sliding windows are freed ({kept:,} tokens without)"
        )
    elif kept < WANTED_REQUESTS * length and serving.max_num_seqs >= WANTED_REQUESTS:
        doubts.append(f"{left:.1f} GiB left: room for one request of {length:,} tokens at a time ({kept:,} tokens)")
    if left < TIGHT_SHARE * place.usable_gib * degree and not doubts:
        doubts.append(
            f"{left:.1f} GiB left for KV cache ({kept:,} tokens) of {place.usable_gib * degree:.4g} GiB usable"
        )
    if spare < memory.PROGRAM_GIB:
        doubts.append(
            f"activations and programs have {spare:.1f} GiB a device, {memory.PROGRAM_GIB} wanted: lower"
            " --gpu-memory-utilization or --max-num-batched-tokens"
        )
    return missing, doubts


def _largest_context(shape: Shape, serving: Serving, room: float, *, freed: bool) -> int:
    """Find the longest request that fits alone into `room` tokens of one layer; 0 where none does."""
    tokens = int(max(0.0, room) / shape.layers)
    window = memory.window_tokens(shape, shape.max_position or tokens, serving)
    if freed and tokens > window and shape.layers > shape.sliding_layers:
        tokens = int((room - shape.sliding_layers * window) / (shape.layers - shape.sliding_layers))
    elif freed and tokens > window:
        tokens = shape.max_position or tokens
    return min(tokens, shape.max_position) if shape.max_position else tokens


def place_of_slice(target: Slice) -> Place:
    """Describe a TPU slice as a place."""
    devices = target.chips * target.devices_per_chip
    usable = target.usable_hbm_gib_per_chip / target.devices_per_chip
    return Place(target.name, "tpu", target.chips, devices, usable, target.native_types)


def place_of_gpus(gpu: Gpu, count: int) -> Place:
    """Describe GPUs of one pod as a place."""
    types = ("bfloat16", "int8", "int4", *(("fp8",) if gpu.native_fp8 else ()))
    return Place(f"{gpu.name} x{count}", "gpu", count, count, gpu.usable_hbm_gib, types)


def smallest(shape: Shape, serving: Serving, gpu: Gpu) -> Fit:
    """Fit a model on the fewest GPUs of a kind that one machine offers; the largest machine's verdict if none does."""
    counts = sorted(set(gpu.machines.values()))
    found = [fit(shape, serving, place_of_gpus(gpu, count)) for count in counts]
    return next((each for each in found if each.verdict == FITS), None) or next(
        (each for each in found if each.verdict == TIGHT), found[-1]
    )


def fit_all(shape: Shape, serving: Serving, slices: Iterable[Slice]) -> list[Fit]:
    """Fit a model on every slice, in the file's order."""
    return [fit(shape, serving, place_of_slice(each)) for each in slices]
