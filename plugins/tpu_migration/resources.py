"""Read the files of include/: manifests, policies, prices.

The package's own folder `include` is a link to the one at the top of a checkout, and a copy in the
wheel: managed Airflow syncs neither plugins/ nor include/ to its triggerer.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tpu_migration.domain.accelerators import Accelerators, parse_accelerators
from tpu_migration.domain.features import FeatureTable, parse_features
from tpu_migration.domain.gate import Policy, load_policy
from tpu_migration.domain.values import copied
from tpu_migration.errors import PermanentError

INCLUDE = Path(__file__).parent / "include"


@cache
def read_text(name: str) -> str:
    """Return the text of a file of include/; PermanentError names those that are there."""
    path = INCLUDE / name
    if path.is_file():
        return path.read_text(encoding="utf-8")
    there = sorted(each.name for each in path.parent.glob("*") if each.is_file())
    raise PermanentError(f"include/{name} does not exist; there are: {', '.join(there) or 'none'}")


def manifests(name: str) -> list[dict[str, Any]]:
    """Return the documents of a YAML file of include/manifests; they are the caller's own."""
    return copied(_parsed(f"manifests/{name}"))


@cache
def _parsed(name: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(read_text(name)) if each]


@cache
def policy(name: str) -> Policy:
    """Return a gate policy of include/policies."""
    return load_policy(read_text(f"policies/{name}.yaml"))


@cache
def accelerators() -> Accelerators:
    """Return the accelerators and their dated prices."""
    return parse_accelerators(read_text("accelerators.yaml"))


@cache
def features() -> FeatureTable:
    """Return the capabilities that differ on TPU."""
    return parse_features(read_text("features.yaml"))
