"""As many tasks as there are migrations to defer, for the proof of many deferrals: no worker ever runs one."""

from __future__ import annotations

import os

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

COUNT = "TPU_MIGRATION_PROOF_COUNT"

with DAG(dag_id="deferred", schedule=None) as dag:
    for number in range(int(os.environ.get(COUNT, "0"))):
        EmptyOperator(task_id=f"migration_{number:03}")
