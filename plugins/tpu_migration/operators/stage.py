"""Run a stage as an Airflow task: the one operator, thin over the stage."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

PATIENCE_S = 3.0
_UNREACHED_BUDGET_S = 3600.0  # a cluster that does not answer for so long is lost


class StageOperator(BaseOperator):  # type: ignore[misc]
    """Step a stage eagerly while it makes progress, and defer only when it really waits.

    A deferral costs Airflow about three seconds, so a stage that is done by then ends in `execute`;
    whatever takes longer waits in the triggerer, holds no slot, and ends there. A failure is final:
    AirflowFailException, no retry. Retries are for a worker that died, and continue where the
    record says that the stage was.

    :param stage: name of the stage (see `tpu_migration.stages.STAGES`); the task id by default
    """

    ui_color = "#e8f0fe"

    def __init__(self, *, stage: str | None = None, **kwargs: Any) -> None:
        # By Airflow's own rule a task weighs as much as all after it: each stage would go before the restore.
        super().__init__(**{"weight_rule": "absolute", **kwargs})
        self.stage = stage or self.task_id

    def execute(self, context: Mapping[str, Any]) -> Any:
        """Step the stage; return its result, fail with its reason, or defer to the trigger."""
        return self._run(dict(context["params"]), context["run_id"], context["ti"].try_number)

    def _run(self, params: dict[str, Any], run_id: str, attempt: int) -> Any:
        from tpu_migration.hooks.notices import flush

        try:
            return self._step(params, run_id, attempt)
        finally:
            flush()  # Airflow ends this process without asking its threads

    def _step(self, params: dict[str, Any], run_id: str, attempt: int) -> Any:
        gc.freeze()  # what Airflow has loaded stays: to search it while more is loaded takes a fifth of that time
        # Google's and Kubernetes' clients are heavy: the scheduler parses this file, and must not load them.
        from tpu_migration.drive import Turns
        from tpu_migration.hooks.run import stage_run
        from tpu_migration.stages.base import Done, Failed

        patience = time.monotonic() + PATIENCE_S
        # The stage's own deadline begins with a deferral: what ends in here ends within seconds.
        with Turns(lambda: stage_run(self.stage, params, run_id, attempt), lambda: False) as turns:
            while True:
                outcome = turns.take()
                if isinstance(outcome, Done):
                    return outcome.result
                if isinstance(outcome, Failed):
                    raise AirflowFailException(outcome.reason)
                self.log.info("%s", outcome.why)
                if turns.run is None or time.monotonic() + outcome.seconds > patience:
                    break
                time.sleep(outcome.seconds)
            due = time.time() + outcome.seconds
            if turns.run is not None:
                turns.run.hand_over()
        run = turns.run
        budget_s = run.stage.budget_s(run.context.plan) if run else _UNREACHED_BUDGET_S
        return self._defer(params, run_id, attempt, budget_s, due)

    def _defer(self, params: dict[str, Any], run_id: str, attempt: int, budget_s: float, due: float) -> None:
        from tpu_migration.triggers.stage import StageTrigger

        # execution_timeout does not bound a deferral. The trigger keeps the deadline itself, so that the
        # record says what was waited for; Airflow's own timeout comes after, should the trigger hang.
        self.defer(
            trigger=StageTrigger(self.stage, params, run_id, attempt, time.time() + budget_s, due),
            method_name="resume",
            timeout=timedelta(seconds=budget_s + 300.0),
        )

    def resume(self, context: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        """Fail with the stage's reason: a stage that is done has ended the task from the triggerer."""
        raise AirflowFailException(event["reason"])
