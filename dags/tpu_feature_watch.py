"""
### Watch what TPUs learn and unlearn

Once a day the support matrices that [tpu-inference](https://github.com/vllm-project/tpu-inference) publishes are
compared with those seen last. A feature that a migrated workload gave up (speculative decoding, FP8 on its
generation) and that passes its tests now, or one that was lost again, is an event of the asset
`tpu-inference-support-matrices`: schedule a DAG on it, or read it under Assets. What cannot be read is a warning in
the log, never a change; red after a week of that.

**Whose workloads** are looked at is the Airflow variable `tpu_migration_fleet`, as for `tpu_watch`.

**Where to read** is the variable `tpu_migration_matrices`, for example for a mirror, or a folder:

    {"source": "https://mirror.example/support_matrices", "channel": "release"}

**How often**: the environment variable `TPU_MIGRATION_FEATURES_SCHEDULE` of the DAG processor, a cron expression.
"""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG

from tpu_migration.operators.features import FeatureWatchOperator
from tpu_migration.operators.watch import FindMigratedOperator

with DAG(
    dag_id="tpu_feature_watch",
    schedule=os.environ.get("TPU_MIGRATION_FEATURES_SCHEDULE", "17 5 * * *") or None,
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["tpu", "vllm", "watch"],
    is_paused_upon_creation=True,  # it is of use once the fleet is known
    default_args={"retries": 1, "retry_delay": timedelta(minutes=5)},
) as dag:
    find = FindMigratedOperator(task_id="find")
    FeatureWatchOperator(task_id="compare", items=find.output)
