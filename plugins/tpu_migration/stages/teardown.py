"""End a run: do nothing when the migration stands, else bring users home and release the TPU.

Order: route, verify, scale, delete. Nothing that blocks it depends on the candidate's health.
It decides from the record in the cluster, never from the run's state: marking tasks or runs
also calls it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from tpu_migration.clients.kubernetes import DEPLOYMENTS, HTTP_ROUTES
from tpu_migration.domain.phases import AFTER_COMMIT, ENDED, Phase
from tpu_migration.domain.routing import SafeRoute, epoch_of
from tpu_migration.domain.watch import Limits, failed_lately
from tpu_migration.errors import SupersededError, TransientError
from tpu_migration.names import POOL_RUN_LABEL, TARGET_ARM, run_hash
from tpu_migration.record import Record, told
from tpu_migration.restore import Restored, observed_percent, observed_safe_route, restore, stays_of
from tpu_migration.snapshot import Snapshots
from tpu_migration.stages.approval import SHIFT
from tpu_migration.stages.base import Context, Done, Failed, Outcome, Waiting
from tpu_migration.stages.breach import traffic_has_left_target
from tpu_migration.stages.cleanup import end_target, leave_route, remove_scaffolding, remove_target
from tpu_migration.stages.diagnostics import diagnostics_name, save_diagnostics
from tpu_migration.stages.observe import look
from tpu_migration.stages.pin import pin_source, unpin_source
from tpu_migration.stages.pool_removal import removed
from tpu_migration.stages.probes import prober_stats

_GREEN = frozenset({Phase.MIGRATED, Phase.PROVEN, Phase.REJECTED})
_VERIFY_S = 60.0
_PROBES_FAILED, _COUNTS_KEPT = 2, 64
_EVERYBODY = 100  # per cent: before the commit, only where the source has no ready endpoint and the target has
_GATEWAY_FOLLOWS_S = 60.0  # GKE: 8 s for weights, up to 36 s with endpoints, 60 s for a backend
_LONGEST_PAUSE_S = 15.0
_DRAIN_S = 600.0  # the longest stream that is waited for before the TPU pods are told to end


def step(ctx: Context) -> Outcome:
    """Bring this run to a safe end and say in `Failed` what went wrong, in `Done` that it stands."""
    try:
        return _step(ctx)
    except SupersededError as error:
        # A restore, by whomever, raises the epoch. Whose the record is now, the next look tells.
        ctx.epoch = None
        return Waiting(1.0, f"looking again: {error}")


def _step(ctx: Context) -> Outcome:
    record = ctx.records.read()
    if record is None:
        return _without_record(ctx)
    if record.run_id != ctx.run_id:
        if ctx.memory.get("had_it"):
            return Failed(
                f"run {record.run_id} has {record.workload} now, and ended what this run had left", "superseded"
            )
        made_nothing = f"this run made nothing (run {record.run_id} has {record.workload}): see the failed stage"
        return Failed(made_nothing, is_told=True)
    ctx.memory["had_it"] = True
    ctx.epoch = record.epoch
    if record.phase in ENDED:
        return _end(ctx, record)
    if record.phase in AFTER_COMMIT:
        return _after_commit(ctx, record)
    if record.phase is Phase.GATED and ctx.plan.stop_after == "gate":
        return _release(ctx, record, Phase.PROVEN)
    if record.phase is Phase.GATED and record.said_no(SHIFT):
        return _release(ctx, record, Phase.REJECTED)
    if record.phase is not Phase.FALLING_BACK or not _route_is_restored(ctx, record):
        return _restore(ctx, record)
    percent, safe = observed_percent(ctx.kube, record), observed_safe_route(ctx.kube, record)
    if percent or safe.target_percent == _EVERYBODY:
        return _follow_the_source(ctx, record, percent, safe)
    if record.fallback and record.fallback.observed is None:
        return _verify(ctx, record)
    return _release(ctx, record, _home(record))


def _without_record(ctx: Context) -> Outcome:
    """Tell a run that never began from one whose record somebody deleted: that one's users go home."""
    snapshots = Snapshots(ctx.kube, ctx.plan.namespace, ctx.plan.workload)
    snapshot = snapshots.newest() if snapshots.newest_is_of(ctx.run_id) else None
    route = ctx.kube.get(HTTP_ROUTES, snapshot[1].route, ctx.plan.namespace) if snapshot else None
    if snapshot is None or (route is not None and not epoch_of(route, ctx.plan.workload)):
        return Failed("this run moved nobody: see the failed stage", is_told=True)
    reason = f"the record of {ctx.plan.workload} was deleted in mid-run"
    _send_to_safe_route(ctx, reason)
    ctx.epoch = None  # there is no record to write into
    return Failed(
        f"{reason}; users are on the source as the snapshot has it. What it made is still there: Deployment "
        f"{ctx.names.target} and the node pool labelled {POOL_RUN_LABEL}={run_hash(ctx.run_id)}; delete them by hand"
    )


