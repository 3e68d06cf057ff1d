"""Step a stage in the triggerer until it is done: the one trigger, holding no worker slot."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent

from tpu_migration.drive import Turns
from tpu_migration.hooks.pool import step_pool
from tpu_migration.hooks.run import stage_run
from tpu_migration.stages.base import Done, Failed, Waiting


class StageTrigger(BaseTrigger):  # type: ignore[misc]
    """Step one stage. A restarted triggerer begins anew, and takes the lease from its older self.

    `cleanup` is left alone on purpose: it runs on every exit, a restart included, and nothing
    outside may be undone by that.
    """

    def __init__(
        self, stage: str, params: dict[str, Any], run_id: str, attempt: int, deadline: float, due: float = 0.0
    ) -> None:
        super().__init__()
        self.due = due  # Unix seconds: when the wait ends that the worker handed over, and the record has already
        self.deadline = deadline  # Unix seconds: it survives a restart of the triggerer
        self.stage = stage
        self.params = params
        self.run_id = run_id
        self.attempt = attempt

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what a restarted triggerer needs: plain values."""
        return (
            "tpu_migration.triggers.stage.StageTrigger",
            {
                "stage": self.stage,
                "params": self.params,
                "run_id": self.run_id,
                "attempt": self.attempt,
                "deadline": self.deadline,
                "due": self.due,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Step in a thread of our own pool, sleep as long as the stage says, and end with its outcome."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.due - time.time())
        make = partial(stage_run, self.stage, self.params, self.run_id, self.attempt)
        with Turns(make, lambda: time.time() > self.deadline) as turns:
            while isinstance(outcome := await loop.run_in_executor(step_pool(), turns.take), Waiting):
                if turns.news:
                    self.log.info("%s: %s", self.stage, turns.news)
                await asyncio.sleep(outcome.seconds)
            if turns.replaced:
                # An event of ours would end the task that our newer self is working on.
                self.log.warning("%s goes on in another triggerer; this one keeps still", self.stage)
                await asyncio.Event().wait()
            yield event(outcome)


def event(outcome: Done | Failed) -> TriggerEvent:
    """Return what ends the task here and now, with no worker any more; a failure goes back to one, to say why."""
    if isinstance(outcome, Done):
        return TaskSuccessEvent(xcoms={"return_value": json.loads(json.dumps(outcome.result))})
    return TriggerEvent({"reason": outcome.reason, "kind": outcome.kind})
