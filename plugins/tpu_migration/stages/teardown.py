"""End a run: do nothing when the migration stands, else bring users home and release the TPU.

Order: route, verify, scale, delete. Nothing that blocks it depends on the candidate's health.
It decides from the record in the cluster, never from the run's state: marking tasks or runs
also calls it.
"""

from __future__ import annotations

from dataclasses import replace

from tpu_migration.clients.gke import CALL_TIMEOUT_S
from tpu_migration.clients.kubernetes import HTTP_ROUTES
from tpu_migration.domain.phases import AFTER_COMMIT, ENDED, Phase
from tpu_migration.domain.routing import epoch_of
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.record import Record
from tpu_migration.restore import Restored, observed_percent, observed_safe_route, restore
from tpu_migration.snapshot import Snapshots
from tpu_migration.stages.base import Context, Done, Failed, Outcome, Waiting
from tpu_migration.stages.cleanup import remove_scaffolding, remove_target
from tpu_migration.stages.observe import look
from tpu_migration.stages.pin import unpin_source
from tpu_migration.stages.shift import traffic_has_left_target

_GREEN = frozenset({Phase.MIGRATED, Phase.PROVEN, Phase.REJECTED})
_VERIFY_S = 60.0
_GATEWAY_FOLLOWS_S = 60.0  # GKE: 8 s for weights, up to 36 s with endpoints, 60 s for a backend
_LATE_CREATE_S = 2 * CALL_TIMEOUT_S + 5.0
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
    if observed_percent(ctx.kube, record):
        return _bring_the_rest_home(ctx, record)
    if record.fallback and record.fallback.observed is None:
        return _verify(ctx, record)
    return _release(ctx, record, Phase.FALLEN_BACK)


def _without_record(ctx: Context) -> Outcome:
    """Tell a run that never began from one whose record somebody deleted: that one's users go home."""
    snapshots = Snapshots(ctx.kube, ctx.plan.namespace, ctx.plan.workload)
    snapshot = snapshots.newest() if snapshots.newest_is_of(ctx.run_id) else None
    route = ctx.kube.get(HTTP_ROUTES, snapshot[1].route, ctx.plan.namespace) if snapshot else None
    if snapshot is None or (route is not None and not epoch_of(route, ctx.plan.workload)):
        return Failed("this run moved nobody: see the failed stage")
    reason = f"the record of {ctx.plan.workload} was deleted in mid-run"
    _send_to_safe_route(ctx, reason)
    ctx.epoch = None  # there is no record to write into
    return Failed(
        f"{reason}; users are on the source as the snapshot has it. What it made is still there: Deployment "
        f"{ctx.names.target} and node pool {ctx.names.pool}; delete them by hand"
    )


def _restore(ctx: Context, record: Record) -> Outcome:
    done = _send_to_safe_route(ctx, why_it_failed(record))
    return Waiting(0, f"route restored at epoch {done.epoch}: {done.reason}")


def _send_to_safe_route(ctx: Context, reason: str) -> Restored:
    actor = f"the teardown of run {ctx.run_id}"
    plan = ctx.plan
    done = restore(ctx.unfenced, plan.namespace, plan.workload, actor=actor, reason=reason, clock=ctx.clock)
    ctx.epoch = done.epoch
    return done


def why_it_failed(record: Record) -> str:
    """Return the first failed stage's reason, in its own words."""
    failed = [each for each in record.stages if each.state == "failed"]
    if failed:
        return failed[0].detail
    return f"the run ended in phase {record.phase} without a failed stage: it was stopped by a person, or timed out"


def _route_is_restored(ctx: Context, record: Record) -> bool:
    route = ctx.kube.get(HTTP_ROUTES, record.source.route, ctx.plan.namespace)
    return route is not None and epoch_of(route, record.workload) == record.epoch


def _bring_the_rest_home(ctx: Context, record: Record) -> Outcome:
    """Restore once more as soon as the source serves again: it did not when users were last sent somewhere."""
    if observed_safe_route(ctx.kube, record).target_percent:
        return Waiting(2.0, "users are on the target, because the source has no ready endpoint; waiting for one")
    ctx.memory.pop("verify_since", None)
    return _restore(ctx, record)


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
    if (waiting := _gateway_may_still_follow(ctx, record) or _streams_still_run(ctx, record)) is not None:
        return waiting
    unpin_source(ctx, record)
    remove_scaffolding(ctx)
    if not remove_target(ctx):
        return Waiting(2.0, "the TPU pods are ending")
    if (waiting := _pool_is_there(ctx, record)) is not None:
        return waiting
    ended = ctx.update(lambda r: replace(r.moved_to(end), intent="", operation=""))
    return _end(ended)


def _pool_is_there(ctx: Context, record: Record) -> Waiting | None:
    """Cancel, read, delete; None once the pool is gone and nothing can bring it back."""
    if record.operation:
        _cancel(ctx, record.operation)
        ctx.update(lambda r: replace(r, operation=""))
        return Waiting(2.0, f"cancelling {record.operation}: a pool that comes late must not stay")
    pool = ctx.pools.get(record.pool)
    running = ctx.pools.running_operations(record.pool)
    if pool is not None and pool.status != "STOPPING" and not running:
        ctx.pools.delete(record.pool)
    if pool is not None or running:
        ctx.memory.pop("pool_gone_since", None)
        return Waiting(3.0, f"node pool {record.pool} is being deleted")
    gone_s = ctx.clock.monotonic() - ctx.memory.setdefault("pool_gone_since", ctx.clock.monotonic())
    if record.intent.startswith("create node pool") and gone_s < _LATE_CREATE_S:
        return Waiting(3.0, f"seeing that no late answer still makes node pool {record.pool}")
    return None


def _cancel(ctx: Context, operation: str) -> None:
    """Ask for an end; one that is over already, or forgotten, is none to wait for."""
    try:
        if not ctx.pools.operation(operation).done:
            ctx.pools.cancel(operation)
    except PermanentError as error:
        ctx.log("going on: %s", error)


def _gateway_may_still_follow(ctx: Context, record: Record) -> Waiting | None:
    """Hold what the Gateway may still send users to, for as long as it takes at most to follow a route."""
    if not record.shift.percent or record.fallback is None:
        return None
    left = record.fallback.route_written + _GATEWAY_FOLLOWS_S - ctx.clock.now()
    return Waiting(min(left, 2.0), f"the Gateway may take {left:.0f} s more to follow everywhere") if left > 0 else None


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
    done = _send_to_safe_route(ctx, why_it_failed(record))
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
