"""Go back to GPUs from wherever a migration stands: users first, then the TPUs are released.

Before the commit that is a restore. After it the source may be scaled down or gone: it is made whole again and seen
to serve, by each replica and through the Gateway, and proven where the caller wants that, and only then does the record
say that users belong there. A target that serves nobody any more is waited for by nobody: the first replica of the
source that answers gets its users.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Object
from tpu_migration.domain.phases import AFTER_COMMIT, ENDED, Phase
from tpu_migration.errors import PermanentError
from tpu_migration.names import SOURCE_ARM
from tpu_migration.record import Record
from tpu_migration.snapshot import Snapshots
from tpu_migration.stages import rescue
from tpu_migration.stages.base import Context, Done, Outcome, Stage, Waiting
from tpu_migration.stages.cleanup import remove_jobs
from tpu_migration.stages.deploy import apply_probe_route, prober
from tpu_migration.stages.left_behind import end_what_was_left_behind, in_its_name, send_home
from tpu_migration.stages.pin import pin_source
from tpu_migration.stages.probes import prober_stats
from tpu_migration.stages.stack import Stack, machines, serving

_BUDGET_S = 3 * 3600.0
# A pod that answers is not yet one that the Gateway sends users to: on GKE a group of endpoints that was empty takes
# half a minute to be programmed, and as long to pass its health checks. Longer is a prober that is not to be had.
_GATEWAY_PATIENCE_S = 180.0
_ACTOR = "a person at a terminal"
_REASON = "asked for by deploy_all --accelerator gpu"
CLOSED = ENDED - {Phase.HELD, Phase.MIGRATED}  # users are on the source, and nothing of the target is left


def way_back(stack: Stack) -> Stage:
    """Return the stage; `stack` says on which machines a source comes back whose node pools are gone.

    It works in the name of the run that it ends, with that run's lease.
    """
    return Stage("way_back", lambda ctx: step(ctx, stack), lambda plan: _BUDGET_S, takes_lease=False)


def step(
    ctx: Context, stack: Stack, actor: str = _ACTOR, reason: str = _REASON, *, is_proven_first: bool = False
) -> Outcome:
    """Bring users home and release the target; a run that lives is never disturbed."""
    record = ctx.records.read()
    if record is None or record.phase in CLOSED:
        return Done()
    context = in_its_name(ctx, record)
    if isinstance(context, Waiting):
        return context
    context.epoch = record.epoch
    if record.phase in AFTER_COMMIT:
        alive = rescue.target_serves(context, record)
        waiting = _make_source_whole(context, record, stack, record.source.replicas if alive else 1)
        if waiting is None and alive:  # else each moment there is a user without an answer
            waiting = _answered_through_gateway(context, record)
        if waiting is not None:
            return waiting
        proof: dict[str, Any] = {}
        if is_proven_first and alive:
            verdict = rescue.prove(context, record, ctx.run_id)
            if isinstance(verdict, Waiting):
                return verdict
            proof = {"rescue": verdict}
        remove_jobs(context)  # also of a proof that the target's end cut short: users come to where its load is
        context.update(lambda r: replace(r.taken_back(), notes={**r.notes, **proof}))
        return send_home(ctx, record, actor, reason)
    if record.phase is not Phase.FALLING_BACK:
        return send_home(ctx, record, actor, reason)
    return end_what_was_left_behind(ctx, record)


def _make_source_whole(ctx: Context, record: Record, stack: Stack, wanted: int) -> Waiting | None:
    """Put the source back as the snapshot has it; None once so many of its replicas serve."""
    source, namespace = record.source, record.namespace
    if "whole" not in ctx.memory:
        snapshot = Snapshots(ctx.kube, namespace, record.workload).newest()
        if snapshot is None:
            raise PermanentError(
                f"the snapshot of {record.workload}'s source is gone: deploy GPUs by hand, and set the weights of "
                f"HTTPRoute {source.route} when they serve; nothing was changed"
            )
        objects, _ = snapshot
        if (waiting := _nodes(ctx, record, objects, stack)) is not None:
            return waiting
        for obj in objects:
            found = ctx.kube.get(k8s.resource_of(obj), obj["metadata"]["name"], namespace)
            if found is None and obj["kind"] != k8s.HTTP_ROUTES.kind:  # a restore makes the route again
                ctx.kube.create(obj)
        live = ctx.kube.get(k8s.DEPLOYMENTS, source.deployment, namespace)
        if live is None:
            raise PermanentError(f"Deployment {source.deployment} is gone, and the snapshot has none: make it by hand")
        if live["spec"].get("replicas", 1) < source.replicas:
            ctx.update(lambda r: replace(r, intent=f"scale {source.deployment} to {source.replicas}"))
            ctx.kube.scale(source.deployment, namespace, source.replicas)
        pin_source(ctx, record)
        if (route := ctx.kube.get(k8s.HTTP_ROUTES, source.route, namespace)) is not None:
            apply_probe_route(ctx, record, route)
            ctx.kube.apply(prober(ctx, record))
        ctx.memory["whole"] = True
    live = ctx.kube.get(k8s.DEPLOYMENTS, source.deployment, namespace)
    if live is None:
        raise PermanentError(f"Deployment {source.deployment} is gone again: somebody deletes it")
    served = serving(ctx, live, source.service, source.port, wanted)
    if isinstance(served, Waiting):
        return served
    if lost := set(source.served_names) - set(served):
        raise PermanentError(
            f"Deployment {source.deployment} serves {served}: clients that ask for {sorted(lost)} would get 404; "
            "mend its arguments, then call again; users stay where they are"
        )
    return None


def _answered_through_gateway(ctx: Context, record: Record) -> Waiting | None:
    """Return None once the Gateway's way to the source is answered, or was waited for long enough."""
    stats = prober_stats(ctx)
    way = stats.arms.get(SOURCE_ARM) if stats else None
    if way and way.steady:
        return None
    said = (way.last_error or "none yet") if way else "no prober yet"
    now = ctx.clock.monotonic()
    waited = now - ctx.memory.setdefault("gateway_since", now)
    if waited > _GATEWAY_PATIENCE_S:
        ctx.log(
            "no steady answers of the source through the Gateway in %.0f s (%s); going on, for its pods answer",
            waited,
            said,
        )
        return None
    return Waiting(1.0, f"waiting for steady answers of the source through the Gateway ({said})")


