"""Say in a line or two what people want to hear of a migration, from how its record changes.

The record is the one place that every stage writes to, so no stage has to think of notices. A title fits a phone's
lock screen; what is asked of the reader stands in the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tpu_migration.domain.phases import Phase
from tpu_migration.record import Record, told

INFO, SUCCESS, WARNING, FAILURE = "info", "success", "warning", "failure"
_LONGEST = 600  # characters of a text; the record and the report have the rest


@dataclass(frozen=True)
class Notice:
    """One message: `kind` is info, success, warning or failure."""

    title: str
    body: str
    kind: str = INFO

    def short(self) -> Notice:
        """Return it cut to what is read on a phone."""
        body = self.body if len(self.body) <= _LONGEST else f"{self.body[: _LONGEST - 1]}…"
        return Notice(self.title, body, self.kind)


def notices(before: Record | None, after: Record) -> list[Notice]:
    """Return what a change of the record is worth telling; mostly nothing."""
    if before is None or before.run_id != after.run_id:
        source, plan = after.source, after.plan
        from_ = f"{source.replicas} × {source.accelerator} to {plan['target_replicas']} × {plan['target']}"
        return [Notice(f"{after.workload}: migration begins", f"{from_}, run {after.run_id}. Users are on the GPUs.")]
    return [*_steps(before, after), *_phase(before, after), *_questions(before, after)]


def failure(workload: str, stage: str, reason: str) -> Notice:
    """Return the notice of a stage that failed, with its reason."""
    return Notice(f"{workload}: {stage} failed", reason, FAILURE)


def _phase(before: Record, after: Record) -> Iterator[Notice]:
    if before.phase is after.phase:
        return
    if (text := _PHASES.get(after.phase)) is None:
        return
    title, body, kind = text
    sentence = (after.verdict or {}).get("sentence", "")
    reason = after.fallback.reason if after.fallback else sentence
    found = {"reason": reason or "no reason is in the record", "verdict": sentence or "without a verdict"}
    yield Notice(
        f"{after.workload}: {title}", body.format(target=after.target, gpu=after.source.accelerator, **found), kind
    )


_PHASES = {
    Phase.WARM: ("TPU is warm", "{target} has compiled and answers. The gate measures next.", INFO),
    Phase.GATED: ("the gate has decided", "{verdict}", INFO),
    Phase.SHIFTING: ("users begin to move", "Step by step to {target}, watched at each.", INFO),
    Phase.SOAKING: ("all users are on TPU", "The soak begins; {gpu} stands by at full strength.", INFO),
    Phase.COMMITTED: ("committed", "The soak passed: {target} is the safe side now.", SUCCESS),
    Phase.DECOMMISSIONING: ("GPUs are being released", "{gpu} serves nobody any more.", INFO),
    Phase.MIGRATED: ("migrated", "Users are on {target}. It is tried again on a schedule.", SUCCESS),
    Phase.PROVEN: ("proof of concept is over", "{verdict}", SUCCESS),
    Phase.HELD: ("held", "Users are on {gpu}, and the TPU is kept for a closer look: {reason}", WARNING),
    Phase.REJECTED: ("rejected", "People said no; users are on {gpu}, the TPU is released.", WARNING),
    # A stage writes this after the commit only; before it a restore does, whose cause the failed stage has told.
    Phase.FALLING_BACK: ("users go back", "Every replica on {gpu} answers again and takes them.", WARNING),
    Phase.FALLEN_BACK: ("fell back", "Users are on {gpu}, the TPU is released: {reason}", WARNING),
}


def _steps(before: Record, after: Record) -> Iterator[Notice]:
    shift = after.shift
    if shift.observed is not None and before.shift.observed is None:
        yield Notice(f"{after.workload}: {shift.percent} % on TPU", "The traffic was seen to follow.")


def _questions(before: Record, after: Record) -> Iterator[Notice]:
    for asked in after.approvals:
        known = before.approval(asked.what)
        if known is None and asked.approved is None:
            body = f"Answer in Airflow, or `tpu-migration approve {after.workload}`. Silence is a no."
            yield Notice(f"{after.workload}: approve the {asked.what}?", body, WARNING)
        elif asked.approved is not None and (known is None or known.approved is None):
            yield Notice(f"{after.workload}: {asked.what} answered", told(asked))
