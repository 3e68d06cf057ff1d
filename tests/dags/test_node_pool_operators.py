"""The node-pool operators as Airflow sees them: light to parse, stored whole, linked to the console, templated."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException
from airflow.serialization.encoders import encode_trigger
from airflow.serialization.serialized_objects import DagSerialization

from tests.dags.test_parsing_is_light import HEAVY
from tpu_migration.operators.kubernetes_engine import (
    GKECreateNodePoolOperator,
    GKEDeleteNodePoolOperator,
    NodePoolError,
)
from tpu_migration.stages.base import Done, Failed
from tpu_migration.triggers.kubernetes_engine import GKENodePoolTrigger, event

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "node-pools.md"
COMMON = {"project_id": "{{ var.value.project }}", "location": "us-west4", "cluster_name": "c"}


def example() -> str:
    """Return the DAG that the documentation shows."""
    (found,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return found


def test_the_example_of_the_documentation_is_a_dag_that_makes_and_always_deletes(tmp_path):
    file = tmp_path / "example.py"
    file.write_text(example())
    script = (
        "import runpy, sys\n"
        "from airflow.sdk import DAG, BaseOperator\n"
        "before = set(sys.modules)\n"
        f"dag = runpy.run_path({str(file)!r})['dag']\n"
        "loaded = [name for name in sys.modules if name not in before]\n"
        "import json\n"
        "print(json.dumps([[[t.task_id, t.task_type, t.is_setup, t.is_teardown] for t in dag.tasks], loaded]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    tasks, loaded = json.loads(done.stdout.splitlines()[-1])
    assert ["make_pool", "GKECreateNodePoolOperator", True, False] in tasks
    assert ["drop_pool", "GKEDeleteNodePoolOperator", False, True] in tasks
    assert "tpu_migration.operators.kubernetes_engine" in loaded
    assert [name for name in loaded if name.startswith(HEAVY)] == [], "parsing loads no client"


@pytest.fixture
def dag():
    with DAG("pools") as made:
        body = {"name": "tpus-{{ ds_nodash }}", "config": {"machine_type": "ct5lp-hightpu-8t"}}
        make = GKECreateNodePoolOperator(task_id="make", body=body, deferrable=True, **COMMON)
        make >> GKEDeleteNodePoolOperator(task_id="drop", node_pool="tpus", **COMMON)
    return made


def test_operators_survive_the_way_through_the_database_with_their_link(dag):
    stored = json.loads(json.dumps(DagSerialization.to_dict(dag)))
    again = DagSerialization.from_dict(stored)
    for task in again.tasks:
        (link,) = task.operator_extra_links
        # What is stored is where the worker writes the link: the UI needs neither a class of ours nor a plugin.
        assert (link.name, link.xcom_key) == ("Kubernetes Node Pool", "_link_KubernetesEngineNodePoolLink")
    assert again.task_dict["make"].body["name"] == "tpus-{{ ds_nodash }}"


def test_names_are_rendered_before_anything_is_asked_for(dag):
    make = dag.task_dict["make"]
    context = {"ds_nodash": "20261125", "var": SimpleNamespace(value=SimpleNamespace(project="p"))}
    make.render_template_fields(context)
    assert (make.node_pool_name, make.project_id) == ("tpus-20261125", "p")
    link = make.operator_extra_links[0].get_link(make, ti_key=None)
    assert link == "https://console.cloud.google.com/kubernetes/nodepool/us-west4/c/tpus-20261125?project=p"
    assert {"body", "gcp_conn_id", "impersonation_chain"} <= set(make.template_fields)


def test_a_link_without_a_project_is_none_rather_than_a_wrong_one(dag):
    make = dag.task_dict["make"]
    make.project_id = None
    assert make.operator_extra_links[0].get_link(make, ti_key=None) == ""


def test_the_trigger_is_stored_as_plain_values():
    trigger = GKENodePoolTrigger({"name": "tpus", "body": {"name": "tpus"}}, {"ours": True})
    stored = json.loads(json.dumps(encode_trigger(trigger)))
    assert stored["classpath"] == f"{GKENodePoolTrigger.__module__}.GKENodePoolTrigger"
    path, kwargs = trigger.serialize()
    assert path == stored["classpath"]
    assert GKENodePoolTrigger(**json.loads(json.dumps(kwargs))).serialize() == (path, kwargs)


@pytest.mark.parametrize(
    ("kind", "error"), [("permanent", AirflowFailException), ("capacity", NodePoolError), ("timeout", NodePoolError)]
)
def test_only_what_another_try_may_mend_is_tried_again(dag, kind, error):
    with pytest.raises(error, match="no stock"):
        dag.task_dict["make"].execute_complete({}, event(Failed("no stock", kind), "p"))


def test_the_task_returns_the_pools_link_in_the_api(dag):
    told = event(Done({"self_link": "https://container.googleapis.com/v1/x"}), "p")
    assert dag.task_dict["make"].execute_complete({}, told) == "https://container.googleapis.com/v1/x"
