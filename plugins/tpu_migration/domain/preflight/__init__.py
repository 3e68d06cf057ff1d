"""Judge what preflight found around a workload: observations in, findings out; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tpu_migration.domain.preflight import analysis, around, contents
from tpu_migration.domain.preflight.findings import (
    BLOCKER,
    NOTE,
    SEVERITIES,
    WARNING,
    Cluster,
    Finding,
    Observed,
    Report,
)
from tpu_migration.domain.preflight.pods import claims_of, references

__all__ = [
    "BLOCKER",
    "NOTE",
    "SEVERITIES",
    "WARNING",
    "Cluster",
    "Finding",
    "Observed",
    "Report",
    "claims_of",
    "examine",
    "references",
]


def examine(observed: Observed, unchecked: Sequence[str] = (), found_before: Sequence[Finding] = ()) -> Report:
    """Run every check; `unchecked` names what the caller could not look at, and why."""
    findings = list(found_before)
    passed: list[str] = []
    for title, check in _CHECKS.items():
        found = list(check(observed))
        findings += found
        if not found and _could_look(title, observed):
            passed.append(title)
    findings.sort(key=lambda each: SEVERITIES.index(each.severity))
    return Report(tuple(findings), tuple(passed), tuple(unchecked))


def _could_look(title: str, observed: Observed) -> bool:
    needed: dict[str, object] = {
        "vertical autoscalers": observed.vpas,
        "default compute class": observed.namespace_labels,
        "kind of cluster": observed.cluster,
        "GKE version": observed.cluster,
        "maintenance windows": observed.cluster,
        "zone": observed.cluster,
        "fit": observed.assessment,
        "lost features": observed.assessment,
        "cost": observed.assessment,
    }
    return needed.get(title, True) is not None


_CHECKS: dict[str, Callable[[Observed], Iterator[Finding]]] = {
    "route's owner": around.route_owner,
    "workload's owner": around.workload_owner,
    "literal secrets": contents.literal_secrets,
    "Secrets and ConfigMaps": contents.secrets_and_config,
    "storage": contents.storage,
    "autoscaler": around.horizontal_autoscaler,
    "vertical autoscalers": around.vertical_autoscaler,
    "disruption budgets": around.disruption_budgets,
    "compute class": around.compute_class,
    "default compute class": around.default_compute_class,
    "kind of cluster": around.kind_of_cluster,
    "GKE version": around.gke_version,
    "zone": around.zone,
    "maintenance windows": around.maintenance,
    "fit": analysis.fit,
    "lost features": analysis.lost_features,
    "cost": analysis.cost,
}
