"""Move users and keep watch, from the first weight to the commit: the keeper.

One task shifts, soaks and watches. A breach is restored within the step that sees it, before
any other work; then the traffic is watched until it has followed.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import replace

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import HTTP_ROUTES, Object
from tpu_migration.domain.phases import AFTER_COMMIT, Phase
from tpu_migration.domain.routing import epoch_of, rules_of, target_percent, with_target
from tpu_migration.domain.watch import MIN_JUDGED, Limits, Sample, Split, Watch, begun_between
from tpu_migration.errors import (
    ConflictError,
    NotHolderError,
    PermanentError,
    SupersededError,
    TransientError,
)
from tpu_migration.names import TARGET_ARM
from tpu_migration.record import Record, Shift, told
from tpu_migration.resources import policy
from tpu_migration.restore import ready_endpoints, restore, with_epoch
from tpu_migration.stages.approval import SHIFT, word_on
from tpu_migration.stages.base import Context, Done, Failed, Outcome, Waiting
from tpu_migration.stages.heartbeat import guard_heartbeat
from tpu_migration.stages.objects import last_writer, template_hash
from tpu_migration.stages.observe import look
from tpu_migration.stages.pin import pin_source
from tpu_migration.stages.probes import MAIN_ARM, prober_stats

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_COMPARE_EVERY_S = 10.0
_NOTE_WATCHED_S = 10.0
_GAP_S = 30.0
_FOLLOW_BUDGET_S = 120.0  # GKE takes about 8 s for weights and up to 60 s for a new backend
_FOLLOW_RESTORE_S = 60.0
_WAY_PATIENCE_S = 300.0  # before the first weight, with a way that gives no answer
_LOOK_AFTER_RESTORE_S, _LOOKS_KEPT = 0.1, 64
_QUIET_S, _LEAST_QUIET_S = 1.0, 0.25  # without a request on the target, until the traffic counts as gone
_QUIET_REQUESTS = 5  # of a Poisson stream that goes on, none is seen in their time with less than 1 %: exp(-5)


def step(ctx: Context) -> Outcome:
    """Take one look; restore on a breach, else hold, or give the target its next share."""
    if ctx.plan.stop_after == "gate":
        return Done({"skipped": "a proof of concept moves nobody"})
    if "restored" in ctx.memory:
        return _watch_restore(ctx)
    if "breach" in ctx.memory:
        if ctx.memory.get("was_blind"):
            _yield_to_a_successor(ctx)
        return send_home(ctx, ctx.memory["breach"])
    try:
        return _keep(ctx)
    except (SupersededError, NotHolderError):
        raise  # another worker has taken over
    except TransientError as error:
        if ctx.memory.get("users_may_be_on_target"):
            return _blind(ctx, error)
        raise
    except Exception as error:
        # Whatever stops the keeper leaves users unwatched: that alone is a breach.
        if ctx.memory.get("users_may_be_on_target"):
            log.exception("the keeper cannot go on")
            return send_home(ctx, f"the keeper cannot go on: {error}")
        raise


def _keep(ctx: Context) -> Outcome:
    record = ctx.expect(Phase.GATED, Phase.SHIFTING, Phase.SOAKING)
    if record is None:
        return Done()
    if record.phase is Phase.GATED:
        word = word_on(ctx, record, SHIFT)
        if isinstance(word, Waiting):
            return word
        if word is not None and not word.approved:
            return Done({"shift": told(word)})  # nobody has moved; the teardown releases the TPU
        return _begin(ctx, record)
    ctx.memory["users_may_be_on_target"] = True
    route = ctx.kube.get(HTTP_ROUTES, record.source.route, ctx.plan.namespace)
    if route is not None and epoch_of(route, record.workload) > record.epoch:
        return _adopt(ctx, record, route)
    sample = look(ctx, record)
    ctx.memory.pop("blind_since", None)
    breach = (
        _disturbed(ctx, record, route)
        or _watch(ctx).add(sample, target_has_users=record.shift.percent > 0, source_replicas=record.source.replicas)
        or _swapped(ctx, record)
    )
    if breach:
        return send_home(ctx, breach)
    assert route is not None  # _disturbed calls a missing route a breach
    return _advance(ctx, record, route, sample)


def _begin(ctx: Context, record: Record) -> Outcome:
    """Check everything that a first weight leans on, and pin the source."""
    verdict = record.verdict or {}
    if verdict.get("outcome") != "pass":
        raise PermanentError(f"the verdict is {verdict.get('outcome', 'missing')}, and only a pass moves users")
    deployment = ctx.kube.get(k8s.DEPLOYMENTS, record.target, ctx.plan.namespace)
    if deployment is None or template_hash(deployment) != record.template_hash:
        raise PermanentError(
            f"Deployment {record.target} is not the one that passed the gate: somebody changed its pod template"
        )
    if (waiting := _ways_answer(ctx) or guard_heartbeat(ctx)) is not None:
        return waiting
    pin_source(ctx, record)
    ready = ready_endpoints(ctx.kube, ctx.plan.namespace, record.source.service)
    if ready < record.source.replicas:
        return Waiting(2.0, f"{ready} of the source's {record.source.replicas} replicas are ready to take all back")
    ctx.update(lambda r: replace(r.moved_to(Phase.SHIFTING), shift=Shift()))
    return Waiting(0, "the source is pinned; the shift begins")


def _ways_answer(ctx: Context) -> Waiting | None:
    """Return None once the prober is answered on the users' way and on the target's; PermanentError if it never is."""
    stats = prober_stats(ctx)
    for name in (MAIN_ARM, TARGET_ARM):
        arm = stats.arms.get(name) if stats else None
        if arm and arm.ok and not arm.consecutive_failures:
            continue
        why = f" ({arm.last_error})" if arm and arm.last_error else ""
        now = ctx.clock.monotonic()
        if now - ctx.memory.setdefault("unanswered_since", now) > _WAY_PATIENCE_S:
            raise PermanentError(
                f"the prober has had no answer on the way '{name}' for {_WAY_PATIENCE_S / 60:.0f} minutes{why}: nobody "
                "is moved; look at what serves there, and start a new run"
            )
        return Waiting(1.0, f"waiting for the prober's answers on the way '{name}'{why}")
    ctx.memory.pop("unanswered_since", None)
    return None


def _watch(ctx: Context) -> Watch:
    if "watch" not in ctx.memory:
        slo = policy(ctx.plan.policy).slo
        limit_ms = slo.ttft_limit_ms if slo else 5000.0
        ctx.memory["watch"] = Watch(Limits(ttft_limit_s=limit_ms / 1000))
    found: Watch = ctx.memory["watch"]
    return found


def _disturbed(ctx: Context, record: Record, route: Object | None) -> str | None:
    """Say whether other hands changed the route since this run wrote it."""
    if route is None:
        return f"HTTPRoute {record.source.route} is gone"
    expected = record.shift
    if expected.written is None:
        return None
    percent = target_percent(rules_of(route), record.source.service, record.target)
    epoch = epoch_of(route, record.workload)
    if percent == expected.percent and epoch == record.epoch:
        return None
    return (
        f"HTTPRoute {record.source.route} gives the target {percent} % at epoch {epoch}, this run had "
        f"written {expected.percent} % at epoch {record.epoch}; last written by {last_writer(route)}"
    )


def _swapped(ctx: Context, record: Record) -> str | None:
    """Say whether the target still is what passed the gate; looked at every ten seconds."""
    now = ctx.clock.monotonic()
    if now - ctx.memory.get("compared_at", -1e9) < _COMPARE_EVERY_S:
        return None
    ctx.memory["compared_at"] = now
    deployment = ctx.kube.get(k8s.DEPLOYMENTS, record.target, ctx.plan.namespace)
    if deployment is not None and template_hash(deployment) == record.template_hash:
        return None
    return f"Deployment {record.target} is not the one that passed the gate any more: its pod template was changed"


def _advance(ctx: Context, record: Record, route: Object, sample: Sample) -> Outcome:
    """Verify the last step by observed traffic, bake it, then take the next; or soak and commit."""
    shift = record.shift
    if shift.step < 0:
        return _take_step(ctx, route, 0)
    if shift.written is None:
        return _write_step(ctx, route, shift)
    if shift.observed is None:
        return _wait_for_split(ctx, record, shift)
    shift = _note_watched(ctx, shift)
    last = shift.step == len(ctx.plan.steps) - 1
    what = "soaking" if last else f"baking {shift.percent} %"
    left = (ctx.plan.soak_s if last else ctx.plan.bake_s) - (ctx.clock.now() - (shift.observed or 0.0))
    if left > 0:
        flight = sample.target.in_flight
        running = "an unknown number of" if flight is None else f"{flight:.0f}"
        return Waiting(min(_LOOK_EVERY_S, left), f"{what}, {left:.0f} s left; {running} requests on the target")
    if (why := _not_yet(ctx, record, sample)) is not None:
        return Waiting(_LOOK_EVERY_S, f"{what}, held: {why}")
    if not last:
        return _take_step(ctx, route, shift.step + 1)
    ctx.update(lambda r: r.moved_to(Phase.COMMITTED))
    return Done({"steps": list(ctx.plan.steps), "soaked_s": ctx.plan.soak_s})


def _not_yet(ctx: Context, record: Record, sample: Sample) -> str | None:
    """Say what is missing for the next step or the commit: missing evidence never counts as good."""
    judged = _watch(ctx).judged()
    if judged < MIN_JUDGED:
        return f"{judged:.0f} of {MIN_JUDGED} requests on the target were seen since the step began"
    if sample.target.ready < ctx.plan.target_replicas:
        return f"{sample.target.ready} of {ctx.plan.target_replicas} target replicas are ready"
    try:
        waiting = guard_heartbeat(ctx)
    except PermanentError as error:
        return str(error)  # the target is well: a guard that is away holds the step, and sends nobody home
    return waiting.why if waiting else None


def _note_watched(ctx: Context, shift: Shift) -> Shift:
    """Write down now and then that somebody watched; time in which nobody did is not counted."""
    now = ctx.clock.now()
    last = shift.watched or shift.observed or now
    if now - last < _NOTE_WATCHED_S:
        return shift
    gap = now - last > _GAP_S
    if gap:
        ctx.log("nobody watched for %.0f s: the wait begins anew", now - last)
    noted = replace(shift, watched=now, observed=now if gap else shift.observed)
    ctx.update(lambda r: replace(r, shift=noted))
    return noted


def _take_step(ctx: Context, route: Object, index: int) -> Outcome:
    """Write the intent before the act: a crash in between finds what was meant."""
    shift = Shift(step=index, percent=ctx.plan.steps[index])
    ctx.update(lambda r: replace(r, shift=shift, intent=f"give the target {shift.percent} %"))
    return _write_step(ctx, route, shift)


def _write_step(ctx: Context, route: Object, shift: Shift) -> Outcome:
    """Write the weights by compare-and-swap, after the record and the lease were checked once more."""
    record = ctx.expect(Phase.SHIFTING, Phase.SOAKING)
    if record is None or record.shift != shift:
        return Waiting(0, "the record moved on; looking again")
    source = record.source
    rules = with_target(rules_of(route), source.rules, source.service, record.target, shift.percent)
    changed = {**route, "spec": {**route["spec"], "rules": rules}}
    try:
        ctx.kube.replace(with_epoch(changed, record.workload, record.epoch))
    except ConflictError:
        return Waiting(0, "the route was written by somebody else just now; looking again")
    now = ctx.clock.now()
    ctx.memory["written_at"] = ctx.clock.monotonic()
    _watch(ctx).begin_step()
    ctx.update(lambda r: replace(r, shift=replace(shift, written=now), intent=""))
    ctx.log("the target has %d %% of the weight", shift.percent)
    return Waiting(_LOOK_EVERY_S, f"the target has {shift.percent} % of the weight; waiting for traffic to follow")


def _wait_for_split(ctx: Context, record: Record, shift: Shift) -> Outcome:
    since = ctx.memory.setdefault("written_at", ctx.clock.monotonic())
    enough = Split.enough(shift.percent)
    split = _watch(ctx).split(since, enough)
    if split.follows(shift.percent):
        now = ctx.clock.now()
        last = shift.step == len(ctx.plan.steps) - 1

        def change(r: Record) -> Record:
            seen = replace(r, shift=replace(shift, observed=now))
            return seen.moved_to(Phase.SOAKING) if last else seen

        ctx.update(change)
        ctx.log("%s: the split follows %d %%", split, shift.percent)
        return Waiting(_LOOK_EVERY_S, f"{split}")
    waited = ctx.clock.monotonic() - since
    if waited > _FOLLOW_BUDGET_S and split.total >= enough:
        return send_home(ctx, f"the gateway does not follow {shift.percent} % within {waited:.0f} s: {split}")
    return Waiting(_LOOK_EVERY_S, f"{split}, waiting for {shift.percent} %")


def _blind(ctx: Context, error: TransientError) -> Outcome:
    """Hold while the API does not answer; after the grace, what cannot be seen is not safe."""
    since = ctx.memory.setdefault("blind_since", ctx.clock.monotonic())
    blind_s = ctx.clock.monotonic() - since
    if blind_s <= Limits.missing_grace_s:
        raise error  # noted nowhere: a write to a server that does not answer would only make the step longer
    ctx.memory["was_blind"] = True
    _yield_to_a_successor(ctx)
    return send_home(ctx, f"nothing could be seen for {blind_s:.0f} s: {error}")


def _yield_to_a_successor(ctx: Context) -> None:
    """Stop if a newer worker of this run keeps watch: only this one was cut off, and nobody is unwatched."""
    try:
        taken_over = ctx.lease.taken_over()
    except TransientError:
        return
    if taken_over:
        raise NotHolderError("a newer worker of this run keeps watch; this one was cut off for a while, and stops")


def send_home(ctx: Context, reason: str) -> Outcome:
    """Restore now, in this very step; everything else can wait. One that fails is tried at the next step."""
    ctx.memory["breach"] = reason
    done = restore(
        ctx.unfenced.watching(),
        ctx.plan.namespace,
        ctx.plan.workload,
        actor=f"the keeper of run {ctx.run_id}",
        reason=reason,
        clock=ctx.clock,
    )
    ctx.memory["restored"] = reason
    ctx.memory["restored_at"] = ctx.clock.monotonic()
    ctx.epoch = done.epoch
    return Waiting(0, f"breach: {reason}; {done.reason}")


def _adopt(ctx: Context, record: Record, route: Object) -> Outcome:
    """Accept that somebody restored: tell the record if they could not, and stop."""
    epoch = epoch_of(route, record.workload)
    return send_home(ctx, f"the route is at epoch {epoch}, above the record's {record.epoch}: somebody restored it")


def _watch_restore(ctx: Context) -> Outcome:
    """See the traffic leave the target, so that the report says when users were safe, not when it was asked."""
    reason = str(ctx.memory["restored"])
    # Read once: nothing in it changes before the traffic has followed, and each call makes a look later.
    record: Record | None = ctx.memory.get("restored_record") or ctx.records.read()
    ctx.memory["restored_record"] = record
    if record is not None and record.phase in AFTER_COMMIT:
        # The commit's own answer was lost. It stands, and the safe route that was just written is the target.
        return Done({"steps": list(ctx.plan.steps), "soaked_s": ctx.plan.soak_s})
    if record is None or record.fallback is None:
        return Failed(reason, "breach")
    waited = ctx.clock.monotonic() - ctx.memory["restored_at"]
    if traffic_has_left_target(ctx, record, _quiet_s(ctx)):
        now = ctx.clock.now()
        ctx.records.force(lambda r: replace(r, fallback=replace(r.fallback, observed=now)) if r.fallback else r)
        return Failed(reason, "breach")
    if waited > _FOLLOW_RESTORE_S:
        return Failed(f"{reason}; the traffic was not seen to leave the target within {waited:.0f} s", "breach")
    return Waiting(_LOOK_AFTER_RESTORE_S, "restored; watching the traffic follow")


def _quiet_s(ctx: Context) -> float:
    """Return how long a target that had traffic must be quiet: as long as five requests took before the breach."""
    rps = _watch(ctx).target_rps()
    return min(_QUIET_S, max(_LEAST_QUIET_S, _QUIET_REQUESTS / rps)) if rps else _QUIET_S


def traffic_has_left_target(ctx: Context, record: Record, quiet_s: float = _QUIET_S) -> bool:
    """Tell whether no request began on the target for `quiet_s`, between this look and any earlier one.

    A target that does not answer gives no evidence; its endpoints must be gone then.
    """
    try:
        sample = look(ctx, record, ask_sources=False)
    except TransientError:
        return False
    if not sample.target.ready and not any(sample.target.pods.values()):
        return True
    if any(pod is None for pod in sample.target.pods.values()):
        return False
    earlier: deque[Sample] = ctx.memory.setdefault("leaving", deque(maxlen=_LOOKS_KEPT))
    earlier.append(sample)
    return any(
        sample.at - each.at >= quiet_s
        and sample.target.pods.keys() <= each.target.pods.keys()
        and not begun_between(each.target, sample.target)
        for each in earlier
    )
