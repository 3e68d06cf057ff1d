"""See in the cluster that a question is settled, wherever the answer was given."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.hooks.pool import step_pool
from tpu_migration.record import Record, told

_POLL_S = 10.0


def settled(record: Record, run_id: str, what: str) -> str:
    """Say why nobody is to be asked any more; empty while the question is open."""
    if record.run_id != run_id:
        return f"{record.workload} belongs to run {record.run_id} now"
    asked = record.approval(what)
    if asked and asked.approved is not None:
        return f"the {what} is {told(asked)}"
    if not record.active or record.fallback or any(record.said_no(each.what) for each in record.approvals):
        return f"{record.workload} is {record.phase}: nothing is left to decide"
    return ""


class AnswerTrigger(BaseTrigger):  # type: ignore[misc]
    """Look at the record until the question is settled; what people answer in Airflow ends the task without it."""

    def __init__(self, params: dict[str, Any], run_id: str, what: str) -> None:
        super().__init__()
        self.params = params
        self.run_id = run_id
        self.what = what

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what a restarted triggerer needs: plain values."""
        return (
            f"tpu_migration.triggers.answer.{type(self).__name__}",
            {"params": self.params, "run_id": self.run_id, "what": self.what},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """End once the record says so; a cluster that does not answer is asked again."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                if said := await loop.run_in_executor(step_pool(), self._look):
                    yield TriggerEvent({"settled": said})
                    return
            except TransientError as error:
                self.log.info("will look again: %s", error)
            except PermanentError as error:
                yield TriggerEvent({"settled": str(error)})
                return
            await asyncio.sleep(_POLL_S)

    def _look(self) -> str:
        from tpu_migration.hooks.migration import MigrationHook
        from tpu_migration.hooks.run import plan_from
        from tpu_migration.records import Records

        plan = plan_from(self.params)
        record = Records(MigrationHook(plan).kubernetes(), plan.namespace, plan.workload).read()
        return settled(record, self.run_id, self.what) if record else f"{plan.workload} has no record any more"


class WayBackTrigger(AnswerTrigger):
    """Look at the history until people have said whether to go back, or their time is over.

    :param until: when that is, in Unix seconds: it survives a restart of the triggerer
    """

    def __init__(self, params: dict[str, Any], run_id: str, what: str, until: float) -> None:
        super().__init__(params, run_id, what)
        self.until = until

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what a restarted triggerer needs: plain values."""
        path, values = super().serialize()
        return path, {**values, "until": self.until}

    def _look(self) -> str:
        from tpu_migration.history import Histories
        from tpu_migration.hooks.migration import MigrationHook
        from tpu_migration.hooks.run import plan_from

        if time.time() > self.until:
            return "nobody answered in time"
        plan = plan_from(self.params)
        asked = Histories(MigrationHook(plan).kubernetes(), plan.namespace, plan.workload).read().asked
        if asked is None or asked.back != self.run_id:
            return f"another run asks about {plan.workload} by now"
        return "" if asked.approved is None else f"the {self.what} is {asked.told}"
