"""Defer each task of a run to the trigger of one migration, as a worker would have: run in Airflow's environment.

`python -m tests.prove.deferred_rows STATE_FILE RUN_ID`
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import select

from tests.prove.served_migrations import RUN, STAGE_OF
from tests.prove.timed_trigger import CLASSPATH

_LONG_S = 7200.0
_ATTEMPT = 100  # newer than whoever made the copied objects


def main(state_file: Path, run_id: str) -> None:
    """Write the rows."""
    state = json.loads(state_file.read_text())
    with create_session() as session:
        tasks = session.scalars(select(TaskInstance).where(TaskInstance.run_id == run_id).order_by("task_id")).all()
        for task, (namespace, kind) in zip(tasks, state["kinds"].items(), strict=True):
            trigger = Trigger(
                classpath=CLASSPATH,
                kwargs={
                    "stage": STAGE_OF[kind],
                    "params": state["plans"][namespace],
                    "run_id": RUN,
                    "attempt": _ATTEMPT,
                    "deadline": time.time() + _LONG_S,
                },
            )
            session.add(trigger)
            session.flush()
            task.trigger_id, task.state, task.next_method = trigger.id, TaskInstanceState.DEFERRED, "resume"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
