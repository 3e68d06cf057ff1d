"""Know the shapes of well-known models by name, whoever quantized or copied them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from tpu_migration.domain.fit.shape import ModelConfigError, Quantization, Shape, parse_shape

# What a name says of how its weights are stored; taken off before the model is looked up.
_QUANTIZED = re.compile(
    r"[-_.](fp8|float8|awq|gptq|gguf|bnb|int4|int8|w4a16|w8a8|w8a16|nvfp4|mxfp4|quantized|4bit|8bit|autoround)(?=$|[-_.]).*$",
    re.I,
)
_STORED = (
    (r"fp8|float8", "fp8"),
    (r"int8|w8a8|w8a16|8bit", "int8"),
    (r"awq|gptq|int4|w4a16|4bit|bnb|gguf|nvfp4|mxfp4|autoround", "int4"),
)


@dataclass(frozen=True)
class KnownModel:
    """Hold one entry: its name, the names it goes by, its published total and its config."""

    name: str
    match: str
    parameters: int
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Catalog:
    """Hold the table of well-known models."""

    checked: str
    source: str
    models: tuple[KnownModel, ...]

    def find(self, model: str) -> tuple[KnownModel, Shape] | None:
        """Find the model behind an id or a path; its shape says how the name has the weights stored."""
        name = model.rstrip("/").rsplit("/", 1)[-1]
        base = _QUANTIZED.sub("", name).lower()
        for known in self.models:
            if re.fullmatch(known.match, base):
                shape = parse_shape(known.config, model)
                stored = stored_as(name)
                if stored:
                    shape = replace(shape, quantization=Quantization(stored[0], stored[1]))
                return known, shape
        return None


def stored_as(name: str) -> tuple[str, str] | None:
    """Tell from a name by what method its weights are quantized and how they are stored; None if it does not say."""
    suffix = _QUANTIZED.search(name)
    if suffix is None:
        return None
    for pattern, stored in _STORED:
        if re.search(pattern, suffix[0], re.I):
            return suffix[1].lower(), stored
    return None


def parse_catalog(text: str) -> Catalog:
    """Parse include/models.yaml. Raises ModelConfigError naming the entry that is wrong."""
    document = yaml.safe_load(text)
    if not isinstance(document, Mapping) or document.get("schemaVersion") != 1:
        raise ModelConfigError("models: a mapping with schemaVersion 1 is needed")
    models = []
    for name, entry in (document.get("models") or {}).items():
        unknown = set(entry) - {"match", "parameters", "config"}
        if unknown or not {"match", "parameters", "config"} <= set(entry):
            raise ModelConfigError(f"models.{name}: needs exactly match, parameters and config")
        parse_shape(entry["config"], str(name))
        models.append(KnownModel(str(name), str(entry["match"]), int(entry["parameters"]), entry["config"]))
    return Catalog(str(document.get("checked", "")), str(document.get("source", "")), tuple(models))
