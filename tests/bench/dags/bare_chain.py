"""As many tasks as a migration has stages, each of which defers once and does nothing: what Airflow itself takes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import DAG, BaseOperator, chain

STAGES = 8


class DeferOnce(BaseOperator):  # type: ignore[misc]
    """Defer to a trigger that fires at once."""

    def execute(self, context: Any) -> None:
        """Defer."""
        self.defer(trigger=TimeDeltaTrigger(timedelta(0)), method_name="resume")

    def resume(self, context: Any, event: Any) -> None:
        """Be done."""


with DAG(dag_id="bare_chain", schedule=None, catchup=False) as dag:
    begin = EmptyOperator(task_id="begin").as_setup()
    *stages, last = [DeferOnce(task_id=f"stage_{number}") for number in range(STAGES)]
    chain(begin, *stages, last.as_teardown(setups=begin, on_failure_fail_dagrun=True))
