"""Go back to GPUs from wherever a migration stands, whether or not somebody works on it.

Users first: before the commit the safe route is written at once, over the head of a run that lives, which then ends by
itself. After the commit the source is made whole and proven before any user moves (see `way_back` and `rescue`),
unless the TPU serves nobody any more, or a person waives the proof.
"""

from __future__ import annotations

from tpu_migration.domain.accelerators import AcceleratorError
from tpu_migration.domain.phases import AFTER_COMMIT, Phase
from tpu_migration.domain.profiles import ProfileError
from tpu_migration.errors import PermanentError
from tpu_migration.record import Record
from tpu_migration.resources import accelerators
from tpu_migration.restore import restore
from tpu_migration.stages.base import Context, Done, Outcome, Waiting
from tpu_migration.stages.left_behind import WorkedOnError, end_what_was_left_behind
from tpu_migration.stages.stacks import find_profile, make_stack
from tpu_migration.stages.way_back import CLOSED
from tpu_migration.stages.way_back import step as way_back

_REASON = "asked for by the DAG gpu_fallback"
_POLL_S = 5.0


def step(ctx: Context) -> Outcome:
    """Send users home, or bring the GPUs back for them; end when nothing of the TPU side is left."""
    record = ctx.records.read()
    if record is None:
        raise PermanentError(
            f"{ctx.plan.workload} has no migration in namespace {ctx.plan.namespace}: check workload and namespace"
        )
    if record.phase in CLOSED:
        return Done({"phase": str(record.phase), "users": f"on {record.source.accelerator}"})
    if record.phase not in AFTER_COMMIT and record.phase is not Phase.FALLING_BACK:
        actor = f"run {ctx.run_id} of gpu_fallback"
        done = restore(
            ctx.unfenced, record.namespace, record.workload, actor=actor, reason=ctx.why or _REASON, clock=ctx.clock
        )
        return Waiting(0, f"users are sent to the source ({done.reason})")
    if record.phase is Phase.FALLING_BACK:
        return _release(ctx, record)
    try:
        gpus = make_stack(ctx.plan, find_profile(_profile_of(record), "gpu"), accelerators())
    except (ProfileError, AcceleratorError) as error:
        raise PermanentError(f"no machines are known for {record.source.accelerator}: {error}") from error
    actor = f"run {ctx.run_id} of gpu_fallback"
    return way_back(ctx, gpus, actor, ctx.why or _REASON, is_proven_first=ctx.proves_gpus)


def _release(ctx: Context, record: Record) -> Outcome:
    """Leave the TPUs to the run that has them while it lives; end it once it is dead."""
    try:
        return end_what_was_left_behind(ctx, record)
    except WorkedOnError:
        ctx.memory.clear()  # look anew: it may die yet
        return Waiting(_POLL_S, f"users are on the source; run {record.run_id} lives, and releases its TPUs")


def _profile_of(record: Record) -> str:
    """Return the profile of the source's GPUs, for machines in place of those that are gone."""
    return "legacy_gpu" if "l4" in record.source.accelerator.lower() else "h100"
