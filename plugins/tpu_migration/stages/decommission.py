"""Give the GPUs back, but only what nobody needs any more."""

from __future__ import annotations

from dataclasses import replace

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.domain.phases import Phase
from tpu_migration.domain.routing import epoch_of, rules_of, target_percent
from tpu_migration.domain.watch import Sample, begun_between
from tpu_migration.errors import PermanentError
from tpu_migration.record import Record
from tpu_migration.stages.base import Context, Done, Outcome, Waiting
from tpu_migration.stages.cleanup import remove_scaffolding
from tpu_migration.stages.objects import has_ended, is_ready, other_routes, pods_of, still_ending
from tpu_migration.stages.observe import look
from tpu_migration.stages.pin import unpin_source

_DRAIN_WINDOW_S = 10.0  # nothing may be in flight on the source for this long
_STRAY = 2  # our own probes and their counters are not read in the same instant
_POLL_S = 2.0
_REPLICA_PATIENCE_S = 1800.0  # a TPU replica restarts in tens of minutes


def step(ctx: Context) -> Outcome:
    """Drain, lower the recorded capacity, scale down, see the pods gone, delete the pools."""
    if ctx.plan.stop_after == "gate":
        return Done({"skipped": "a proof of concept gives nothing up"})
    record = ctx.expect(Phase.COMMITTED, Phase.DECOMMISSIONING)
    if record is None:
        return Done()
    if (waiting := _check_users_are_safe(ctx, record)) is not None:
        return waiting
    if record.phase is Phase.COMMITTED:
        return _drain(ctx, record)
    if ctx.plan.source_release == "keep":
        return _finish(ctx, record, "kept, and scaled by its own HPA again")
    return _release(ctx, record)


def _check_users_are_safe(ctx: Context, record: Record) -> Waiting | None:
    """Refuse to give anything up unless the target carries everybody right now.

    Waits for a while for what may come back by itself: a replica that restarts.
    """
    namespace, source = ctx.plan.namespace, record.source
    route = ctx.kube.get(k8s.HTTP_ROUTES, source.route, namespace)
    if route is None:
        raise PermanentError(f"HTTPRoute {source.route} is gone: nothing is given up")
    percent, epoch = target_percent(rules_of(route), source.service, record.target), epoch_of(route, record.workload)
    if percent != 100 or epoch != record.epoch:
        raise PermanentError(
            f"HTTPRoute {source.route} gives the target {percent} % at epoch {epoch} (record: "
            f"{record.epoch}): users are not all on the target, nothing is given up"
        )
    if others := other_routes(ctx, source.service, source.route):
        raise PermanentError(
            f"HTTPRoute {', '.join(others)} sends users to {source.service}: move them to {record.target} first; "
            "nothing is given up"
        )
    deployment = ctx.kube.get(k8s.DEPLOYMENTS, record.target, namespace)
    pods = pods_of(ctx.kube, namespace, deployment) if deployment else []
    nodes = {pod["spec"].get("nodeName") for pod in pods if is_ready(pod)}
    needed = ctx.plan.target_replicas
    if len(nodes) >= needed:
        ctx.memory.pop("too_few_since", None)
        return None
    now = ctx.clock.monotonic()
    if now - ctx.memory.setdefault("too_few_since", now) > _REPLICA_PATIENCE_S:
        raise PermanentError(
            f"{len(nodes)} TPU nodes carry a ready replica, the plan's {needed} are needed before GPUs go: nothing is "
            "given up; clear this task when they are back"
        )
    return Waiting(_POLL_S, f"{len(nodes)} of {needed} TPU replicas are ready: nothing is given up before all are")


def _drain(ctx: Context, record: Record) -> Outcome:
    """Wait until nothing has begun or been in flight on the source for a whole window."""
    sample = look(ctx, record)
    flight = sample.source.in_flight
    first: Sample = ctx.memory.setdefault("idle_since", sample)
    begun = begun_between(first.source, sample.source)
    if flight is None or flight > 0 or begun > _STRAY:
        del ctx.memory["idle_since"]
        told = "does not say" if flight is None else f"still serves {flight:.0f} requests, {begun:.0f} new ones came"
        return Waiting(1.0, f"draining: the source {told}")
    idle_s = sample.at - first.at
    if idle_s < _DRAIN_WINDOW_S:
        # The counters tell of whatever begins in between, so the window needs few looks.
        left_s = min(_DRAIN_WINDOW_S - idle_s, _DRAIN_WINDOW_S / 3)
        return Waiting(left_s, f"draining: the source has been idle for {idle_s:.0f} of {_DRAIN_WINDOW_S:.0f} s")
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
        if pods := still_ending(ctx, ctx.kube.list(k8s.PODS, namespace, labels=labels)):
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
    # In every namespace: what others run there goes with the pool.
    others = [
        f"{pod['metadata'].get('namespace', '')}/{pod['metadata']['name']}"
        for node in sorted(nodes)
        for pod in ctx.kube.list(k8s.PODS, fields=f"spec.nodeName={node}")
        if not any(o.get("kind") == "DaemonSet" for o in pod["metadata"].get("ownerReferences") or [])
        and not has_ended(pod)
        and pod["metadata"]["uid"] not in ctx.memory.get("ending_since", {})  # the source's own, on a dead machine
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
