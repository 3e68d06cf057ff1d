"""
### Look after workloads that are on TPU

Every few minutes each migrated workload of the fleet is compared with what was proven: where its route sends users,
whether its Deployment is the one that passed the gate, its replicas, its PodDisruptionBudget, GPUs that come back to
life. A task that is red is an alarm; its log says what has drifted, who wrote it last, and what to do.

Users who are sent to where nobody is ready, as after an Argo CD that put an old route back, are sent to the safe
route. Nothing else is changed.

**Where it looks** is the Airflow variable `tpu_migration_fleet`:

    [{"project_id": "my-project", "location": "us-central1-a", "cluster": "inference", "namespaces": ["inference"]}]

**How often**: the environment variable `TPU_MIGRATION_WATCH_SCHEDULE` of the DAG processor, a cron expression; every
five minutes by default.
"""

from __future__ import annotations

import os

from airflow.sdk import DAG

from tpu_migration.operators.watch import FindMigratedOperator, WatchOperator

with DAG(
    dag_id="tpu_watch",
    schedule=os.environ.get("TPU_MIGRATION_WATCH_SCHEDULE", "*/5 * * * *") or None,
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["tpu", "vllm", "watch"],
    is_paused_upon_creation=True,  # it is of use once the fleet is known
) as dag:
    find = FindMigratedOperator(task_id="find")
    WatchOperator.partial(task_id="watch", map_index_template="{{ task.item['workload'] }}").expand(item=find.output)
