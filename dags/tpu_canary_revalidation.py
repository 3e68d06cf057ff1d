"""
### Try migrated workloads again

Each workload of the fleet that is on TPU for good is measured again beside its users: the gate's requests at a few
per cent of its peak, held to the policy's limits and to what was measured when it passed. What has changed around it
is told, too: image, version, model, compiles, restarts, price, and whatever creeps towards its limit.

| task | what it does |
|---|---|
| `find` | reads the records of the fleet |
| `canary` | measures one workload; red: it failed twice in a row, or nothing could be decided for three canaries |
| `go_back` | starts `gpu_fallback` for one that failed, or asks people there first, as its place says |

Users come first: they are watched before and during the load, which ends at once when they feel it; and the canary
is gone as soon as anybody moves them.

**Where it looks** is the Airflow variable `tpu_migration_fleet`; `on_fail` (`ask`, `auto` or `alert`) and `blackouts`
belong to each of its entries:

    [{"project_id": "my-project", "location": "us-central1-a", "cluster": "inference", "namespaces": ["inference"],
      "on_fail": "ask",
      "blackouts": [{"start": "2026-11-26T00:00:00-08:00", "hours": 96, "recurrence": "FREQ=YEARLY"}]}]

**How often**: the environment variable `TPU_MIGRATION_CANARY_SCHEDULE` of the DAG processor, a cron expression; every
six hours by default.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, task_group

from tpu_migration.operators.canary import CanaryOperator, GoBackOperator
from tpu_migration.operators.watch import FindMigratedOperator

with DAG(
    dag_id="tpu_canary_revalidation",
    schedule=os.environ.get("TPU_MIGRATION_CANARY_SCHEDULE", "41 */6 * * *") or None,
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["tpu", "vllm", "canary"],
    is_paused_upon_creation=True,  # it is of use once the fleet is known
    default_args={"retries": 2, "retry_delay": timedelta(seconds=5)},
) as dag:
    find = FindMigratedOperator(task_id="find")

    @task_group  # type: ignore[untyped-decorator]
    def workload(item: Any) -> None:
        """Hold what is done for one workload: it waits for none of its neighbours."""
        canary = CanaryOperator(task_id="canary", item=item, map_index_template="{{ task.item['workload'] }}")
        # A teardown: it runs after a canary that failed, and leaves the run as red as that made it.
        (
            canary
            >> GoBackOperator(
                task_id="go_back", item=item, map_index_template="{{ task.item['workload'] }}"
            ).as_teardown()
        )

    workload.expand(item=find.output)