def _restore(ctx: Context, record: Record, stays: int = 0) -> Outcome:
    done = _send_to_safe_route(ctx, why_it_failed(record), stays)
    ctx.epoch = None  # others may restore in the same moment; the next look tells which epoch it is
    again: int = ctx.memory.setdefault("restores", 0)
    ctx.memory["restores"] = again + 1
    pause_s = min(_LONGEST_PAUSE_S, again)  # a record that does not follow must not be asked without a breath
    return Waiting(pause_s, f"route restored at epoch {done.epoch}: {done.reason}")


def _send_to_safe_route(ctx: Context, reason: str, stays: int = 0) -> Restored:
    actor = f"the teardown of run {ctx.run_id}"
    plan = ctx.plan
    done = restore(
        ctx.unfenced, plan.namespace, plan.workload, actor=actor, reason=reason, clock=ctx.clock, stays=stays
    )
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


def _follow_the_source(ctx: Context, record: Record, percent: int, safe: SafeRoute) -> Outcome:
    """Restore once more when the source carries more than before, or nothing at all while the target is there."""
    stays = stays_of(record)
    if stays and safe.target_percent < _EVERYBODY and _target_fails(ctx):
        stays = 0
    elif safe.target_percent == percent or percent < safe.target_percent < _EVERYBODY:
        _make_source_whole(ctx, record)
        return Waiting(2.0, safe.reason)
    ctx.memory.pop("verify_since", None)
    return _restore(ctx, record, stays)


def _make_source_whole(ctx: Context, record: Record) -> None:
    """Ask once more for what the source is to have: without it nobody would ever come home."""
    if ctx.memory.get("source_asked"):
        return
    deployment = ctx.kube.get(DEPLOYMENTS, record.source.deployment, record.namespace)
    if deployment is None:
        return  # whoever deleted it has to bring it back; users are where somebody serves
    pin_source(ctx, record)
    if deployment["spec"].get("replicas", 1) < record.source.replicas:
        ctx.kube.scale(record.source.deployment, record.namespace, record.source.replicas)
    ctx.memory["source_asked"] = True


def _target_fails(ctx: Context) -> bool:
    """Tell whether users who stayed are answered no more, as far as the prober tells: too few GPUs are better then."""
    stats = prober_stats(ctx)
    arm = stats.arms.get(TARGET_ARM) if stats else None
    if arm is None:
        return False
    counts: deque[tuple[float, int]] = ctx.memory.setdefault("target_failed", deque(maxlen=_COUNTS_KEPT))
    counts.appendleft((ctx.clock.monotonic(), arm.failed))
    return arm.consecutive_failures >= _PROBES_FAILED or failed_lately(counts) >= Limits.failed_probes


