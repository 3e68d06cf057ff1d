"""Give the GPUs back, but only what nobody needs any more, and what people let go."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Object
from tpu_migration.clients.vllm import Vllm
from tpu_migration.domain.node_pools import gcloud_line, made_again
from tpu_migration.domain.phases import Phase
from tpu_migration.domain.routing import epoch_of, points_at, rules_of, target_percent
from tpu_migration.domain.watch import Sample, begun_between
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.record import Record, told
from tpu_migration.restore import observed_percent, observed_safe_route, restore
from tpu_migration.stages.approval import DECOMMISSION, SHIFT, word_on
from tpu_migration.stages.base import Context, Done, Outcome, Waiting
from tpu_migration.stages.cleanup import remove_scaffolding
from tpu_migration.stages.objects import (
    full_name,
    is_behind_a_budget,
    is_ready,
    other_routes,
    pods_of,
    running_on,
    still_ending,
)
from tpu_migration.stages.observe import look
from tpu_migration.stages.pin import unpin_source
from tpu_migration.stages.pool import POOL_LABEL
from tpu_migration.stages.probes import MAIN_ARM, prober_stats

_DRAIN_WINDOW_S = 10.0  # nothing may be in flight on the source for this long
_STRAY = 2  # our own probes and their counters are not read in the same instant
_UNSAFE_LOOKS = 2
_POLL_S = 2.0
_REPLICA_PATIENCE_S = 1800.0  # a TPU replica restarts in tens of minutes
_ANSWER_PATIENCE_S = 300.0  # with one that is ready and gives no answer: users wait for the same answers


def step(ctx: Context) -> Outcome:
    """Ask people, drain, lower the recorded capacity, scale down, see the pods gone, delete the pools."""
    if ctx.plan.stop_after == "gate":
        return Done({"skipped": "a proof of concept gives nothing up"})
    if SHIFT in ctx.plan.approvals and _was_rejected(ctx):
        return Done({"skipped": "people rejected the shift: users are where they were"})
    record = ctx.expect(Phase.COMMITTED, Phase.DECOMMISSIONING)
    if record is None:
        return Done()
    word = word_on(ctx, record, DECOMMISSION)
    if isinstance(word, Waiting):
        _keep_users_safe(ctx, record)
        return word
    release = ctx.plan.source_release if word is None or word.approved else "keep"
    if (waiting := _check_users_are_safe(ctx, record, release)) is not None:
        return waiting
    if record.phase is Phase.COMMITTED:
        return _drain(ctx, record, release)
    if release == "keep":
        why = f" ({told(word)})" if word else ""
        return _finish(ctx, record, f"kept, and scaled by its own HPA again{why}")
    return _release(ctx, record, release)


def _keep_users_safe(ctx: Context, record: Record) -> None:
    """Send users back to GPUs that still stand when the TPUs are gone for two looks; people may take days."""
    safe = observed_safe_route(ctx.kube, record)
    if observed_percent(ctx.kube, record) == safe.target_percent:
        ctx.memory["unsafe_looks"] = 0
        return
    ctx.memory["unsafe_looks"] = ctx.memory.get("unsafe_looks", 0) + 1
    if ctx.memory["unsafe_looks"] < _UNSAFE_LOOKS:
        return
    actor, reason = f"the decommission of run {ctx.run_id}", f"before anything was given up: {safe.reason}"
    done = restore(ctx.unfenced, record.namespace, record.workload, actor=actor, reason=reason, clock=ctx.clock)
    raise PermanentError(
        f"{done.reason}; users are sent there, and nothing is given up. Mend {record.target}, then clear this task: "
        "users go to it again once it serves"
    )


def _was_rejected(ctx: Context) -> bool:
    record = ctx.records.read()
    return record is not None and record.run_id == ctx.run_id and record.said_no(SHIFT)


def _check_users_are_safe(ctx: Context, record: Record, release: str) -> Waiting | None:
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
    if release != "keep" and points_at(route, source.service):
        raise PermanentError(
            f"a rule of HTTPRoute {source.route} still sends users to {source.service}: point it at {record.target} "
            "first; nothing is given up"
        )
    if others := other_routes(ctx.kube, namespace, source.service, (source.route, ctx.names.probe_route)):
        raise PermanentError(
            f"HTTPRoute {', '.join(others)} sends users to {source.service}: move them to {record.target} first; "
            "nothing is given up"
        )
    deployment = ctx.kube.get(k8s.DEPLOYMENTS, record.target, namespace)
    ready = [pod for pod in (pods_of(ctx.kube, namespace, deployment) if deployment else []) if is_ready(pod)]
    nodes = {pod["spec"].get("nodeName") for pod in ready}
    needed = ctx.plan.target_replicas
    if len(nodes) < needed:
        return _wait_for_replicas(ctx, len(nodes), needed)
    ctx.memory.pop("too_few_since", None)
    # Last of all, when the source is drained: what answered before that may not answer now.
    if release != "keep" and record.phase is Phase.DECOMMISSIONING and not ctx.memory.get("proven"):
        try:
            _check_target(ctx, record, ready)
        except TransientError as error:
            return _wait_for_answers(ctx, record, error)
        ctx.memory["proven"] = True
    return None


def _users_are_answered(ctx: Context, record: Record) -> Waiting | None:
    """Return None if the prober is answered on the users' own way: whatever the pods say, users come by that one."""
    stats = prober_stats(ctx)
    main = stats.arms.get(MAIN_ARM) if stats else None
    if main is not None and main.steady:
        ctx.memory.pop("unanswered_since", None)
        return None
    why = f" ({main.last_error})" if main and main.last_error else ""
    return _wait_for_answers(ctx, record, TransientError(f"the prober has no answers on the users' way{why}"))


