"""Send users home in the very step that sees a breach, and see by the traffic that they are there."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from tpu_migration.domain.phases import AFTER_COMMIT
from tpu_migration.domain.watch import Sample, begun_between
from tpu_migration.errors import TransientError
from tpu_migration.record import Record
from tpu_migration.restore import restore
from tpu_migration.stages.base import Context, Done, Failed, Outcome, Waiting
from tpu_migration.stages.observe import look, watch_of

_FOLLOW_S = 60.0
_SEEN_HOLDS_S = 5.0
_LOOK_AFTER_RESTORE_S, _LOOKS_KEPT = 0.1, 64
_QUIET_S, _LEAST_QUIET_S = 1.0, 0.25  # without a request on the target, until the traffic counts as gone
_QUIET_REQUESTS = 5  # of a Poisson stream that goes on, none is seen in their time with less than 1 %: exp(-5)


def send_home(ctx: Context, reason: str, *, stays: int = 0) -> Outcome:
    """Restore now, in this very step; everything else can wait. One that fails is tried at the next step.

    `stays` is the share in per cent that may stay on a target that is well, where the source lacks replicas.
    """
    ctx.memory["breach"] = reason
    ctx.memory.setdefault("may_stay", (stays, ctx.clock.monotonic()))
    done = restore(
        ctx.unfenced.watching(),
        ctx.plan.namespace,
        ctx.plan.workload,
        actor=f"the keeper of run {ctx.run_id}",
        reason=reason,
        clock=ctx.clock,
        stays=stays,
    )
    ctx.memory["restored"] = reason
    ctx.memory["stays"] = done.target_percent if stays else 0
    ctx.memory["restored_at"] = ctx.clock.monotonic()
    ctx.epoch = done.epoch
    return Waiting(0, f"breach: {reason}; {done.reason}")


def send_home_again(ctx: Context) -> Outcome:
    """Try once more what failed; what was seen of the target holds for a moment only."""
    stays, seen_at = ctx.memory["may_stay"]
    is_fresh = ctx.clock.monotonic() - seen_at <= _SEEN_HOLDS_S
    return send_home(ctx, ctx.memory["breach"], stays=stays if is_fresh else 0)


def watch_restore(ctx: Context) -> Outcome:
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
    if ctx.memory.get("stays"):
        return Failed(record.fallback.reason, "breach")  # the teardown brings the rest home when the source is whole
    waited = ctx.clock.monotonic() - ctx.memory["restored_at"]
    if traffic_has_left_target(ctx, record, _quiet_s(ctx)):
        now = ctx.clock.now()
        ctx.records.force(lambda r: replace(r, fallback=replace(r.fallback, observed=now)) if r.fallback else r)
        return Failed(reason, "breach")
    if waited > _FOLLOW_S:
        return Failed(f"{reason}; the traffic was not seen to leave the target within {waited:.0f} s", "breach")
    return Waiting(_LOOK_AFTER_RESTORE_S, "restored; watching the traffic follow")


def _quiet_s(ctx: Context) -> float:
    """Return how long a target that had traffic must be quiet: as long as five requests took before the breach."""
    rps = watch_of(ctx).target_rps()
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