def _verify(ctx: Context, record: Record) -> Outcome:
    """See the traffic leave, for a while: a target or a prober that is silent must not block the rest."""
    since = ctx.memory.setdefault("verify_since", ctx.clock.monotonic())
    if not record.shift.percent or traffic_has_left_target(ctx, record):
        now = ctx.clock.now()
        ctx.update(lambda r: replace(r, fallback=replace(r.fallback, observed=now)) if r.fallback else r)
        return Waiting(0, "the traffic has left the target")
    if ctx.clock.monotonic() - since > _VERIFY_S:
        ctx.log("the traffic was not seen to leave the target within %d s; going on", _VERIFY_S)
        return _release(ctx, record, _home(record))
    return Waiting(1.0, "watching the traffic leave the target")


def _home(record: Record) -> Phase:
    """Return the end of a run whose users are home: people's no is not a fall-back, whoever carried it out."""
    return Phase.REJECTED if record.said_no(SHIFT) else Phase.FALLEN_BACK


def _release(ctx: Context, record: Record, end: Phase) -> Outcome:
    """Let streams end, then remove the scaffolding, the target and its pool, unless they are wanted for a diagnosis."""
    if (waiting := _gateway_may_still_follow(ctx, record) or _streams_still_run(ctx, record)) is not None:
        return waiting
    unpin_source(ctx, record)
    remove_scaffolding(ctx)
    if end is Phase.FALLEN_BACK:
        save_diagnostics(ctx, record)
        if ctx.plan.on_fallback == "keep":
            leave_route(ctx, record)
            return _end(ctx, ctx.update(lambda r: replace(r.moved_to(Phase.HELD), intent="")))
    if not end_target(ctx):
        return Waiting(2.0, "the TPU pods are ending")
    leave_route(ctx, record)
    remove_target(ctx)
    if (waiting := removed(ctx, record)) is not None:
        return waiting
    now = ctx.clock.now()
    ended = ctx.update(lambda r: replace(_over(r, now).moved_to(end), intent="", operation=""))
    return _end(ctx, ended)


def _over(record: Record, now: float) -> Record:
    """Note that nothing is left of a last attempt at a node pool that came to nothing."""
    return record.with_attempt(ended=now) if record.attempt and not record.attempt.ended else record


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
    if flight is None:  # one that is silent for a moment may still stream; for longer, it serves nobody
        silent = ctx.memory.setdefault("silent_since", ctx.clock.monotonic())
        if ctx.clock.monotonic() - silent > Limits.missing_grace_s:
            return None
        return Waiting(1.0, "the target does not say whether streams still run on it")
    ctx.memory.pop("silent_since", None)
    return Waiting(1.0, f"{flight:.0f} streams still end on the target") if flight else None


def _after_commit(ctx: Context, record: Record) -> Outcome:
    """Keep users on the safe route of the phase; the TPU serves them and is not released."""
    done = _send_to_safe_route(ctx, why_it_failed(record))
    return Failed(
        f"the migration is {record.phase} and stopped there: {why_it_failed(record)}. Users are on the safe route "
        f"({done.reason}); the TPU stays. Mend the cause and clear the task `decommission`",
        "permanent",
    )


def _end(ctx: Context, record: Record) -> Outcome:
    if record.phase in _GREEN:
        asked = {each.what: told(each) for each in record.approvals}
        return Done({"phase": str(record.phase), **asked})
    reason = record.fallback.reason if record.fallback else why_it_failed(record)
    saved = f"; what the TPU side said last is in ConfigMap {diagnostics_name(record)}" if record.fallback else ""
    if record.phase is Phase.HELD and record.fallback is None:
        sentence = (record.verdict or {}).get("sentence", "")
        why = f"inconclusive: {sentence}; no traffic moved, the TPU is kept for a closer look"
        return Failed(why, "inconclusive", is_told=True)
    home = f"users are on {record.source.accelerator} as before"
    if record.phase is Phase.HELD:
        return Failed(
            f"{home}. The TPU is kept, as the plan says (on_fallback=keep): Deployment {record.target} in node pool "
            f"{record.pool} costs money until `tpu-migration restore {record.workload}` and the next run, or "
            f"`tpu-migration deploy --accelerator gpu`, end it. Why: {reason}{saved}",
            "breach",
            is_told=True,
        )
    return Failed(f"{home}, the TPU is released. Why: {reason}{saved}", "breach", is_told=True)
