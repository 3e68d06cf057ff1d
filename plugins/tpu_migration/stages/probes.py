"""Read the prober: what a client sees at the Gateway's own address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tpu_migration.clients.kubernetes import PODS
from tpu_migration.errors import TransientError
from tpu_migration.stages.base import Context
from tpu_migration.stages.objects import is_ready

_PORT = 8080
_STEADY = 3
MAIN_ARM = "main"


@dataclass(frozen=True)
class ArmStats:
    """What the prober saw on one way through the Gateway since it started."""

    ok: int
    failed: int
    truncated: int
    consecutive_failures: int
    last_ok_s_ago: float | None
    last_error: str | None
    in_flight: int = 0
    long_ok: int = 0
    long_failed: int = 0

    @property
    def steady(self) -> bool:
        """Tell whether this way was answered three times at least, and the last time, too."""
        return self.ok >= _STEADY and not self.consecutive_failures


@dataclass(frozen=True)
class ProberStats:
    """The prober's counters. `pod` tells one prober from the one that replaced it."""

    pod: str
    arms: Mapping[str, ArmStats]


def prober_stats(ctx: Context) -> ProberStats | None:
    """Return the prober's counters, or None while it does not answer.

    Its pod is looked for once: one that does not answer, or was replaced, is looked for again at the next look.
    """
    pod: str | None = ctx.memory.get("prober") or _ready_prober(ctx)
    stats = _stats_of(ctx, pod) if pod else None
    ctx.memory["prober"] = pod if stats else None
    return stats


def _ready_prober(ctx: Context) -> str | None:
    pods = ctx.kube.list(PODS, ctx.plan.namespace, labels=f"app={ctx.names.prober}")
    return next((str(each["metadata"]["name"]) for each in pods if is_ready(each)), None)


def _stats_of(ctx: Context, pod: str) -> ProberStats | None:
    try:
        answer = ctx.kube.pod_proxy(ctx.plan.namespace, pod, _PORT, "/stats")
        if answer.status != 200:
            return None
        arms: Mapping[str, Mapping[str, Any]] = answer.json()["arms"]
        return ProberStats(pod, {name: _arm(stats) for name, stats in arms.items()})
    except (TransientError, KeyError):
        return None


def _arm(stats: Mapping[str, Any]) -> ArmStats:
    long: Mapping[str, Any] = stats.get("long") or {}
    return ArmStats(
        ok=int(stats["ok"]),
        failed=int(stats["failed"]),
        truncated=int(stats["truncated"]),
        consecutive_failures=int(stats["consecutive_failures"]),
        last_ok_s_ago=stats.get("last_ok_s_ago"),
        last_error=stats.get("last_error"),
        in_flight=int(stats.get("in_flight", 0)),
        long_ok=int(long.get("ok", 0)),
        long_failed=int(long.get("failed", 0)),
    )
