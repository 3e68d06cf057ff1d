"""Wait for people's word, which a branch of the DAG or a terminal writes into the record."""

from __future__ import annotations

from tpu_migration.clock import iso
from tpu_migration.record import Approval, Record
from tpu_migration.stages.base import Context, Waiting

SHIFT, DECOMMISSION = "shift", "decommission"
_POLL_S = 5.0
_SILENCE = "nobody"


def word_on(ctx: Context, record: Record, what: str) -> Approval | Waiting | None:
    """Return people's answer, Waiting until it is there, None where the plan asks nobody.

    Silence is a no: after the plan's time the answer is a rejection.
    """
    if not ctx.plan.asks_about(what):
        return None
    now, timeout_s = ctx.clock.now(), ctx.plan.approval_timeout_s
    asked = record.approval(what)
    if asked is None:
        ctx.update(lambda r: r.with_question(what, now))
        return Waiting(0, f"people are asked to approve the {what}")
    if asked.approved is not None:
        return asked
    left_s = asked.asked + timeout_s - now
    if left_s <= 0:
        reason = f"no answer within {timeout_s / 3600:.3g} hours"

        def silence(current: Record) -> Record:
            if current.approval(what) != asked:
                return current  # somebody answered in this very moment
            return current.with_answer(what, approved=False, by=_SILENCE, reason=reason, now=now)

        ctx.update(silence)
        return Waiting(0, reason)
    return Waiting(
        min(left_s, _POLL_S),
        f"waiting for people's word on the {what}, until {iso(asked.asked + timeout_s)}: answer in Airflow (Required "
        f"Actions), or with `tpu-migration approve {record.workload}` (or --reject)",
    )
