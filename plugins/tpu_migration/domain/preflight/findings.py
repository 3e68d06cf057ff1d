"""Hold what preflight observes and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpu_migration.domain.assessment import Assessment
from tpu_migration.domain.maintenance import Exclusion, Window
from tpu_migration.domain.plan import Plan

BLOCKER, WARNING, NOTE = "blocker", "warning", "note"
SEVERITIES = (BLOCKER, WARNING, NOTE)

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """Hold one thing that stands in the way, or that people should know: which thing, its state, the remedy."""

    severity: str
    code: str
    thing: str
    state: str
    remedy: str = ""

    def __str__(self) -> str:
        """Write it as one sentence."""
        return f"{self.thing}: {self.state}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Cluster:
    """Hold what GKE says of a cluster; without windows GKE maintains it whenever it likes."""

    autopilot: bool = False
    windows: tuple[Window, ...] = ()
    exclusions: tuple[Exclusion, ...] = ()
    zones: tuple[str, ...] = ()  # in which it may have nodes; empty: not known
    version: str = ""  # of its control plane, such as 1.36.1-gke.1000; empty: not known


@dataclass(frozen=True)
class Observed:
    """Hold what was found, as the API gave it (managed fields included); None where nobody could look.

    `held` has the keys of each Secret and ConfigMap by kind and name, None for one that is missing.
    """

    plan: Plan
    now: float  # Unix seconds
    deployment: Object
    route: Object
    hpas: Sequence[Object] = ()
    pdbs: Sequence[Object] = ()
    vpas: Sequence[Object] | None = ()
    held: Mapping[tuple[str, str], frozenset[str] | None] = field(default_factory=dict)
    claims: Mapping[str, Object | None] = field(default_factory=dict)
    cluster: Cluster | None = None
    min_gke_version: str = ""  # of the control plane that makes the target's node pools
    namespace_labels: Mapping[str, str] | None = None
    assessment: Assessment | None = None
    unassessed: str = ""  # why there is no assessment


@dataclass(frozen=True)
class Report:
    """Hold the findings, the worst first, and the names of the checks that found nothing or could not look."""

    findings: tuple[Finding, ...]
    passed: tuple[str, ...]
    unchecked: tuple[str, ...]

    @property
    def blockers(self) -> tuple[Finding, ...]:
        """Return what must be mended before anything is made."""
        return tuple(each for each in self.findings if each.severity == BLOCKER)


def title_of(obj: Object) -> str:
    """Name an object as people do: its kind and its name."""
    return f"{obj['kind']} {obj['metadata']['name']}"