def _nodes(ctx: Context, record: Record, objects: list[Object], stack: Stack) -> Waiting | None:
    """Make machines for the source where its own node pools are gone."""
    if any(ctx.pools.get(pool) is not None for pool in record.source.node_pools):
        return None
    _refuse_other_machines(ctx, record, objects, stack)
    return machines(ctx, stack, replace(stack.pool, node_count=record.source.replicas))


def _refuse_other_machines(ctx: Context, record: Record, objects: list[Object], stack: Stack) -> None:
    """Refuse a node pool on which no replica of the source would ever start."""
    live = ctx.kube.get(k8s.DEPLOYMENTS, record.source.deployment, record.namespace)
    saved = [each for each in objects if each["kind"] == k8s.DEPLOYMENTS.kind]
    pod = (live or saved[0])["spec"]["template"]["spec"] if live or saved else {}
    selector = pod.get("nodeSelector") or {}
    gpus = stack.pool.gpus.kind if stack.pool.gpus else ""
    wanted = selector.get("cloud.google.com/gke-accelerator", gpus)
    chips = max(
        [int(((each.get("resources") or {}).get("limits") or {}).get(stack.resource, 0)) for each in pod["containers"]]
        if pod
        else [0]
    )
    if wanted == gpus and chips <= stack.chips and "cloud.google.com/gke-nodepool" not in selector:
        return
    pinned = selector.get("cloud.google.com/gke-nodepool")
    raise PermanentError(
        f"the replicas of {record.source.deployment} want {chips} {wanted} each"
        f"{f' in node pool {pinned}' if pinned else ''}, and this profile's machines ({stack.pool.machine_type}) have "
        f"{stack.chips} {gpus}: give another --profile, or make node pool {', '.join(record.source.node_pools)} again, "
        "then repeat the command; users stay where they are"
    )