def _wait_for_answers(ctx: Context, record: Record, error: TransientError) -> Waiting:
    now = ctx.clock.monotonic()
    lasting_s = now - ctx.memory.setdefault("unanswered_since", now)
    if lasting_s > _ANSWER_PATIENCE_S:
        back = next(reversed(record.way_back), "airflow dags trigger gpu_fallback")
        raise PermanentError(
            f"{error}, for {lasting_s / 60:.0f} minutes: nothing more is given up. Users wait for the same answers: "
            f"take them back to GPUs (`{back}`), or mend {record.target} and clear this task"
        ) from error
    return Waiting(_POLL_S, f"{error}; nothing more is given up before it answers")


def _wait_for_replicas(ctx: Context, found: int, needed: int) -> Waiting:
    now = ctx.clock.monotonic()
    if now - ctx.memory.setdefault("too_few_since", now) > _REPLICA_PATIENCE_S:
        raise PermanentError(
            f"{found} TPU nodes carry a ready replica, the plan's {needed} are needed before GPUs go: nothing is "
            "given up; clear this task when they are back"
        )
    return Waiting(_POLL_S, f"{found} of {needed} TPU replicas are ready: nothing is given up before all are")


def _check_target(ctx: Context, record: Record, pods: list[Object]) -> None:
    """See each TPU replica give a real answer, and that no drain of nodes takes two of them at a time."""
    vllm = Vllm(ctx.kube, ctx.plan.namespace, record.source.port)
    for pod in pods:
        name = pod["metadata"]["name"]
        if vllm.complete(name, record.source.served_names[0], "ping", 1) != 1:
            raise TransientError(f"pod {name} is ready and completes nothing")
    if ctx.plan.accept_single_replica or is_behind_a_budget(
        ctx.kube, ctx.plan.namespace, pods[0]["metadata"].get("labels") or {}
    ):
        return
    raise PermanentError(
        f"no PodDisruptionBudget covers the pods of {record.target}: an upgrade of the node pool could take all of "
        "them at once, with the GPUs gone; make one (the run had made it: somebody deleted it), and clear this task"
    )


def _drain(ctx: Context, record: Record, release: str) -> Outcome:
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
    # Before the first of it goes: afterwards nobody could say any more what there was.
    way_back = _way_back(ctx, record, release)
    ctx.update(lambda r: replace(r.moved_to(Phase.DECOMMISSIONING), way_back=way_back))
    return Waiting(0, "the source is drained")


def _way_back(ctx: Context, record: Record, release: str) -> tuple[str, ...]:
    """Return the commands that bring users back to the source after what is released now."""
    plan, commands = ctx.plan, []
    for name in record.source.node_pools if release == "delete-pool" else ():
        if (pool := ctx.pools.get(name)) is not None:
            nodes = len(ctx.kube.list(k8s.NODES, labels=f"{POOL_LABEL}={name}"))
            spec = made_again(pool, math.ceil(nodes / max(1, len(pool.zones))))
            commands.append(gcloud_line(spec, plan.project_id, plan.location, plan.cluster))
    words = ["tpu-migration", "deploy", "--accelerator", "gpu"]
    for name in ("project_id", "location", "cluster", "namespace", "workload"):
        words += [f"--{name.replace('_', '-')}", str(getattr(plan, name))]
    return (*commands, shlex.join(words))


def _release(ctx: Context, record: Record, release: str) -> Outcome:
    namespace, source = ctx.plan.namespace, record.source
    deployment = ctx.kube.get(k8s.DEPLOYMENTS, source.deployment, namespace)
    if deployment is not None:
        # Before anything is noted as given up: the source's counters say nothing of users who meet errors elsewhere.
        if deployment["spec"].get("replicas", 1) and (waiting := _users_are_answered(ctx, record)) is not None:
            return waiting
        if record.source_capacity:
            ctx.update(lambda r: replace(r, source_capacity=0, intent=f"scale {source.deployment} to 0"))
        # To 0 in one step: users left long ago, and an HPA rests while its target has 0 replicas. On any other
        # number it would work against this, or have to be changed.
        if deployment["spec"].get("replicas", 1):
            ctx.kube.scale(source.deployment, namespace, 0)
        labels = ",".join(f"{k}={v}" for k, v in deployment["spec"]["selector"]["matchLabels"].items())
        if pods := still_ending(ctx, ctx.kube.list(k8s.PODS, namespace, labels=labels)):
            return Waiting(_POLL_S, f"{len(pods)} GPU pods end with their own grace")
    if release == "scale-to-zero":
        return _finish(ctx, record, "scaled to zero, its node pools kept")
    left = [pool for pool in source.node_pools if ctx.pools.get(pool) is not None]
    if left and not ctx.memory.get("deleting"):
        if (waiting := _users_are_answered(ctx, record)) is not None:
            return waiting
        ctx.memory["deleting"] = True
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
    nodes = {each["metadata"]["name"] for each in ctx.kube.list(k8s.NODES, labels=f"{POOL_LABEL}={pool}")}
    others = [
        full_name(pod)
        for node in sorted(nodes)
        for pod in running_on(ctx.kube, node)
        if pod["metadata"]["uid"] not in ctx.memory.get("ending_since", {})  # the source's own, on a dead machine
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
    ctx.log("the way back: %s (%s)", " && ".join(record.way_back), record.source.scarcity)
    return Done({"source": what, "way_back": list(record.way_back), "mind": record.source.scarcity})
