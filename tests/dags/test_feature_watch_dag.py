"""The feature watch in Airflow: what was seen is kept in a variable, and news alone are events of an asset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowFailException

from tests.unit.cluster import GPU, Cluster, record
from tests.unit.test_feature_watch import publish
from tpu_migration.domain.fleet import EXAMPLE, parse_fleet
from tpu_migration.domain.phases import Phase
from tpu_migration.hooks import migration
from tpu_migration.operators import features
from tpu_migration.operators.features import MATRICES, NEWS, SEEN, SETTING, FeatureWatchOperator

ROOT = Path(__file__).parents[2]


class Events(dict):
    def __init__(self):
        self.emitted = []
        super().__init__({NEWS: self})

    def add(self, asset, extra):
        self.emitted.append((asset, extra))


@pytest.fixture
def variables(monkeypatch, tmp_path):
    """Airflow's variables; as text, as the database keeps them."""
    kept = {SETTING: json.dumps({"source": str(tmp_path)})}
    monkeypatch.setattr(
        features.Variable,
        "get",
        lambda name, default, deserialize_json: json.loads(kept[name]) if name in kept else None,
    )
    monkeypatch.setattr(
        features.Variable, "set", lambda name, value, serialize_json: kept.update({name: json.dumps(value)})
    )
    return kept


@pytest.fixture(autouse=True)
def cluster(monkeypatch):
    made = Cluster()
    monkeypatch.setattr(migration.MigrationHook, "__init__", lambda self, plan: None)
    monkeypatch.setattr(migration.MigrationHook, "kubernetes", lambda self: made.kube)
    made.records.begin(record(Phase.MIGRATED, notes={"gaps": ["speculative_decoding"]}))
    return made


def look():
    place = vars(parse_fleet(json.loads(EXAMPLE))[0])
    items = [{"place": place, "workload": GPU, "trouble": ""}, {"place": place, "workload": "", "trouble": "no answer"}]
    events = Events()
    told = FeatureWatchOperator(task_id="compare", items=items).execute({"outlet_events": events})
    return told, events.emitted


def test_it_is_scheduled_by_one_setting_and_follows_the_finding(monkeypatch):
    monkeypatch.setenv("TPU_MIGRATION_FEATURES_SCHEDULE", "3 4 * * 1")
    dag = DagBag(ROOT / "dags" / "tpu_feature_watch.py").dags["tpu_feature_watch"]
    assert dag.schedule == "3 4 * * 1"
    assert dag.task_dict["find"].downstream_task_ids == {"compare"}


def test_two_versions_of_a_matrix_make_one_event_that_names_the_workload(variables, tmp_path):
    publish(tmp_path)
    assert look() == ([], [])
    publish(tmp_path, ngram="✅ Passing")
    told, ((asset, extra),) = look()
    assert asset == MATRICES
    assert extra["news"] == told
    assert extra["changes"][0]["workloads"] == [f"inference/{GPU}"]
    assert look() == ([], []), "told once"


def test_a_failed_fetch_is_a_warning_and_keeps_what_was_seen(variables, tmp_path):
    publish(tmp_path)
    look()
    seen = variables[SEEN]
    variables[SETTING] = json.dumps({"source": str(tmp_path / "gone")})
    assert look() == ([], [])
    assert variables[SEEN] == seen


def test_a_first_look_that_reads_nothing_is_red_and_keeps_nothing(variables, tmp_path):
    variables[SETTING] = json.dumps({"source": str(tmp_path / "gone")})
    with pytest.raises(AirflowFailException, match=r"never read whole: .*folder .* is not there"):
        look()
    assert SEEN not in variables


@pytest.mark.parametrize("setting", [["x"], {"channel": "beta"}, {"sauce": "x"}])
def test_a_setting_that_cannot_be_meant_is_refused_with_an_example(variables, setting):
    variables[SETTING] = json.dumps(setting)
    with pytest.raises(AirflowFailException, match="tpu_migration_matrices must be like"):
        look()


def test_a_memory_that_cannot_be_read_is_refused(variables, tmp_path):
    publish(tmp_path)
    variables[SEEN] = json.dumps({"schema_version": 9})
    with pytest.raises(AirflowFailException, match=r"tpu_migration_matrices_seen: .*delete"):
        look()
