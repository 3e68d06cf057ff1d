"""The Airflow that the demo and the tests run on: its settings, without starting it."""

from __future__ import annotations

import json
import sqlite3

import pytest

from sandbox.airflow import COMPONENTS, Airflow
from sandbox.airflow_records import AirflowRecords
from sandbox.airflow_settings import (
    FLEET,
    GOOGLE_CONNECTION,
    Layout,
    Secrets,
    environment,
    google_environment,
    options,
)
from tpu_migration.domain.fleet import parse_fleet


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "home", tmp_path / "dags", tmp_path / "plugins", 45_678)


def built(layout, base=None, extra=None, keys=None):
    return environment(layout, keys or Secrets(), parallelism=3, base=base or {}, extra=extra or {})


def test_settings_of_the_machines_own_airflow_do_not_leak_in(layout):
    env = built(layout, base={"AIRFLOW_HOME": "/elsewhere", "AIRFLOW__CORE__EXECUTOR": "X", "PATH": "/bin"})
    assert env["AIRFLOW_HOME"] == str(layout.home)
    assert env["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert env["PATH"] == "/bin"


def test_what_the_caller_sets_wins(layout):
    env = built(layout, extra={"AIRFLOW__CORE__PARALLELISM": "9", "MARK": "1"})
    assert env["AIRFLOW__CORE__PARALLELISM"] == "9"
    assert env["MARK"] == "1"


def test_everything_stays_on_the_loopback_address_and_in_its_own_folder(layout):
    env = built(layout)
    assert env["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert env["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:45678/execution/"
    assert env["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].startswith(f"sqlite:///{layout.home}/airflow.db?")
    serving = [c for c in ("scheduler", "triggerer") if "--skip-serve-logs" not in COMPONENTS[c]]
    assert serving == [], "a log server would listen on all interfaces"


def test_two_airflows_share_no_secret(layout):
    first, second = built(layout), built(layout)
    for name in ("CORE__FERNET_KEY", "API__SECRET_KEY", "API_AUTH__JWT_SECRET"):
        assert first[f"AIRFLOW__{name}"] != second[f"AIRFLOW__{name}"]


def test_every_option_is_one_that_this_airflow_knows(layout):
    description = pytest.importorskip("airflow.configuration", reason="Airflow is not installed")
    known = description.retrieve_configuration_description(include_providers=False)
    ours = {(s, o) for s, values in options(layout, Secrets(), 4).items() for o in values}
    unknown = {(s, o) for s, o in ours if o not in known.get(s, {}).get("options", {})}
    assert unknown == set()


def test_the_google_connection_carries_the_key_and_the_endpoint_and_the_fleet_the_place(tmp_path):
    key = {"type": "service_account", "token_uri": "http://127.0.0.1:1/token"}
    (tmp_path / "key.json").write_text(json.dumps(key))
    state = {
        "project": "demo",
        "location": "us-west4",
        "cluster": "sandbox",
        "namespace": "inference",
        "service_account_key_file": str(tmp_path / "key.json"),
        "gke_endpoint": "localhost:4443",
        "ca_file": str(tmp_path / "ca.crt"),
    }
    env = google_environment(state)
    connection = json.loads(env[GOOGLE_CONNECTION])
    assert connection["conn_type"] == "google_cloud_platform"
    assert connection["extra"] == {
        "project": "demo",
        "keyfile_dict": key,
        "api_endpoint": "localhost:4443",
        "resource_manager_endpoint": "http://127.0.0.1:1",
    }
    (place,) = parse_fleet(json.loads(env[FLEET]))
    assert (place.project_id, place.cluster, place.namespace) == ("demo", "sandbox", "inference")
    assert env["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"] == str(tmp_path / "ca.crt")


async def test_nothing_runs_before_start_and_close_is_harmless_then(tmp_path):
    airflow = Airflow(tmp_path / "airflow", dags=tmp_path)
    assert airflow.running() == set()
    await airflow.close()


def test_records_are_read_while_no_airflow_runs(tmp_path):
    path = tmp_path / "airflow.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE dag_run (dag_id, run_id, state)")
        db.execute("CREATE TABLE task_instance (dag_id, run_id, task_id, map_index, state, start_date)")
        db.execute("INSERT INTO dag_run VALUES ('d', 'r', 'failed')")
        rows = [("a", -1, "success", "1"), ("m", 0, "failed", "2"), ("z", -1, None, None)]
        db.executemany("INSERT INTO task_instance VALUES ('d', 'r', ?, ?, ?, ?)", rows)
    db.close()
    records = AirflowRecords(path, tmp_path)
    assert records.run_state("d", "r") == "failed"
    assert records.run_state("d", "other") is None
    assert records.task_states("d", "r") == {"a": "success", "m[0]": "failed", "z": None}


def test_the_log_of_a_task_holds_all_its_tries(tmp_path):
    folder = tmp_path / "dag_id=d" / "run_id=r" / "task_id=t"
    folder.mkdir(parents=True)
    (folder / "attempt=1.log").write_text("first")
    (folder / "attempt=2.log").write_text("second")
    assert AirflowRecords(tmp_path / "x.db", tmp_path).task_log("d", "r", "t") == "first\nsecond"
