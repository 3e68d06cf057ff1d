"""Sum up a migration as the contract's summary.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.record import Record
from tpu_migration.status import observed_route, safe_service, stage_table

_CHECK = ("name", "outcome", "value", "limit", "unit")


def summarise(
    kube: Kubernetes, record: Record, users: Mapping[str, Any], *, engine: str, seconds: float
) -> dict[str, Any]:
    """Return the summary: where users are, where it is safe, what was proven, and what users met.

    `users` are the counters of whoever stands for the users; `engine` says whether figures are
    `simulated`; `seconds` is the whole run's time.
    """
    verdict = record.verdict
    fallback = record.fallback
    return {
        "workload": record.workload,
        "engine": engine,
        "phase": str(record.phase),
        "route": observed_route(kube, record),
        "safe_route": safe_service(kube, record),
        "stages": stage_table(record),
        "verdict": {
            "outcome": verdict["outcome"],
            "checks": [{key: check[key] for key in _CHECK} for check in verdict["checks"]],
        }
        if verdict
        else None,
        "users": {key: users.get(key) for key in ("requests", "failed", "truncated", "peak_streams", "p99_ttft_s")},
        "fallback": {
            "reason": fallback.reason,
            "detected_to_restored_s": round((fallback.observed or fallback.route_written) - fallback.detected, 3),
        }
        if fallback
        else None,
        "seconds": round(seconds, 1),
    }
