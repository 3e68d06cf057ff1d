"""Read an Airflow's database and logs, without needing any of its processes."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any


class AirflowRecords:
    """What an Airflow of SQLite has written down: runs, tasks, import errors, logs.

    Reads the files themselves, read-only, so that it works while Airflow is dead.
    """

    def __init__(self, database: Path, logs: Path) -> None:
        self.database = database
        self.logs = logs

    def rows(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a read-only query on Airflow's database."""
        address = f"file:{self.database}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=10)) as connection:
            return connection.execute(query, values).fetchall()

    def run_state(self, dag_id: str, run_id: str) -> str | None:
        """Return queued, running, success or failed; None if there is no such run."""
        found = self.rows("SELECT state FROM dag_run WHERE dag_id = ? AND run_id = ?", (dag_id, run_id))
        return found[0][0] if found else None

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """Return {task id: state} (None: not scheduled yet); mapped tasks as "id[index]"."""
        query = (
            "SELECT task_id, map_index, state FROM task_instance WHERE dag_id = ? AND run_id = ? "
            "ORDER BY start_date IS NULL, start_date, task_id, map_index"
        )
        found = self.rows(query, (dag_id, run_id))
        return {task if index < 0 else f"{task}[{index}]": state for task, index, state in found}

    def import_errors(self) -> dict[str, str]:
        """Return {file: traceback} of the DAG files that cannot be parsed."""
        return dict(self.rows("SELECT filename, stacktrace FROM import_error"))

    def task_log(self, dag_id: str, run_id: str, task_id: str) -> str:
        """Return the log of a task, all its tries one after the other."""
        folder = self.logs / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
        return "\n".join(path.read_text(errors="replace") for path in sorted(folder.rglob("*.log*")))
