"""End a run that was sent home and then died, so that the next one can begin."""

from __future__ import annotations

from tpu_migration.clients.kubernetes import LEASES
from tpu_migration.domain.plan import Plan
from tpu_migration.errors import PermanentError
from tpu_migration.lease import DURATION_S, Holder
from tpu_migration.names import record_name
from tpu_migration.record import Record
from tpu_migration.stages.base import Context, Outcome, Waiting
from tpu_migration.stages.teardown import step as tear_down

_KEY = "left_behind"


def end_what_was_left_behind(ctx: Context, record: Record) -> Outcome:
    """Release what another run's TPUs still hold, once that run is surely dead.

    Its users are home already (its phase is falling_back). Dead means: its lease has not changed
    for a whole lease, on this worker's own clock.
    """
    context = ctx.memory.get(_KEY)
    if context is None:
        if (waiting := wait_for_dead_lease(ctx, record.run_id)) is not None:
            return waiting
        context = _in_its_name(ctx, record)
        context.lease.acquire()
        ctx.memory[_KEY] = context
    context.lease.renew_if_due()
    outcome = tear_down(context)
    if isinstance(outcome, Waiting):
        return Waiting(outcome.seconds, f"ending run {record.run_id}, which was left behind: {outcome.why}")
    context.lease.release()
    del ctx.memory[_KEY]
    return Waiting(0, f"run {record.run_id}, which was left behind, is ended")


def wait_for_dead_lease(ctx: Context, run_id: str) -> Waiting | None:
    """Return None once another run's lease has stood still for a whole lease on this worker's own clock.

    Raises PermanentError as soon as it moves: that run is alive.
    """
    lease = ctx.kube.get(LEASES, record_name(ctx.plan.workload), ctx.plan.namespace)
    beat = f"{lease['spec'].get('holderIdentity')} {lease['spec'].get('renewTime')}" if lease else ""
    first, since = ctx.memory.setdefault("left_behind_beat", (beat, ctx.clock.monotonic()))
    if beat != first:
        raise PermanentError(
            f"{ctx.plan.workload} is being worked on by run {run_id}: wait for its end; nothing was changed by this run"
        )
    if ctx.clock.monotonic() - since <= DURATION_S:
        return Waiting(2.0, f"run {run_id} holds {ctx.plan.workload}; waiting to see whether it is still alive")
    return None


def _in_its_name(ctx: Context, record: Record) -> Context:
    plan = Plan.from_params(record.plan)
    holder = Holder(record.run_id, "preflight of a later run")
    return Context.create(plan, holder, ctx.unfenced, ctx.pools, ctx.clock, together=ctx.together)
