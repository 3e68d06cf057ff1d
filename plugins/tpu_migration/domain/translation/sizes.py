"""Fit a server to the slice: parallelism, memory, lengths and batches, the vision tower."""

from __future__ import annotations

import json
import re

from tpu_migration.domain.accelerators import Slice
from tpu_migration.domain.translation import checkpoints
from tpu_migration.domain.translation.arguments import CommandLine, Option, integer
from tpu_migration.domain.translation.editing import put
from tpu_migration.domain.translation.model import Notes, Sizing
from tpu_migration.domain.translation.vocabulary import VERSION

# Programs and activations need HBM beside weights and KV cache.
MEMORY_LOW, MEMORY_HIGH = 0.85, 0.90
# Every power of two up to this many tokens is compiled; the larger, the more HBM a program takes.
TOKENS_DEFAULT, TOKENS_HIGHEST = 2048, 8192
SEQS_DEFAULT = 256
# For a model whose native length is not known: enough to serve, small enough for most models to accept.
LENGTH_UNKNOWN = 8192


def fit(line: CommandLine, target: Slice, sizing: Sizing, model: str | None, notes: Notes) -> None:
    """Set what depends on the slice, every limit explicitly."""
    _check_weights(line, target, model, notes)
    chips = str(target.chips)
    put(line, "tensor-parallel-size", chips, f"the model is split over the slice's {chips} chips", notes)
    put(line, "dtype", "bfloat16", "the TPU's own type", notes)
    if line.get("kv-cache-dtype") is not None and (line.value("kv-cache-dtype") or "").lower() not in {
        "auto",
        "bfloat16",
    }:
        put(line, "kv-cache-dtype", "auto", "a quantized KV cache is untested on TPU", notes)
    share = _share(line.value("gpu-memory-utilization"))
    if share is None or not MEMORY_LOW <= share <= MEMORY_HIGH:
        share = MEMORY_LOW if share is not None and share < MEMORY_LOW else MEMORY_HIGH
        put(line, "gpu-memory-utilization", f"{share:.2f}", "programs need HBM beside weights and KV cache", notes)
    length = line.integer("max-model-len")
    if length is None:
        length = sizing.max_model_len or checkpoints.native_context(model) or LENGTH_UNKNOWN
        put(line, "max-model-len", str(length), "defaults do not know this device: always explicit", notes)
        if sizing.max_model_len is None:
            notes.warn(
                f"{line.path} --max-model-len",
                f"the source leaves its context length to the model; the TPU gets {length}: longer requests get a 400",
                "compare with max_model_len in the live source's /v1/models",
            )
    seqs = line.integer("max-num-seqs")
    if seqs is None:
        seqs = sizing.max_num_seqs or SEQS_DEFAULT
        put(line, "max-num-seqs", str(seqs), "defaults do not know this device: always explicit", notes)
    _batched_tokens(line, sizing, length, seqs, notes)


def _check_weights(line: CommandLine, target: Slice, model: str | None, notes: Notes) -> None:
    """Block a model whose weights alone do not fit; how much room the others leave is the plan's to say."""
    weights = checkpoints.least_weights_gib(model, quantized=line.get("quantization") is not None)
    if weights is not None and weights > target.hbm_gib * MEMORY_HIGH:
        notes.block(
            f"{line.path} model",
            f"{model} cannot fit: its weights take at least {weights:.0f} GiB, and of the {target.hbm_gib:.0f} GiB "
            f"of HBM in {target.name} {target.hbm_gib * MEMORY_HIGH:.0f} GiB can be used",
            "choose a larger slice, or name a smaller or quantized checkpoint (--model)",
        )


def _batched_tokens(line: CommandLine, sizing: Sizing, length: int, seqs: int, notes: Notes) -> None:
    chunked = line.get("enable-chunked-prefill")
    lowest = max(seqs, length if chunked is not None and chunked.negated else 0)
    given = line.integer("max-num-batched-tokens")
    tokens = given or sizing.max_num_batched_tokens or TOKENS_DEFAULT
    wanted = max(min(tokens, TOKENS_HIGHEST), lowest)
    if given == wanted:
        return
    why = "defaults do not know this device: always explicit"
    if given is not None:
        why = f"each power of two up to it compiles, and vLLM wants at least {lowest}"
    put(line, "max-num-batched-tokens", str(wanted), why, notes)


def _share(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def vision(line: CommandLine, model: str | None, sizing: Sizing, notes: Notes) -> None:
    """Leave the vision tower out where no user sends images; else keep images whole."""
    option = line.get("limit-mm-per-prompt")
    limits = _limits(line, option)
    if option is not None and limits is not None and option.values and not option.key and "{" not in option.values[0]:
        put(line, "limit-mm-per-prompt", json.dumps(limits), f"{VERSION} reads JSON only", notes)
    text_only = line.get("language-model-only") is not None or (limits or {}).get("image") == 0
    if text_only or not (checkpoints.has_vision(model) or limits):
        return
    if sizing.text_only:
        put(line, "limit-mm-per-prompt", '{"image":0}', "users send text only: the vision tower is left out", notes)
        return
    if line.get("disable-chunked-mm-input") is None:
        line.add("disable-chunked-mm-input")
        why = "an image must not be split over two steps on TPU"
        notes.change(f"{line.path} --disable-chunked-mm-input", None, "--disable-chunked-mm-input", why)
    notes.warn(
        f"{line.path} --limit-mm-per-prompt",
        f"{model} takes images: the vision tower takes HBM and compile time, and prompt_logprobs fail with it",
        "if no user sends images, say so (--text-only)",
    )


def _limits(line: CommandLine, option: Option | None) -> dict[str, int] | None:
    if option is None or not option.values:
        return None
    text = line.resolve(option.values[0], option.head.buffer) or ""
    if option.key:
        return {option.key: integer(text) or 0}
    try:
        parsed = json.loads(text)
        return parsed if isinstance(parsed, dict) else None
    except ValueError:
        pairs = re.findall(r"(\w+)=(\d+)", text)
        return {name: int(count) for name, count in pairs} or None
