"""Measure what the pipeline adds to its own waits, against what Airflow takes for a chain of as many tasks."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
from datetime import datetime
from pathlib import Path

from sandbox.airflow import Airflow
from sandbox.stand import DAG_ID, Stand
from tests.bench.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
LIMIT, CHAINS = 1.0, 3
_RUN_S = 900.0


def airflow_overhead() -> Figure:
    """Divide a whole migration's time, less what its stages waited for, by a bare chain's, in the same Airflow."""
    return Figure("airflow_overhead", round(asyncio.run(_measure()), 3), "of a bare chain", LIMIT)


async def _measure() -> float:
    with tempfile.TemporaryDirectory() as temporary:
        dags = Path(temporary) / "dags"
        shutil.copytree(ROOT / "dags", dags)
        shutil.copy(ROOT / "tests/bench/dags/bare_chain.py", dags)
        async with Stand(Path(temporary) / "stand", dags=dags) as stand:
            airflow = stand.airflow
            await airflow.start()
            chains = [await _seconds(airflow, "bare_chain", f"before-{number}", {}) for number in range(CHAINS)]
            # Few users: what is measured is the pipeline, not two cores that also are a fleet.
            await stand.start_users(rate=1.0)
            whole_s = await _seconds(airflow, DAG_ID, "whole", stand.conf(peak_rps=2))
            tasks = _ends(airflow, "whole")
            chains += [await _seconds(airflow, "bare_chain", f"after-{number}", {}) for number in range(CHAINS)]
            record = await stand.record()
    if record is None or record.phase != "migrated":
        raise RuntimeError(f"the migration did not end well: {record and record.fallback}")
    waited_s = sum(stage.waited for stage in record.stages)
    bare_s = statistics.median(chains)
    took = ", ".join(f"{each:.1f}" for each in sorted(chains))
    print(f"  a migration of {whole_s:.1f} s waited for {waited_s:.1f} s; bare chains took {took} s")
    waits = {stage.stage: stage.waited for stage in record.stages}
    ends = list(tasks.values())
    for (stage, ended), before in zip(list(tasks.items())[1:], ends, strict=False):
        took_s, wait_s = (ended - before).total_seconds(), waits.get(stage, 0.0)
        print(f"  {stage}: {took_s:.1f} s since the task before, {wait_s:.1f} of them waits, {took_s - wait_s:.1f} not")
    return (whole_s - waited_s) / bare_s


def _ends(airflow: Airflow, run_id: str) -> dict[str, datetime]:
    """Return when each task of the chain ended, in that order."""
    query = "SELECT task_id, end_date FROM task_instance WHERE dag_id = ? AND run_id = ? ORDER BY end_date"
    found = airflow.rows(query, (DAG_ID, run_id))
    return {task: datetime.fromisoformat(str(end)) for task, end in found if not task.startswith("approve_")}


async def _seconds(airflow: Airflow, dag_id: str, run_id: str, conf: dict[str, object]) -> float:
    """Return how long a run took by Airflow's own clock."""
    await airflow.trigger_by_api(dag_id, conf, run_id=run_id)
    if (state := await airflow.wait_for_run(dag_id, run_id, _RUN_S)) != "success":
        raise RuntimeError(f"{dag_id} {run_id} is {state}: {airflow.task_states(dag_id, run_id)}")
    query = "SELECT start_date, end_date FROM dag_run WHERE dag_id = ? AND run_id = ?"
    began, ended = (datetime.fromisoformat(str(each)) for each in airflow.rows(query, (dag_id, run_id))[0])
    return (ended - began).total_seconds()
