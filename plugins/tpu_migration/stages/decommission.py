"""Give the GPUs back, but only what nobody needs any more."""

from __future__ import annotations

from dataclasses import replace

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.domain.phases import Phase
from tpu_migration.domain.routing import epoch_of, rules_of, target_percent
from tpu_migration.errors import PermanentError
from tpu_migration.record import Record
from tpu_migration.stages.base import Context, Done, Outcome, Waiting
from tpu_migration.stages.cleanup import remove_scaffolding
from tpu_migration.stages.objects import is_ready, pods_of
from tpu_migration.stages.observe import look
from tpu_migration.stages.pin import unpin_source

_DRAIN_WINDOW_S = 10.0  # nothing may be in flight on the source for this long
_POLL_S = 2.0


def step(ctx: Context) -> Outcome:
    """Drain, lower the recorded capacity, scale down, see the pods gone, delete the pools."""
    if ctx.plan.stop_after == "gate":
        return Done({"skipped": "a proof of concept gives nothing up"})
    record = ctx.expect(Phase.COMMITTED, Phase.DECOMMISSIONING)
    if record is None:
        return Done()
    _check_users_are_safe(ctx, record)
    if record.phase is Phase.COMMITTED:
        return _drain(ctx, record)
    if ctx.plan.source_release == "keep":
        return _finish(ctx, record, "kept, and scaled by its own HPA again")
    return _release(ctx, record)


def _check_users_are_safe(ctx: Context, record: Record) -> None:
    """Refuse to give anything up unless the target carries everybody right now."""
    route = ctx.kube.get(k8s.HTTP_ROUTES, record.source.route, ctx.plan.namespace)
    if route is None:
        raise PermanentError(f"HTTPRoute {record.source.route} is gone: nothing is given up")
    percent = target_percent(rules_of(route), record.source.service, record.target)
    if percent != 100 or epoch_of(route) != record.epoch:
        raise PermanentError(
            f"HTTPRoute {record.source.route} gives the target {percent} % at epoch {epoch_of(route)} (record: "
            f"{record.epoch}): users are not all on the target, nothing is given up"
        )
    deployment = ctx.kube.get(k8s.DEPLOYMENTS, record.target, ctx.plan.namespace)
    pods = pods_of(ctx.kube, ctx.plan.namespace, deployment) if deployment else []
    nodes = {pod["spec"].get("nodeName") for pod in pods if is_ready(pod)}
    needed = 1 if ctx.plan.accept_single_replica else 2
    if len(nodes) < needed:
        raise PermanentError(
            f"{len(nodes)} TPU nodes carry a ready replica, {needed} are needed before GPUs go (or say "
            "accept_single_replica): nothing is given up"
        )


def _drain(ctx: Context, record: Record) -> Outcome:
    """Wait until nothing has been in flight on the source for a whole window."""
    sample = look(ctx, record)
    flight = sample.source.in_flight
    if flight is None or flight > 0:
        ctx.memory.pop("idle_since", None)
        told = "does not say" if flight is None else f"still serves {flight:.0f} requests"
        return Waiting(1.0, f"draining: the source {told}")
    idle_s = sample.at - ctx.memory.setdefault("idle_since", sample.at)
    if idle_s < _DRAIN_WINDOW_S:
        return Waiting(1.0, f"draining: the source has been idle for {idle_s:.0f} of {_DRAIN_WINDOW_S:.0f} s")
    ctx.update(lambda r: r.moved_to(Phase.DECOMMISSIONING))
    return Waiting(0, "the source is drained")


def _release(ctx: Context, record: Record) -> Outcome:
    namespace, source = ctx.plan.namespace, record.source
    deployment = ctx.kube.get(k8s.DEPLOYMENTS, source.deployment, namespace)
    if deployment is not None:
        if record.source_capacity:
            ctx.update(lambda r: replace(r, source_capacity=0, intent=f"scale {source.deployment} to 0"))
        # An HPA does nothing while its target has 0 replicas, so it needs no holding back.
        if deployment["spec"].get("replicas", 1):
            ctx.kube.scale(source.deployment, namespace, 0)
        labels = ",".join(f"{k}={v}" for k, v in deployment["spec"]["selector"]["matchLabels"].items())
        pods = ctx.kube.list(k8s.PODS, namespace, labels=labels)
        if pods:
            return Waiting(_POLL_S, f"{len(pods)} GPU pods end with their own grace")
    if ctx.plan.source_release == "scale-to-zero":
        return _finish(ctx, record, "scaled to zero, its node pools kept")
    left = [pool for pool in source.node_pools if ctx.pools.get(pool) is not None]
    for pool in left:
        _delete_pool(ctx, pool)
    if left:
        return Waiting(_POLL_S, f"node pool {', '.join(left)} is being deleted")
    return _finish(ctx, record, f"gone, with node pool {', '.join(source.node_pools)}")


def _delete_pool(ctx: Context, pool: str) -> None:
    """Delete a pool unless something else runs on it; one whose deletion runs is left to it."""
    found = ctx.pools.get(pool)
    if found is None or found.status == "STOPPING" or ctx.pools.running_operations(pool):
        return
    nodes = {
        each["metadata"]["name"] for each in ctx.kube.list(k8s.NODES, labels=f"cloud.google.com/gke-nodepool={pool}")
    }
    others = [
        f"{pod['metadata'].get('namespace', '')}/{pod['metadata']['name']}"
        for node in sorted(nodes)
        for pod in ctx.kube.list(k8s.PODS, ctx.plan.namespace, fields=f"spec.nodeName={node}")
        if not any(o.get("kind") == "DaemonSet" for o in pod["metadata"].get("ownerReferences") or [])
    ]
    if others:
        raise PermanentError(
            f"node pool {pool} is kept: {', '.join(others)} run on it; move them, then delete the pool by hand"
        )
    ctx.update(lambda r: replace(r, intent=f"delete node pool {pool}"))
    ctx.pools.delete(pool)


def _finish(ctx: Context, record: Record, what: str) -> Outcome:
    unpin_source(ctx, record)
    remove_scaffolding(ctx)
    ctx.update(lambda r: replace(r.moved_to(Phase.MIGRATED), intent=""))
    return Done({"source": what})
