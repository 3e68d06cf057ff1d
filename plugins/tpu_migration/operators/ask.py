"""Ask people in Airflow, and write their answer where the waiting stage reads it: into the record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskAwaitingInput

from tpu_migration.operators.notices import MigrationNotifier

APPROVE, REJECT = "Approve", "Reject"
_TRIES, _PAUSE_S = 30, 2.0


class AskBackOperator(HITLOperator):  # type: ignore[misc]
    """Ask people before GPUs come back, where the run says so by its parameter `ask`; silence is a no.

    After a no what follows is skipped, and the run is green: nothing was to be done.
    """

    def __init__(self, *, params: Any = None, **kwargs: Any) -> None:
        subject = "Bring users back to their GPUs?"
        notice = MigrationNotifier("{{ params.workload }}: back to the GPUs?", "{{ params.why or '' }}", "warning")
        super().__init__(subject=subject, options=[APPROVE, REJECT], defaults=[REJECT], notifiers=[notice], **kwargs)

    def execute(self, context: Mapping[str, Any]) -> Any:
        """Ask with the run's reason in the text, or go on where nobody is to be asked."""
        params = context["params"]
        if not params["ask"]:
            return "nobody is to be asked"
        self.subject = f"Bring users of {params['workload']} back to their GPUs?"
        self.body = str(params["why"] or "")
        return super().execute(context)

    def execute_complete(self, context: Mapping[str, Any], event: dict[str, Any]) -> Any:
        """Go on at a yes; skip what follows at a no."""
        given = super().execute_complete(context, event)
        user = (given["responded_by_user"] or {}).get("name") or "nobody in time"
        if given["chosen_options"] != [APPROVE]:
            raise AirflowSkipException(f"rejected by {user}: users stay where they are")
        return f"approved by {user}"


class AskOperator(HITLOperator):  # type: ignore[misc]
    """Ask for approval of a stage that waits for it, and end as soon as anybody has answered, anywhere.

    It moves nothing by itself, and no task waits for it: marked, cleared or skipped it changes
    nothing, for the stage believes the record alone. Airflow resumes it with an answer given in
    its UI or API; the trigger beside it sees one that was given at a terminal, and the end of
    the run's patience.

    :param what: the stage that waits, one of `tpu_migration.domain.plan.APPROVALS`
    """

    def __init__(self, *, what: str, params: Any = None, **kwargs: Any) -> None:
        # `params` are the DAG's, which Airflow hands to each task: the form of this one asks for a reason alone.
        super().__init__(
            subject=f"Approve the {what}?",
            options=[APPROVE, REJECT],
            defaults=[REJECT],
            params={
                "reason": Param("", type="string", title="Reason", description="Kept beside the answer", source="task")
            },
            **kwargs,
        )
        self.what = what

    def execute(self, context: Mapping[str, Any]) -> None:
        """Ask, or skip where nobody is to be asked."""
        params, run_id = self._params(context), context["run_id"]
        plan = self._plan(params)
        if not plan.asks_about(self.what):
            raise AirflowSkipException(f"the plan asks nobody about the {self.what}")
        from tpu_migration.hooks.migration import MigrationHook
        from tpu_migration.records import Records
        from tpu_migration.stages.questions import question
        from tpu_migration.triggers.answer import AnswerTrigger, settled

        kube = MigrationHook(plan).kubernetes()
        record = Records(kube, plan.namespace, plan.workload).read()
        if record is None or (over := settled(record, run_id, self.what)):
            raise AirflowSkipException(over if record else f"{plan.workload} has no record")
        self.subject, self.body = question(plan, record, self.what)
        try:
            super().execute(context)
        except TaskAwaitingInput:
            # Airflow answers a deferred task as it does a waiting one; this one ends without Airflow's answer, too.
            self.defer(trigger=AnswerTrigger(params, run_id, self.what), method_name="execute_complete")

    def execute_complete(self, context: Mapping[str, Any], event: dict[str, Any]) -> Any:
        """Write an answer given in Airflow into the record; one that was given elsewhere is there already."""
        if "settled" in event:
            self.log.info("%s", event["settled"])
            return event["settled"]
        from tpu_migration.errors import PermanentError

        given = super().execute_complete(context, event)
        user = (given["responded_by_user"] or {}).get("name") or "somebody"
        approved, reason = given["chosen_options"] == [APPROVE], str(given["params_input"].get("reason") or "")
        try:
            self._write(context, approved, f"{user} in Airflow", reason)
        except PermanentError as error:  # somebody was quicker, or the migration has ended
            self.log.warning("this answer changes nothing: %s", error)
            return str(error)
        return f"{'approved' if approved else 'rejected'} by {user}"

    def _write(self, context: Mapping[str, Any], approved: bool, by: str, reason: str) -> None:
        from tpu_migration.answers import answer
        from tpu_migration.clock import SystemClock
        from tpu_migration.errors import TransientError
        from tpu_migration.hooks.migration import MigrationHook

        plan, run_id = self._plan(self._params(context)), context["run_id"]
        for left in reversed(range(_TRIES)):
            try:
                answer(
                    MigrationHook(plan).kubernetes(), plan.namespace, plan.workload, self.what,
                    approved=approved, by=by, reason=reason, clock=SystemClock(), run_id=run_id,
                )  # fmt: skip
                return
            except TransientError as error:
                if not left:
                    raise AirflowFailException(
                        f"the answer could not be written: {error}; say it with `tpu-migration approve`"
                    ) from error
                time.sleep(_PAUSE_S)

    @staticmethod
    def _params(context: Mapping[str, Any]) -> dict[str, Any]:
        """Return the run's parameters, without those of this task's own form."""
        return {key: value for key, value in dict(context["params"]).items() if key != "reason"}

    @staticmethod
    def _plan(params: Mapping[str, Any]) -> Any:
        from tpu_migration.domain.plan import Plan, PlanError

        try:
            return Plan.from_params(params)
        except PlanError as error:
            raise AirflowFailException(str(error)) from error
