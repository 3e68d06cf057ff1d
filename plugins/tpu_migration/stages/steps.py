"""Give the target its next share of the users, and see by the traffic that it has it."""

from __future__ import annotations

from dataclasses import replace

from tpu_migration.clients.kubernetes import Object
from tpu_migration.domain.phases import Phase
from tpu_migration.domain.routing import rules_of, with_target
from tpu_migration.domain.watch import Split
from tpu_migration.errors import ConflictError
from tpu_migration.record import Record, Shift
from tpu_migration.restore import with_epoch
from tpu_migration.stages.base import Context, Outcome, Waiting
from tpu_migration.stages.breach import send_home
from tpu_migration.stages.observe import watch_of

_LOOK_EVERY_S = 1.0
_FOLLOW_BUDGET_S = 120.0  # GKE takes about 8 s for weights and up to 60 s for a new backend


def take_step(ctx: Context, route: Object, index: int) -> Outcome:
    """Write the intent before the act: a crash in between finds what was meant."""
    shift = Shift(step=index, percent=ctx.plan.steps[index])
    ctx.update(lambda r: replace(r, shift=shift, intent=f"give the target {shift.percent} %"))
    return write_step(ctx, route, shift)


def write_step(ctx: Context, route: Object, shift: Shift) -> Outcome:
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
    watch_of(ctx).begin_step()
    ctx.update(lambda r: replace(r, shift=replace(shift, written=now), intent=""))
    ctx.log("the target has %d %% of the weight", shift.percent)
    return Waiting(_LOOK_EVERY_S, f"the target has {shift.percent} % of the weight; waiting for traffic to follow")


def wait_for_split(ctx: Context, record: Record, shift: Shift) -> Outcome:
    """See the split follow the weight before its time begins to count; a Gateway that does not follow is a breach."""
    since = ctx.memory.setdefault("written_at", ctx.clock.monotonic())
    enough = Split.enough(shift.percent)
    split = watch_of(ctx).split(since, enough)
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
