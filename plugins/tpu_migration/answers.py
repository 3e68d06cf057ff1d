"""Write people's answers where the question is, from a task of a DAG or from a terminal. The first answer counts.

What a migration asks is in its record; whether to go back, which is asked after it, in the canaries' history.
"""

from __future__ import annotations

from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.clock import Clock
from tpu_migration.domain.phases import AFTER_COMMIT
from tpu_migration.errors import PermanentError, SupersededError
from tpu_migration.history import Histories, History
from tpu_migration.record import Record
from tpu_migration.records import Records

WAY_BACK = "way back"


def open_question(kube: Kubernetes, namespace: str, workload: str) -> tuple[str, str]:
    """Return what people are asked right now, and the run that waits; PermanentError if nothing."""
    record = Records(kube, namespace, workload).read()
    if record is None:
        raise PermanentError(f"{workload} has no migration in namespace {namespace}")
    for each in record.approvals:
        if each.approved is None and record.active:
            return each.what, record.run_id
    asked = Histories(kube, namespace, workload).read().asked
    if record.phase in AFTER_COMMIT and asked is not None and asked.back and asked.approved is None:
        return WAY_BACK, asked.back
    raise PermanentError(f"{workload} is {record.phase} and waits for nobody's word")


def answer_way_back(
    kube: Kubernetes, namespace: str, workload: str, back: str, *, approved: bool, by: str, reason: str, clock: Clock
) -> History:
    """Write the answer to a run of `gpu_fallback` into the history; PermanentError if it was given before."""
    now = clock.now()
    return Histories(kube, namespace, workload).update(
        lambda found: found.answered(back, approved=approved, by=by, reason=reason, now=now)
    )


def answer(
    kube: Kubernetes,
    namespace: str,
    workload: str,
    what: str,
    *,
    approved: bool,
    by: str,
    reason: str,
    clock: Clock,
    run_id: str = "",
) -> Record:
    """Write the answer and return the record; PermanentError if it was given before, or the migration has ended.

    With `run_id` an answer meant for a run that is over is refused with SupersededError.
    """
    now = clock.now()

    def change(record: Record) -> Record:
        if run_id and record.run_id != run_id:
            raise SupersededError(f"{workload} belongs to run {record.run_id} now, and {run_id} asks nobody any more")
        asked = record.with_question(what, now)  # a quick answer may come before the stage has asked
        return asked.with_answer(what, approved=approved, by=by, reason=reason, now=now)

    record = Records(kube, namespace, workload).force(change)
    if record is None:
        raise PermanentError(f"{workload} has no migration in namespace {namespace}")
    return record
