"""Find a model's config.json: a file that is given, a local path, the Hub's cache, else the table of known models.

Nothing is fetched and nothing is written: a plan must be possible without network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tpu_migration.domain.fit import Catalog, ModelConfigError, Shape, parse_catalog, parse_shape
from tpu_migration.resources import read_text


@dataclass(frozen=True)
class FoundModel:
    """Hold a model's shape and where it was read."""

    shape: Shape
    origin: str


@cache
def catalog() -> Catalog:
    """Return the table of well-known models."""
    return parse_catalog(read_text("models.yaml"))


def find_model(model: str, config_file: Path | None = None, environ: Mapping[str, str] | None = None) -> FoundModel:
    """Find the shape behind a model id or path.

    Raises ModelConfigError for a config that cannot be read, and for a model that nobody here knows.
    """
    if config_file is not None:
        return FoundModel(parse_shape(_read(config_file), model), str(config_file))
    path = Path(model)
    local = path / "config.json" if path.is_dir() else path
    if local.is_file() and local.suffix == ".json":
        return FoundModel(parse_shape(_read(local), model), str(local))
    cached = _cached(model, os.environ if environ is None else environ)
    if cached is not None:
        return FoundModel(parse_shape(_read(cached), model), "the Hub's cache")
    known = catalog().find(model)
    if known is not None:
        return FoundModel(known[1], f"the built-in table ({known[0].name})")
    raise ModelConfigError(
        f"{model}: its config.json is neither at hand nor in the built-in table: give it with --model-config FILE,"
        " or set HF_HOME to a cache that has it"
    )


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Locate the Hub's cache as huggingface_hub does: HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME, ~/.cache."""
    if given := environ.get("HF_HUB_CACHE"):
        return Path(given)
    if home := environ.get("HF_HOME"):
        return Path(home) / "hub"
    base = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "~")).expanduser() / ".cache"
    return Path(base) / "huggingface" / "hub"


def _cached(model: str, environ: Mapping[str, str]) -> Path | None:
    if model.count("/") != 1 or model.startswith(("/", ".")):
        return None
    folder = hub_cache(environ) / f"models--{model.replace('/', '--')}"
    main = folder / "refs" / "main"
    if main.is_file():
        named = folder / "snapshots" / main.read_text(encoding="utf-8").strip() / "config.json"
        if named.is_file():
            return named
    found = sorted(folder.glob("snapshots/*/config.json"), key=lambda each: each.stat().st_mtime)
    return found[-1] if found else None


def _read(path: Path) -> dict[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelConfigError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise ModelConfigError(f"{file} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelConfigError(f"{file} is no config.json: a mapping is needed, found {type(value).__name__}")
    return value
