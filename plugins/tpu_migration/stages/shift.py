"""Move users and keep watch, from the first weight to the commit: the keeper.

One task shifts, soaks and watches: it takes a look, and either sends users home (`breach`) or holds, or gives the
target its next share (`steps`).
"""

from __future__ import annotations

import logging
from dataclasses import replace

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import HTTP_ROUTES, Object
from tpu_migration.domain.phases import Phase
from tpu_migration.domain.routing import epoch_of, least_percent, rules_of, target_percent
from tpu_migration.domain.watch import MIN_JUDGED, Limits, Sample
from tpu_migration.errors import (
    NotHolderError,
    PermanentError,
    SupersededError,
    TransientError,
)
from tpu_migration.names import TARGET_ARM
from tpu_migration.record import Record, Shift, told
from tpu_migration.restore import ready_endpoints
from tpu_migration.stages.approval import SHIFT, word_on
from tpu_migration.stages.base import Context, Done, Outcome, Waiting
from tpu_migration.stages.breach import send_home, send_home_again, watch_restore
from tpu_migration.stages.heartbeat import guard_heartbeat
from tpu_migration.stages.objects import last_writer, template_hash
from tpu_migration.stages.observe import look, watch_of
from tpu_migration.stages.pin import pin_source
from tpu_migration.stages.probes import MAIN_ARM, prober_stats
from tpu_migration.stages.steps import take_step, wait_for_split, write_step

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_COMPARE_EVERY_S = 10.0
_NOTE_WATCHED_S = 10.0
_GAP_S = 30.0
_WAY_PATIENCE_S = 300.0  # before the first weight, with a way that gives no answer


def step(ctx: Context) -> Outcome:
    """Take one look; restore on a breach, else hold, or give the target its next share."""
    if ctx.plan.stop_after == "gate":
        return Done({"skipped": "a proof of concept moves nobody"})
    if "restored" in ctx.memory:
        return watch_restore(ctx)
    if "breach" in ctx.memory:
        if ctx.memory.get("was_blind"):
            _yield_to_a_successor(ctx)
        return send_home_again(ctx)
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
    if breach := _disturbed(ctx, record, route):
        return send_home(ctx, breach)
    has_users, replicas = record.shift.percent > 0, record.source.replicas
    if breach := watch_of(ctx).add(sample, target_has_users=has_users, source_replicas=replicas):
        return send_home(ctx, breach, stays=_may_stay(ctx, record, sample))
    if breach := _swapped(ctx, record):
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
        if arm and arm.steady:
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


def _disturbed(ctx: Context, record: Record, route: Object | None) -> str | None:
    """Say whether other hands changed the route since this run wrote it."""
    if route is None:
        return f"HTTPRoute {record.source.route} is gone"
    expected = record.shift
    if expected.written is None:
        return None
    rules, source = rules_of(route), record.source
    percent = target_percent(rules, source.service, record.target)
    least = least_percent(rules, source.rules, source.service, record.target)
    epoch = epoch_of(route, record.workload)
    if percent == least == expected.percent and epoch == record.epoch:
        return None
    gives = f"{percent} %" if percent == least else f"{least} to {percent} %, by its rules,"
    return (
        f"HTTPRoute {record.source.route} gives the target {gives} at epoch {epoch}, this run had "
        f"written {expected.percent} % at epoch {record.epoch}; last written by {last_writer(route)}"
    )


def _may_stay(ctx: Context, record: Record, sample: Sample) -> int:
    """Return the share that may stay on the target for now: none, unless the source lacks replicas and it is well."""
    target, probe = sample.target, sample.probe
    is_well = target.ready >= ctx.plan.target_replicas and all(target.pods.values()) and not sample.dead_sources
    is_answered = (
        probe is not None and not probe.consecutive_failures and not watch_of(ctx).failed_probes("target_failed")
    )
    lacks = sample.source.ready < record.source.replicas
    return record.shift.percent if lacks and is_well and is_answered else 0


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
        return take_step(ctx, route, 0)
    if shift.written is None:
        return write_step(ctx, route, shift)
    if shift.observed is None:
        return wait_for_split(ctx, record, shift)
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
        return take_step(ctx, route, shift.step + 1)
    ctx.update(lambda r: r.moved_to(Phase.COMMITTED))
    return Done({"steps": list(ctx.plan.steps), "soaked_s": ctx.plan.soak_s})


def _not_yet(ctx: Context, record: Record, sample: Sample) -> str | None:
    """Say what is missing for the next step or the commit: missing evidence never counts as good."""
    judged = watch_of(ctx).judged()
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


def _adopt(ctx: Context, record: Record, route: Object) -> Outcome:
    """Accept that somebody restored: tell the record if they could not, and stop."""
    epoch = epoch_of(route, record.workload)
    return send_home(ctx, f"the route is at epoch {epoch}, above the record's {record.epoch}: somebody restored it")
