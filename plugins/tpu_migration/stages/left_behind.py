"""End a run that nobody works on any more, so that the next one can begin."""

from __future__ import annotations

from tpu_migration.domain.plan import Plan
from tpu_migration.errors import PermanentError
from tpu_migration.lease import DURATION_S, Found, Holder
from tpu_migration.record import Record
from tpu_migration.restore import restore
from tpu_migration.stages.base import Context, Outcome, Waiting
from tpu_migration.stages.teardown import step as tear_down

_KEY = "left_behind"


class WorkedOnError(PermanentError):
    """Report that the run which has the workload is alive."""


def end_what_was_left_behind(ctx: Context, record: Record) -> Outcome:
    """Release what another run's TPUs still hold, once that run is surely dead.

    Its users are home already (its phase is falling_back).
    """
    context = in_its_name(ctx, record)
    if isinstance(context, Waiting):
        return context
    outcome = tear_down(context)
    if isinstance(outcome, Waiting):
        return Waiting(outcome.seconds, f"ending run {record.run_id}, which was left behind: {outcome.why}")
    context.lease.release()
    del ctx.memory[_KEY]
    return Waiting(0, f"run {record.run_id}, which was left behind, is ended")


def send_home(ctx: Context, record: Record, actor: str, reason: str) -> Outcome:
    """Take the safe route, so that the run falls back; `end_what_was_left_behind` releases the rest."""
    restore(ctx.unfenced, record.namespace, record.workload, actor=actor, reason=reason, clock=ctx.clock)
    return Waiting(0, f"users are on the source; run {record.run_id} is ended")


def in_its_name(ctx: Context, record: Record) -> Context | Waiting:
    """Return a context that works as another run, with its lease; that run must be dead first.

    Dead means: its lease has not changed for a whole lease, on this worker's own clock; or it gave the lease back.
    """
    context: Context | None = ctx.memory.get(_KEY)
    if context is None:
        found = ctx.lease.look()
        if (waiting := wait_for_dead_lease(ctx, record.run_id, found)) is not None:
            return waiting
        holder = Holder(record.run_id, _taken_on_by(ctx))
        # Whoever ends another's run wants its machines gone, whatever that run's plan wanted to look at.
        plan = Plan.from_params({**record.plan, "on_fallback": "release"})
        context = Context.create(plan, holder, ctx.unfenced, ctx.pools, ctx.clock, together=ctx.together, tell=ctx.tell)
        context.lease.acquire(found, from_the_dead=True)
        ctx.memory[_KEY] = context
    context.lease.renew_if_due()
    return context


def _taken_on_by(ctx: Context) -> str:
    """Return what stands in the lease in place of a task of the run that has it."""
    return f"taken on by run {ctx.run_id}"


def take_lease(ctx: Context) -> Waiting | None:
    """Take the lease; one that a run left behind which never wrote a record is taken once it surely is dead."""
    found = ctx.lease.look()
    others = found.holder if found.holder and found.holder.run_id != ctx.run_id else None
    if others is not None and (waiting := wait_for_dead_lease(ctx, others.run_id, found)) is not None:
        return waiting
    ctx.lease.acquire(found, from_the_dead=others is not None, begins_the_run=True)
    return None


def wait_for_dead_lease(ctx: Context, run_id: str, found: Found) -> Waiting | None:
    """Return None once nobody holds the lease, or it has stood still for a whole lease on this worker's own clock.

    Raises WorkedOnError as soon as it moves: that run is alive.
    """
    if found.holder is None or found.holder.task == _taken_on_by(ctx):
        return None  # an earlier worker of this very task, as when a worker hands over to the triggerer
    still_s = ctx.lease.still_for(found)
    if still_s is None:
        raise WorkedOnError(
            f"{ctx.plan.workload} is being worked on by run {run_id}: wait for its end, or mark it as failed in "
            "Airflow; nothing was changed by this run"
        )
    if still_s <= DURATION_S:
        return Waiting(2.0, f"run {run_id} holds {ctx.plan.workload}; waiting to see whether it is still alive")
    return None
