"""Write people's answers into the record, from a task of the DAG or from a terminal. The first answer counts."""

from __future__ import annotations

from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.clock import Clock
from tpu_migration.errors import PermanentError, SupersededError
from tpu_migration.record import Record
from tpu_migration.records import Records


def open_question(kube: Kubernetes, namespace: str, workload: str) -> str:
    """Return what people are asked right now; PermanentError if nothing."""
    record = Records(kube, namespace, workload).read()
    if record is None:
        raise PermanentError(f"{workload} has no migration in namespace {namespace}")
    for each in record.approvals:
        if each.approved is None and record.active:
            return each.what
    raise PermanentError(f"{workload} is {record.phase} and waits for nobody's word")


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
