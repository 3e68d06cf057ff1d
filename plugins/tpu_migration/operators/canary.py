"""Try migrated workloads again on a schedule, and bring GPUs back for one that failed, as its place says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, DagRunTriggerException

from tpu_migration.operators.stage import StageOperator

FALLBACK_DAG = "gpu_fallback"
_SPAN_S = 3600.0  # what a canary takes: it does not run into a blackout


class CanaryOperator(StageOperator):
    """Run the canary of one migrated workload; the task fails, and so alarms, with what it found.

    :param item: one mapping of those that `FindMigratedOperator` returns
    """

    template_fields: Sequence[str] = ("item",)

    def __init__(self, *, item: Any, **kwargs: Any) -> None:
        super().__init__(stage="canary", **kwargs)
        self.item = item

    def execute(self, context: Mapping[str, Any]) -> Any:
        """Measure, unless it is a time without canaries."""
        from tpu_migration.clock import SystemClock
        from tpu_migration.domain.fleet import Place

        place = Place(**self.item["place"])
        if self.item["trouble"]:
            raise AirflowFailException(
                f"namespace {place.namespace} of cluster {place.cluster} could not be looked at: {self.item['trouble']}"
            )
        if told := place.blackout(SystemClock().now(), _SPAN_S):
            raise AirflowSkipException(f"{self.item['workload']} is left alone: {told}")
        params = {key: value for key, value in vars(place).items() if key not in ("on_fail", "blackouts")}
        run_id = canary_run_id(context["run_id"], self.item["workload"])
        return self._run({**params, "workload": self.item["workload"]}, run_id, context["ti"].try_number)


class GoBackOperator(TriggerDagRunOperator):  # type: ignore[misc]
    """Start `gpu_fallback` for a workload whose canary has just failed, or ask people there, as its place says.

    What happened is read from the history in the cluster, never from the canary's task: one that was marked moves
    nobody. People are asked once, and again only when the time for their answer is over.

    :param item: the mapping that the canary was given
    """

    template_fields: Sequence[str] = (*TriggerDagRunOperator.template_fields, "item")

    def __init__(self, *, item: Any, **kwargs: Any) -> None:
        # A DAG that is paused would take the order and never do it.
        super().__init__(
            trigger_dag_id=FALLBACK_DAG, fail_when_dag_is_paused=True, skip_when_already_exists=True, **kwargs
        )
        self.item = item

    def execute(self, context: Mapping[str, Any]) -> None:
        """Trigger, or skip with the reason."""
        from tpu_migration.clock import SystemClock
        from tpu_migration.domain.canary import FAIL
        from tpu_migration.domain.fleet import ALERT, ASK, Place
        from tpu_migration.history import Histories, Question
        from tpu_migration.hooks.migration import MigrationHook
        from tpu_migration.hooks.run import plan_from
        from tpu_migration.records import Records

        place, workload = Place(**self.item["place"]), self.item["workload"]
        if self.item["trouble"] or not workload:
            raise AirflowSkipException("nothing is known of this place")
        run_id = canary_run_id(context["run_id"], workload)
        kube = MigrationHook(place.plan(workload)).kubernetes()
        histories = Histories(kube, place.namespace, workload)
        history, record = histories.read(), Records(kube, place.namespace, workload).read()
        canary = history.of(run_id)
        if canary is None or canary.outcome != FAIL or record is None:
            raise AirflowSkipException("this canary has not failed")
        if place.on_fail == ALERT:
            raise AirflowSkipException("on_fail is alert: people were told, and nothing is done")
        ask, now = place.on_fail == ASK, SystemClock().now()
        asked, patience_s = history.asked, plan_from(record.plan).approval_timeout_s
        # A yes after which it still is on TPU came to nothing, and people are asked anew.
        known = asked is not None and asked.run != run_id and asked.approved is not True
        if ask and asked and known and now - asked.at < patience_s:
            raise AirflowSkipException(f"people were asked by {asked.run or asked.back} already: {asked.told}")
        where = place.plan(workload)
        names = ("project_id", "location", "cluster", "namespace", "workload", "gcp_conn_id")
        self.conf = {**{name: getattr(where, name) for name in names}, "why": canary.sentence, "ask": ask}
        self.trigger_run_id = f"canary__{workload}__{context['run_id']}"
        try:
            super().execute(context)
        except DagRunTriggerException:  # the way in which Airflow 3 is told to trigger, after its checks
            if ask:
                histories.update(lambda found: replace(found, asked=Question(now, run_id, self.trigger_run_id)))
            raise


def canary_run_id(dag_run_id: str, workload: str) -> str:
    """Return the run id of one workload's canary: what it makes is named by it, and differs from its neighbours'."""
    return f"{dag_run_id}/{workload}"
