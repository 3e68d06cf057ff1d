"""Let the tasks that bring users home wait behind nothing."""

from __future__ import annotations

import os
from typing import Any

QUEUE_VARIABLE = "TPU_MIGRATION_URGENT_QUEUE"
_AHEAD = 1000  # a stage weighs 1


def urgent() -> dict[str, Any]:
    """Return the arguments of an operator whose task goes first.

    The scheduler prefers it where slots are scarce. The environment variable TPU_MIGRATION_URGENT_QUEUE of the DAG
    processor names a queue of its own, which a worker of its own must serve (Celery, Kubernetes); without it the
    task is on Airflow's default queue.
    """
    queue = os.environ.get(QUEUE_VARIABLE)
    return {"priority_weight": _AHEAD, **({"queue": queue} if queue else {})}
