"""Tell which capabilities users lose or get otherwise on TPU, from the source's arguments, environment and model.

The table (include/features.yaml) says what each gap does and what helps; here is decided whether it applies. Which
quantizations a TPU takes, and which checkpoint stands for an FP8 one, is the translation's knowledge and read there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import yaml

from tpu_migration.domain.fit import Shape
from tpu_migration.domain.translation import checkpoints
from tpu_migration.domain.translation.arguments import CommandLine
from tpu_migration.domain.translation.flags import (
    ACCEPTED_QUANTIZATION,
    FP8_CHECKPOINT_METHODS,
    ONLINE_FP8,
    SAME_QUANTIZATION,
)

BLOCKER, WARNING, NOTE = "blocker", "warning", "note"
_ORDER = {BLOCKER: 0, WARNING: 1, NOTE: 2}


class FeatureError(ValueError):
    """Say what is wrong with the table of features."""


@dataclass(frozen=True)
class Feature:
    """Hold one capability of the table."""

    key: str
    title: str
    severity: str
    generations: tuple[str, ...]
    flags: tuple[str, ...]
    effect: str
    remedy: str
    matrix: tuple[str, ...] = ()  # how tpu-inference's published support matrices call it: what their rows begin with


@dataclass(frozen=True)
class FeatureTable:
    """Hold the table, the vLLM version that it holds for, and when that was read."""

    version: str
    read: str
    features: tuple[Feature, ...]


@dataclass(frozen=True)
class Gap:
    """Hold one capability that this workload loses: what shows it, what it does, what helps, and for which vLLM."""

    key: str
    title: str
    severity: str
    evidence: str
    effect: str
    remedy: str
    version: str


@dataclass(frozen=True)
class Workload:
    """Hold what the analysis looks at; `line` None where a manifest hides how it starts vLLM.

    `replacement` is the checkpoint that people have named for the target: it resolves a quantization that blocks.
    """

    line: CommandLine | None
    model: str | None
    shape: Shape | None
    text_only: bool = False
    replacement: str | None = None


_Found = tuple[str, str] | None  # evidence and severity ("" leaves the table's)


def parse_features(text: str) -> FeatureTable:
    """Parse include/features.yaml. Raises FeatureError naming the entry that is wrong, or has no rule here."""
    document = yaml.safe_load(text)
    if not isinstance(document, Mapping) or document.get("schemaVersion") != 1:
        raise FeatureError("features: a mapping with schemaVersion 1 is needed")
    entries = document.get("features") or {}
    if set(entries) != set(_RULES):
        raise FeatureError(f"features: {', '.join(sorted(set(entries) ^ set(_RULES)))}: table and rules differ")
    wanted = {field.name for field in fields(Feature)} - {"key", "matrix"}
    features = []
    for key, entry in entries.items():
        if set(entry) - {"matrix"} != wanted or entry["severity"] not in _ORDER:
            raise FeatureError(
                f"features.{key}: needs exactly {', '.join(sorted(wanted))}, severity one of {', '.join(_ORDER)}"
            )
        lists = {name: tuple(entry[name]) for name in ("generations", "flags", "matrix") if name in entry}
        features.append(Feature(key=str(key), **{**entry, **lists}))
    return FeatureTable(str(document.get("version", "")), str(document.get("read", "")), tuple(features))


def analyse(table: FeatureTable, workload: Workload, generation: str) -> list[Gap]:
    """List the gaps of a workload on a TPU generation, the worst first."""
    gaps = []
    for feature in table.features:
        if generation not in feature.generations:
            continue
        found = _RULES[feature.key](workload, feature)
        if found is not None:
            evidence, severity = found
            gap = Gap(
                feature.key,
                feature.title,
                severity or feature.severity,
                evidence,
                feature.effect,
                feature.remedy,
                table.version,
            )
            gaps.append(_explain(gap, workload))
    return sorted(gaps, key=lambda gap: _ORDER[gap.severity])


def _explain(gap: Gap, workload: Workload) -> Gap:
    """Say of a quantized checkpoint which one takes its place."""
    model = workload.model or ""
    if gap.key in {"fp8_weights", "other_quantization"} and workload.replacement:
        severity = WARNING if gap.severity == BLOCKER else gap.severity
        return replace(gap, severity=severity, remedy=f"{workload.replacement} is served; let the gate judge it")
    if gap.key != "fp8_weights" or not checkpoints.is_fp8(model):
        return gap
    base = checkpoints.bf16_checkpoint(model)
    if base is None:
        return replace(gap, remedy="name the BF16 checkpoint (--model): none is known for this one")
    return replace(gap, remedy=f"serve {base}; let the gate judge TPOT")


def _flagged(workload: Workload, feature: Feature) -> _Found:
    """Find the first of a feature's flags on the command line."""
    if workload.line is None:
        return None
    for option in workload.line.all(*feature.flags):
        if not option.negated and option.values not in (["0"], ["1"] if option.name.endswith("-size") else ["0"]):
            return _shorten(option.text), ""
    return None


def _always(workload: Workload, feature: Feature) -> _Found:
    return "every server", ""


