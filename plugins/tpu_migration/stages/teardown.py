"""End a run: do nothing when the migration stands, else bring users home and release the TPU.

Order: route, verify, scale, delete. Nothing that blocks it depends on the candidate's health.
It decides from the record in the cluster, never from the run's state: marking tasks or runs
also calls it.
"""

from __future__ import annotations

from dataclasses import replace

from tpu_migration.clients.kubernetes import HTTP_ROUTES
from tpu_migration.domain.phases import AFTER_COMMIT, ENDED, Phase
from tpu_migration.domain.routing import epoch_of
from tpu_migration.errors import TransientError
from tpu_migration.record import Record, Snapshots
from tpu_migration.restore import restore
from tpu_migration.stages.base import Context, Done, Failed, Outcome, Waiting
from tpu_migration.stages.cleanup import remove_scaffolding, remove_target
from tpu_migration.stages.observe import look
from tpu_migration.stages.pin import unpin_source
from tpu_migration.stages.shift import traffic_has_left_target

_GREEN = frozenset({Phase.MIGRATED, Phase.PROVEN, Phase.REJECTED})
_VERIFY_S = 60.0
_DRAIN_S = 600.0  # the longest stream that is waited for before the TPU pods are told to end


def step(ctx: Context) -> Outcome:
    """Bring this run to a safe end and say in `Failed` what went wrong, in `Done` that it stands."""
    record = ctx.records.read()
    if record is None:
        return _without_record(ctx)
    if record.run_id != ctx.run_id:
        return Failed(f"this run made nothing (run {record.run_id} has {record.workload}): see the failed stage")
    ctx.epoch = record.epoch
    if record.phase in ENDED:
        return _end(record)
    if record.phase in AFTER_COMMIT:
        return _after_commit(ctx, record)
    if record.phase is Phase.GATED and ctx.plan.stop_after == "gate":
        return _release(ctx, record, Phase.PROVEN)
    if record.phase is not Phase.FALLING_BACK or not _route_is_restored(ctx, record):
        return _restore(ctx, record)
    if record.fallback and record.fallback.observed is None:
        return _verify(ctx, record)
    return _release(ctx, record, Phase.FALLEN_BACK)


def _without_record(ctx: Context) -> Outcome:
    """Tell a run that never began from one whose record somebody deleted: that one's users go home."""
    if not Snapshots(ctx.kube, ctx.plan.namespace, ctx.plan.workload).newest_is_of(ctx.run_id):
        return Failed("this run made nothing: see the failed stage")
    reason = f"the record of {ctx.plan.workload} was deleted in mid-run"
    restore(
        ctx.unfenced,
        ctx.plan.namespace,
        ctx.plan.workload,
        actor=f"the teardown of run {ctx.run_id}",
        reason=reason,
        clock=ctx.clock,
    )
    return Failed(
        f"{reason}; users are on the source as the snapshot has it. What it made is still there: Deployment "
        f"{ctx.names.target} and node pool {ctx.names.pool}; delete them by hand"
    )


def _restore(ctx: Context, record: Record) -> Outcome:
    done = restore(
        ctx.unfenced,
        ctx.plan.namespace,
        ctx.plan.workload,
        actor=f"the teardown of run {ctx.run_id}",
        reason=why_it_failed(record),
        clock=ctx.clock,
    )
    ctx.epoch = done.epoch
    return Waiting(0, f"route restored at epoch {done.epoch}: {done.reason}")


def why_it_failed(record: Record) -> str:
    """Return the first failed stage's reason, in its own words."""
    failed = [each for each in record.stages if each.state == "failed"]
    if failed:
        return failed[0].detail
    return f"the run ended in phase {record.phase} without a failed stage: it was stopped by a person, or timed out"


def _route_is_restored(ctx: Context, record: Record) -> bool:
    route = ctx.kube.get(HTTP_ROUTES, record.source.route, ctx.plan.namespace)
    return route is not None and epoch_of(route) == record.epoch


def _verify(ctx: Context, record: Record) -> Outcome:
    """See the traffic leave, for a while: a target or a prober that is silent must not block the rest."""
    since = ctx.memory.setdefault("verify_since", ctx.clock.monotonic())
    if not record.shift.percent or traffic_has_left_target(ctx, record):
        now = ctx.clock.now()
        ctx.update(lambda r: replace(r, fallback=replace(r.fallback, observed=now)) if r.fallback else r)
        return Waiting(0, "the traffic has left the target")
    if ctx.clock.monotonic() - since > _VERIFY_S:
        ctx.log("the traffic was not seen to leave the target within %d s; going on", _VERIFY_S)
        return _release(ctx, record, Phase.FALLEN_BACK)
    return Waiting(1.0, "watching the traffic leave the target")


def _release(ctx: Context, record: Record, end: Phase) -> Outcome:
    """Let streams end, then remove the target, its pool and the scaffolding."""
    if (waiting := _streams_still_run(ctx, record)) is not None:
        return waiting
    unpin_source(ctx, record)
    remove_scaffolding(ctx)
    if not remove_target(ctx):
        return Waiting(2.0, "the TPU pods are ending")
    if record.operation:
        operation = ctx.pools.operation(record.operation)
        if not operation.done:
            ctx.pools.cancel(record.operation)
            ctx.update(lambda r: replace(r, operation=""))
            return Waiting(2.0, f"cancelling {record.operation}: a pool that comes late must not stay")
    pool = ctx.pools.get(record.pool)
    running = ctx.pools.running_operations(record.pool)
    if pool is not None and pool.status != "STOPPING" and not running:
        ctx.pools.delete(record.pool)
    if pool is not None or running:
        return Waiting(3.0, f"node pool {record.pool} is being deleted")
    ended = ctx.update(lambda r: replace(r.moved_to(end), intent="", operation=""))
    return _end(ended)


def _streams_still_run(ctx: Context, record: Record) -> Waiting | None:
    """Wait for the target's last streams, as long as it says that it has some."""
    if not record.shift.percent:
        return None
    since = ctx.memory.setdefault("drain_since", ctx.clock.monotonic())
    if ctx.clock.monotonic() - since > _DRAIN_S:
        return None
    try:
        flight = look(ctx, record).target.in_flight
    except TransientError:
        flight = None
    if not flight:  # nothing runs, or nobody answers: what does not answer serves nobody
        return None
    return Waiting(1.0, f"{flight:.0f} streams still end on the target")


def _after_commit(ctx: Context, record: Record) -> Outcome:
    """Keep users on the safe route of the phase; the TPU serves them and is not released."""
    done = restore(
        ctx.unfenced,
        ctx.plan.namespace,
        ctx.plan.workload,
        actor=f"the teardown of run {ctx.run_id}",
        reason=why_it_failed(record),
        clock=ctx.clock,
    )
    ctx.epoch = done.epoch
    return Failed(
        f"the migration is {record.phase} and stopped there: {why_it_failed(record)}. Users are on the safe route "
        f"({done.reason}); the TPU stays. Mend the cause and clear the task `decommission`",
        "permanent",
    )


def _end(record: Record) -> Outcome:
    if record.phase in _GREEN:
        return Done({"phase": str(record.phase)})
    if record.phase is Phase.HELD:
        sentence = (record.verdict or {}).get("sentence", "")
        return Failed(f"inconclusive: {sentence}; no traffic moved, the TPU is kept for a closer look", "inconclusive")
    reason = record.fallback.reason if record.fallback else why_it_failed(record)
    return Failed(f"users are on {record.source.accelerator} as before, the TPU is released. Why: {reason}", "breach")
