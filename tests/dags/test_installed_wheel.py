"""Managed Airflow: with the wheel installed and no plugins folder, the DAGs parse and their triggers come back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.wheel import build_wheel, install_wheel

ROOT = Path(__file__).parents[2]
# Cloud Composer 3 syncs plugins/ to neither scheduler nor triggerer, and include/ to nothing at all.
LOOK = """
import importlib, json, pathlib, sys
import tpu_migration
from airflow.dag_processing.dagbag import DagBag
from airflow.models.trigger import Trigger
from tpu_migration import resources
from tpu_migration.stages import STAGES
from tpu_migration.triggers.answer import AnswerTrigger
from tpu_migration.triggers.stage import StageTrigger
bag = DagBag(sys.argv[1])
rows = [Trigger.from_object(each) for each in (
    StageTrigger("gate", {"workload": "vllm"}, "run", 1, 0.0), AnswerTrigger({"workload": "vllm"}, "run", "shift"))]
print(json.dumps({
    "package": tpu_migration.__file__,
    "errors": bag.import_errors,
    "dags": {dag.dag_id: sorted(dag.task_ids) for dag in bag.dags.values()},
    "triggers": [importlib.import_module(row.classpath.rpartition(".")[0]).__file__ for row in rows],
    "stages": sorted(STAGES),
    "guard": [each["kind"] for each in resources.manifests("guard.yaml")],
    "policy": resources.policy("chat").name,
    "include": str(resources.INCLUDE.resolve()),
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Return a folder with the wheel in it, and nothing else."""
    where = tmp_path_factory.mktemp("wheel")
    return install_wheel(build_wheel(where), where / "site")


@pytest.fixture(scope="module")
def seen(installed, tmp_path_factory):
    """Return what a Python sees that has the wheel, the DAG files and an empty plugins folder."""
    home = tmp_path_factory.mktemp("managed")
    for name in ("plugins", "dags"):
        (home / name).mkdir()
    for file in (ROOT / "dags").glob("*.py"):
        (home / "dags" / file.name).write_text(file.read_text())
    env = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")}
    env |= {
        # The checkout is installed in this environment by a link: what comes first wins.
        "PYTHONPATH": str(installed),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(home / "plugins"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    argv = [sys.executable, "-c", LOOK, str(home / "dags")]
    shown = subprocess.run(argv, cwd=home, env=env, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr[-3000:]
    return json.loads(shown.stdout.splitlines()[-1])


def test_every_dag_parses_from_the_wheel_alone(seen, installed):
    assert seen["errors"] == {}
    assert seen["dags"].keys() == {file.stem for file in (ROOT / "dags").glob("*.py")}
    assert Path(seen["package"]).is_relative_to(installed)


def test_the_triggerer_finds_the_classes_of_its_triggers_in_the_wheel(seen, installed):
    assert len(seen["triggers"]) == 2
    assert all(Path(each).is_relative_to(installed) for each in seen["triggers"])


def test_every_task_of_the_dag_finds_its_stage(seen):
    tasks = set(seen["dags"]["tpu_migration"]) - {"arm"}
    assert {each for each in tasks if not each.startswith("approve_")} <= set(seen["stages"])


def test_manifests_and_policies_come_with_the_wheel_for_nothing_else_brings_them(seen, installed):
    assert Path(seen["include"]).is_relative_to(installed)
    assert "Deployment" in seen["guard"]
    assert seen["policy"] == "chat"


def test_the_wheel_holds_every_file_of_include_and_of_the_package(installed):
    for source, target in (("include", "tpu_migration/include"), ("plugins/tpu_migration", "tpu_migration")):
        there = {
            path.relative_to(ROOT / source)
            for path in (ROOT / source).rglob("*")
            if path.is_file()
            and "__pycache__" not in path.parts
            and "include" not in path.relative_to(ROOT / source).parts
        }
        assert there
        missing = sorted(str(path) for path in there if not (installed / target / path).is_file())
        assert not missing


def test_the_command_line_comes_with_the_wheel(installed):
    entry = next(installed.glob("tpu_migration-*.dist-info/entry_points.txt")).read_text()
    assert "tpu-migration = tpu_migration.cli:main" in entry


def test_the_extra_for_a_managed_airflow_is_what_the_product_requires_less_airflow_itself():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = {*project["dependencies"], *project["optional-dependencies"]["airflow"]}
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    assert extra == {line for line in lines if line and not line.startswith("apache-airflow>")}