def _method(workload: Workload) -> str:
    return (workload.line.value("quantization") or "").lower() if workload.line else ""


def _fp8_weights(workload: Workload, feature: Feature) -> _Found:
    model, method = workload.model or "", _method(workload)
    if checkpoints.is_fp8(model):
        return model, "" if checkpoints.bf16_checkpoint(model) else BLOCKER
    if method in FP8_CHECKPOINT_METHODS:
        return f"--quantization {method}", BLOCKER
    if method in ONLINE_FP8:
        return f"--quantization {method}", ""
    stored = workload.shape.quantization if workload.shape else None
    return (f"quantization_config {stored.method}", BLOCKER) if stored and stored.stored == "fp8" else None


def _other_quantization(workload: Workload, feature: Feature) -> _Found:
    model, method = workload.model or "", _method(workload)
    if checkpoints.is_gpu_only(model):
        return model, BLOCKER
    if method and method not in ONLINE_FP8 | FP8_CHECKPOINT_METHODS:
        return f"--quantization {method}", "" if method in ACCEPTED_QUANTIZATION | set(SAME_QUANTIZATION) else BLOCKER
    stored = workload.shape.quantization if workload.shape else None
    if stored is None or stored.stored == "fp8":
        return None
    if stored.gpu_only:
        return f"quantization_config {stored.method}", BLOCKER
    return f"{stored.stored} weights ({stored.method})", ""


def _fp8_kv_cache(workload: Workload, feature: Feature) -> _Found:
    value = (workload.line.value("kv-cache-dtype") or "") if workload.line else ""
    return (f"--kv-cache-dtype {value}", "") if value.lower().startswith("fp8") else None


def _multimodal(workload: Workload, feature: Feature) -> _Found:
    takes_images = workload.shape.vision is not None if workload.shape else checkpoints.has_vision(workload.model)
    if not takes_images or _is_text_only(workload):
        return None
    return f"{workload.model} takes images", ""


def _is_text_only(workload: Workload) -> bool:
    line = workload.line
    if workload.text_only or (line and line.get("language-model-only")):
        return True
    text = (line.value("limit-mm-per-prompt") or "") if line else ""
    try:
        limits = json.loads(text) if text else {}
    except ValueError:
        return "image=0" in text
    return isinstance(limits, dict) and limits.get("image") == 0


def _structured_output(workload: Workload, feature: Feature) -> _Found:
    return _flagged(workload, feature) or ("clients that send guided_*", NOTE)


def _context_length(workload: Workload, feature: Feature) -> _Found:
    if workload.line is None or workload.line.integer("max-model-len") is not None:
        return None
    return "the source leaves it to the model", ""


def _kv_transfer(workload: Workload, feature: Feature) -> _Found:
    found = _flagged(workload, feature)
    if found is None or "TPU" in found[0]:
        return None
    text = " ".join(
        value for option in (workload.line.all(*feature.flags) if workload.line else []) for value in option.values
    )
    return found[0], BLOCKER if "kv_producer" in text or "kv_consumer" in text else ""


def _several_hosts(workload: Workload, feature: Feature) -> _Found:
    line = workload.line
    if line is None:
        return None
    if (nodes := line.integer("nnodes")) and nodes > 1:
        return f"--nnodes {nodes}", ""
    if line.get("headless"):
        return "--headless", ""
    stages = line.integer("pipeline-parallel-size")
    return (f"--pipeline-parallel-size {stages}", WARNING) if stages and stages > 1 else None


def _pooling(workload: Workload, feature: Feature) -> _Found:
    for name in ("task", "runner"):
        value = workload.line.value(name) if workload.line else None
        if value and value not in {"generate", "auto"}:
            return f"--{name} {value}", ""
    return None


def _compile_at_start(workload: Workload, feature: Feature) -> _Found:
    return _flagged(workload, feature) or ("every server", "")


def _prompt_logprobs(workload: Workload, feature: Feature) -> _Found:
    images = _multimodal(workload, feature)
    return (images[0], WARNING) if images else ("every server", "")


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


_RULES: dict[str, Callable[[Workload, Feature], _Found]] = {
    "fp8_weights": _fp8_weights,
    "other_quantization": _other_quantization,
    "fp8_kv_cache": _fp8_kv_cache,
    "speculative_decoding": _flagged,
    "attention_backend": _flagged,
    "compile_at_start": _compile_at_start,
    "lora": _flagged,
    "multimodal": _multimodal,
    "structured_output": _structured_output,
    "context_length": _context_length,
    "sampling_parameters": _always,
    "request_seed": _always,
    "prompt_logprobs": _prompt_logprobs,
    "kv_transfer": _kv_transfer,
    "sleep_mode": _flagged,
    "weight_offload": _flagged,
    "several_engines": _flagged,
    "several_hosts": _several_hosts,
    "expert_parallel": _flagged,
    "pooling": _pooling,
    "logits_processors": _flagged,
}


def as_json(gap: Gap) -> dict[str, Any]:
    """Return a gap as JSON values."""
    return {field.name: getattr(gap, field.name) for field in fields(gap)}
