"""Watch live users while their engines are probed, and say so when they are over their SLO."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.vllm import Metrics, Vllm
from tpu_migration.domain.gate import Policy, over_slo
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.record import Record
from tpu_migration.stages.base import Context
from tpu_migration.stages.objects import pods_of

_EVERY_S = 5.0
_BLIND_S = 30.0  # users who cannot be seen may be suffering
_LEAST_REQUESTS = 50


class UsersSufferError(Exception):
    """Say that the probe must end at once, because of the users beside it."""


class UsersUnseenError(UsersSufferError):
    """Say that nobody knows how the users are: no reason to go on, and no proof that they suffer."""


def watch(ctx: Context, record: Record, policy: Policy, deployment: str) -> None:
    """Look at the TTFT of a Deployment's users every few seconds; raise when they are over it, or out of sight.

    Windows follow each other, each of at least 50 requests. The probe's own few per cent are counted
    with the users': vLLM does not tell them apart.
    """
    now, memory = ctx.clock.monotonic(), ctx.memory
    if policy.slo is None or now - memory.get("users_at", -math.inf) < _EVERY_S:
        return
    memory["users_at"] = now
    seen_at = memory.setdefault("users_seen_at", now)
    try:
        after = _scrape(ctx, record, deployment)
    except TransientError as error:
        if now - seen_at > _BLIND_S:
            raise UsersUnseenError(f"live users could not be watched for {now - seen_at:.0f} s: {error}") from error
        return
    memory["users_seen_at"] = now
    before: Mapping[str, Metrics] = memory.setdefault("users_before", after)
    total, slow = 0.0, 0.0
    for pod, new in after.items():
        old = before.get(pod)
        if old is not None and old.started_at == new.started_at:
            total += new.first_tokens - old.first_tokens
            slow += _slower(new, policy) - _slower(old, policy)
    if total < _LEAST_REQUESTS:
        return
    memory["users_before"] = after
    if told := over_slo(policy, int(total), int(slow)):
        raise UsersSufferError(told)


def forget(ctx: Context) -> None:
    """Begin a new watch at the next look; what was between two probes is nobody's doing."""
    for name in ("users_at", "users_seen_at", "users_before"):
        ctx.memory.pop(name, None)


def _scrape(ctx: Context, record: Record, name: str) -> dict[str, Metrics]:
    deployment = ctx.kube.get(k8s.DEPLOYMENTS, name, ctx.plan.namespace)
    if deployment is None:
        raise PermanentError(f"Deployment {name} is gone: somebody deleted it")
    vllm = Vllm(ctx.kube, ctx.plan.namespace, record.source.port)
    names = [pod["metadata"]["name"] for pod in pods_of(ctx.kube, ctx.plan.namespace, deployment)]
    scraped = ctx.together([lambda n=name: vllm.metrics(n) for name in names])  # type: ignore[misc]
    return dict(zip(names, scraped, strict=True))


def _slower(metrics: Metrics, policy: Policy) -> float:
    """Count the requests that were over the limit for certain: beyond the first bucket that holds it."""
    assert policy.slo is not None
    limit_s = policy.slo.ttft_limit_ms / 1000
    bounds = [bound for bound in metrics.ttft_buckets if bound >= limit_s]
    return metrics.first_tokens - metrics.ttft_buckets[min(bounds)] if bounds else 0.0
