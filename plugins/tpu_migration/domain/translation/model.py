"""Define what the translation takes and gives: findings, changes, names, sizes, source, result."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]

# An object name becomes a label value, and a Service's name a DNS label: 63 characters for both.
NAME_LIMIT = 63


class InputError(ValueError):
    """Say that the input cannot be translated at all: where, why, and what to do."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.message = message
        self.where = where


@dataclass(frozen=True)
class Change:
    """Hold one difference between source and target; `old` or `new` is None where nothing was or is."""

    path: str
    old: Any
    new: Any
    why: str


@dataclass(frozen=True)
class Finding:
    """Hold something that people should know (a warning) or must resolve (a blocker)."""

    path: str
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Translation:
    """Hold the target's manifests and what is to be said about them."""

    manifests: list[Manifest]
    changes: list[Change]
    warnings: list[Finding]
    blockers: list[Finding]


@dataclass(frozen=True)
class Sizing:
    """Override limits that the source leaves to vLLM's own defaults.

    `max_model_len` is best read from the live source's /v1/models. `shutdown_timeout_s` is how long a pod
    that is told to stop may finish its streams; `model` names the BF16 checkpoint where none is known.
    `text_only` says that no user sends images, so the vision tower is switched off.
    """

    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    shutdown_timeout_s: int = 300
    model: str | None = None
    text_only: bool = False


@dataclass(frozen=True)
class Source:
    """Describe the vLLM workload that is to be moved. None: the manifest leaves it to vLLM, or hides it."""

    name: str
    namespace: str | None
    container: int
    accelerator: str | None
    chips: int
    model: str | None
    served_names: tuple[str, ...]
    port: int
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    quantization: str | None
    speculative: bool
    lora: bool
    replicas: int


@dataclass(frozen=True)
class Names:
    """Name the target's objects; ConfigMap copies and Services besides the first take `suffix`."""

    deployment: str
    service: str
    health_check_policy: str
    backend_policy: str
    pod_disruption_budget: str
    autoscaler: str
    pod_monitoring: str
    suffix: str = "-tpu"

    @classmethod
    def for_source(cls, source: str, suffix: str = "-tpu") -> Names:
        """Derive every name from the source Deployment's."""
        base = shorten(source, suffix)
        service = re.sub(r"[^a-z0-9-]", "-", base)
        # A Service's name must begin with a letter (RFC 1035), a Deployment's need not.
        service = service if service[0].isalpha() else shorten(f"vllm-{source}".replace(".", "-"), suffix)
        return cls(base, service, base, base, base, base, base, suffix)


def shorten(name: str, suffix: str) -> str:
    """Append a suffix and keep the result within 63 characters, distinct names staying distinct."""
    if len(name) + len(suffix) <= NAME_LIMIT:
        return name + suffix
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    kept = name[: NAME_LIMIT - len(suffix) - 9].rstrip("-._")
    return f"{kept}-{digest}{suffix}"


class Notes:
    """Collect changes, warnings and blockers while a translation runs.

    `about` names the workload that paths of no other object belong to, where a file has several.
    """

    def __init__(self) -> None:
        self.about = ""
        self.changes: list[Change] = []
        # Dictionaries, for each finding is said once, and a file may have thousands.
        self._warnings: dict[Finding, None] = {}
        self._blockers: dict[Finding, None] = {}

    @property
    def warnings(self) -> list[Finding]:
        return list(self._warnings)

    @property
    def blockers(self) -> list[Finding]:
        return list(self._blockers)

    def change(self, path: str, old: Any, new: Any, why: str) -> None:
        """Record a difference, unless there is none."""
        if old != new:
            self.changes.append(Change(self._place(path), old, new, why))

    def warn(self, path: str, message: str, remedy: str = "") -> None:
        """Record what people should know, once."""
        self._warnings.setdefault(Finding(self._place(path), message, remedy))

    def block(self, path: str, message: str, remedy: str = "") -> None:
        """Record what must be resolved before the target can serve, once."""
        self._blockers.setdefault(Finding(self._place(path), message, remedy))

    def _place(self, path: str) -> str:
        inside = self.about and path.startswith(("spec.", "metadata.", "env ", "variable "))
        return f"{self.about} {path}" if inside else path
