"""Make the TPU node pool, and tell the truth about its operation."""

from __future__ import annotations

from dataclasses import replace

from tpu_migration.clients.gke import PoolSpec
from tpu_migration.clients.kubernetes import NODES, Object
from tpu_migration.domain.accelerators import Slice
from tpu_migration.domain.phases import Phase
from tpu_migration.errors import PermanentError
from tpu_migration.names import run_hash
from tpu_migration.record import Record
from tpu_migration.stages.base import Context, Done, Outcome, Waiting
from tpu_migration.stages.objects import target_slice

_POLL_S = 3.0


def step(ctx: Context) -> Outcome:
    """Observe the pool and its operation; create what is missing; wait until its nodes can take pods."""
    record = ctx.expect(Phase.PLANNED)
    if record is None:
        return Done({"pool": ctx.names.pool})
    wanted = target_slice(ctx.plan.target)
    pool = ctx.pools.get(ctx.names.pool)
    if record.operation:
        operation = ctx.pools.operation(record.operation)
        if operation.error:
            raise PermanentError(
                f"node pool {ctx.names.pool}: {operation.error}; try another zone (`tpu_zone`), another kind of "
                "capacity (`capacity`), or ask for a reservation"
            )
    if pool is None:
        return _create(ctx, record, wanted)
    if pool.machine_type != wanted.machine_type:
        raise PermanentError(
            f"node pool {pool.name} exists with machine type {pool.machine_type}, not {wanted.machine_type}: "
            "delete it or name another"
        )
    if pool.status in ("ERROR", "RUNNING_WITH_ERROR", "STOPPING"):
        raise PermanentError(f"node pool {pool.name} is {pool.status}: {pool.message or 'GKE gives no reason'}")
    if pool.status != "RUNNING":
        return Waiting(_POLL_S, f"node pool {pool.name} is {pool.status.lower()}")
    return _wait_for_nodes(ctx, wanted)


def _create(ctx: Context, record: Record, wanted: Slice) -> Outcome:
    name = ctx.names.pool
    if running := ctx.pools.running_operations(name):
        # The answer to an earlier create was lost; the pool is on its way all the same.
        ctx.update(lambda r: replace(r, operation=running[0].name))
        return Waiting(_POLL_S, f"node pool {name}: {running[0].kind} is under way")
    if record.operation:
        raise PermanentError(
            f"node pool {name} is gone though its creation ended well: somebody deleted it; start a new run"
        )
    ctx.update(lambda r: replace(r, intent=f"create node pool {name}"))
    plan = ctx.plan
    zone = plan.tpu_zone or (plan.location if plan.location.count("-") == 2 else f"{plan.location}-a")
    spec = PoolSpec(
        name=name,
        machine_type=wanted.machine_type,
        node_count=plan.target_replicas,
        zone=zone,
        labels={"tpu-migration-run": run_hash(ctx.run_id), "tpu-migration-workload": plan.workload},
        spot=plan.capacity == "spot",
        reservation=plan.reservation if plan.capacity == "reservation" else "",
    )
    operation = ctx.pools.create(spec)
    ctx.update(lambda r: replace(r, operation=operation, intent=""))
    return Waiting(_POLL_S, f"node pool {name} asked for: {spec.node_count} x {spec.machine_type} in {zone}")


def _wait_for_nodes(ctx: Context, wanted: Slice) -> Outcome:
    name = ctx.names.pool
    nodes = ctx.kube.list(NODES, labels=f"cloud.google.com/gke-nodepool={name}")
    ready = [each for each in nodes if _can_serve(each, wanted)]
    if len(ready) < ctx.plan.target_replicas:
        missing = [_what_is_missing(each, wanted) for each in nodes if each not in ready]
        detail = f" ({'; '.join(missing)})" if missing else ""
        return Waiting(_POLL_S, f"{len(ready)} of {ctx.plan.target_replicas} TPU nodes are ready{detail}")
    ctx.update(lambda r: replace(r.moved_to(Phase.PROVISIONED), operation="", intent=""))
    return Done({"pool": name, "nodes": sorted(each["metadata"]["name"] for each in ready)})


def _can_serve(node: Object, wanted: Slice) -> bool:
    return not _what_is_missing(node, wanted)


def _what_is_missing(node: Object, wanted: Slice) -> str:
    name, status = node["metadata"]["name"], node.get("status") or {}
    conditions = {each["type"]: each["status"] for each in status.get("conditions") or []}
    if conditions.get("Ready") != "True":
        return f"{name} is not Ready"
    offered = int((status.get("allocatable") or {}).get(wanted.resource, "0"))
    if offered < wanted.chips:
        return f"{name} offers {offered} {wanted.resource}, not {wanted.chips}: its device plugin is not up"
    return ""
