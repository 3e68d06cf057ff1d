"""What brings users home goes first, and waits on a queue of its own where one is named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization

from tpu_migration.operators.urgent import QUEUE_VARIABLE, urgent

ROOT = Path(__file__).parents[2]
URGENT = {("gpu_fallback", "ask"), ("tpu_migration", "restore"), ("gpu_fallback", "gpu_fallback")}


def tasks():
    return {(dag.dag_id, task.task_id): task for dag in DagBag(ROOT / "dags").dags.values() for task in dag.tasks}


@pytest.fixture
def named(monkeypatch):
    monkeypatch.setenv(QUEUE_VARIABLE, "tpu-migration-urgent")
    return tasks()


def test_only_what_brings_users_home_is_on_the_urgent_queue(named):
    assert {key for key, task in named.items() if task.queue == "tpu-migration-urgent"} == URGENT
    assert {task.queue for key, task in named.items() if key not in URGENT} == {"default"}


@pytest.mark.parametrize("setting", [None, ""])
def test_without_a_name_everything_is_on_the_queue_that_every_worker_serves(monkeypatch, setting):
    monkeypatch.delenv(QUEUE_VARIABLE, raising=False)
    if setting is not None:
        monkeypatch.setenv(QUEUE_VARIABLE, setting)
    assert "queue" not in urgent()
    assert {task.queue for task in tasks().values()} == {"default"}, (
        "a queue that nobody serves would end every restore"
    )


def test_the_scheduler_prefers_them_to_any_stage_where_slots_are_scarce():
    """Airflow's own rule would let each stage go first: a task weighs as much as all that come after it."""
    weights = {}
    for dag in DagBag(ROOT / "dags").dags.values():
        stored = DagSerialization.from_dict(DagSerialization.to_dict(dag))  # as the scheduler reads it
        for task in stored.tasks:
            if task.task_type == "EmptyOperator":
                continue  # the scheduler itself completes it
            weights[dag.dag_id, task.task_id] = task.weight_rule.get_weight(SimpleNamespace(task=task))
    assert min(weights[key] for key in URGENT) > max(w for key, w in weights.items() if key not in URGENT)
