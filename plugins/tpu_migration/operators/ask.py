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
_WHERE = ("project_id", "location", "cluster", "namespace", "workload", "gcp_conn_id")


class AskBackOperator(HITLOperator):  # type: ignore[misc]
    """Ask people before GPUs come back, where the run says so by its parameter `ask`; silence is a no.

    The question stands in the canaries' history, too, where `tpu-migration approve` answers it; whichever answer
    comes first counts. After a no what follows is skipped, and the run is green: nothing was to be done. A cluster
    that does not answer leaves the question to Airflow alone.
    """

    def __init__(self, *, params: Any = None, **kwargs: Any) -> None:
        subject = "Bring users back to their GPUs?"
        notice = MigrationNotifier(
            "{{ params.workload }}: back to the GPUs?",
            "{{ params.why or '' }} Answer in Airflow, or `tpu-migration approve {{ params.workload }}`.",
            "warning",
        )
        super().__init__(subject=subject, options=[APPROVE, REJECT], defaults=[REJECT], notifiers=[notice], **kwargs)

    def execute(self, context: Mapping[str, Any]) -> Any:
        """Ask with the run's reason in the text, or go on where nobody is to be asked."""
        from tpu_migration.clock import SystemClock
        from tpu_migration.triggers.answer import WayBackTrigger

        params, run_id = dict(context["params"]), context["run_id"]
        if not params["ask"]:
            return "nobody is to be asked"
        now = SystemClock().now()
        asked = self._history(params, lambda found: found.asking(run_id, now))
        if asked is not None and asked.approved is not None:  # at a terminal, before this task ran
            return self._follow(asked.approved, asked.by)
        self.subject = f"Bring users of {params['workload']} back to their GPUs?"
        self.body = f"{params['why'] or ''}\n\nAt a terminal: `tpu-migration approve {params['workload']}`"
        try:
            return super().execute(context)
        except TaskAwaitingInput:
            # As below: a deferred task takes Airflow's answer, too, and ends without it.
            began = asked.at if asked is not None else now
            until = began + self.response_timeout.total_seconds()
            plain = {key: params[key] for key in _WHERE if key in params}
            self.defer(trigger=WayBackTrigger(plain, run_id, "way back", until), method_name="execute_complete")

    def execute_complete(self, context: Mapping[str, Any], event: dict[str, Any]) -> Any:
        """Go on at a yes; skip what follows at a no. The history has the answer wherever it was given."""
        from tpu_migration.clock import SystemClock

        approved, by, reason = False, "nobody", "no answer in time"
        if "settled" in event:
            self.log.info("%s", event["settled"])
        else:
            given = super().execute_complete(context, event)
            user = (given["responded_by_user"] or {}).get("name")
            approved = given["chosen_options"] == [APPROVE]
            by, reason = (f"{user} in Airflow", "") if user else ("nobody", "no answer in time")
        run_id, now = context["run_id"], SystemClock().now()

        def write(found: Any) -> Any:
            if found.asked is None or found.asked.back != run_id or found.asked.approved is not None:
                return found  # somebody was quicker, and the first answer counts
            return found.answered(run_id, approved=approved, by=by, reason=reason, now=now)

        asked = self._history(dict(context["params"]), write)
        if asked is not None and asked.back == run_id and asked.approved is not None:
            approved, by = asked.approved, asked.by
        return self._follow(approved, by)

    def _history(self, params: Mapping[str, Any], change: Any) -> Any:
        """Change the history and return its question; None where the cluster does not answer."""
        from tpu_migration.errors import MigrationError
        from tpu_migration.history import Histories
        from tpu_migration.hooks.migration import MigrationHook
        from tpu_migration.hooks.run import plan_from

        try:
            plan = plan_from({key: params[key] for key in _WHERE if key in params})
            return Histories(MigrationHook(plan).kubernetes(), plan.namespace, plan.workload).update(change).asked
        except MigrationError as error:
            self.log.warning("the question is in Airflow alone: %s", error)
            return None

    @staticmethod
    def _follow(approved: bool, by: str) -> str:
        if not approved:
            raise AirflowSkipException(f"rejected by {by}: users stay where they are")
        return f"approved by {by}"


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
        from tpu_migration.hooks.notices import flush, tell
        from tpu_migration.notices import FAILURE, Notice

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
                    lost = f"the answer could not be written: {error}; say it with `tpu-migration approve`"
                    tell(Notice(f"{plan.workload}: an answer is lost", lost, FAILURE))
                    flush()
                    raise AirflowFailException(lost) from error
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
