"""The watch over migrated workloads: it finds them in the fleet, and each has an alarm of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowFailException

from tests.unit.cluster import GPU, NAMESPACE, TPU, Cluster, record
from tpu_migration.domain.fleet import EXAMPLE, FleetError, parse_fleet
from tpu_migration.domain.phases import Phase
from tpu_migration.errors import TransientError
from tpu_migration.hooks import migration
from tpu_migration.operators import watch
from tpu_migration.operators.watch import FindMigratedOperator, WatchOperator

ROOT = Path(__file__).parents[2]
FLEET = json.loads(EXAMPLE)
CONTEXT = {"run_id": "scheduled__1"}


@pytest.fixture
def cluster(monkeypatch):
    made = Cluster()
    monkeypatch.setattr(migration.MigrationHook, "__init__", lambda self, plan: None)
    monkeypatch.setattr(migration.MigrationHook, "kubernetes", lambda self: made.kube)
    return made


@pytest.fixture
def fleet(monkeypatch):
    def use(value):
        monkeypatch.setattr(watch.Variable, "get", lambda name, **_: value)

    use(FLEET)
    return use


def find():
    return FindMigratedOperator(task_id="find").execute(CONTEXT)


def look(item):
    return WatchOperator(task_id="watch", item=item).execute(CONTEXT)


# --------------------------------------------------------------------------------------- wiring


def test_one_task_a_workload_follows_the_finding():
    dag = DagBag(ROOT / "dags").dags["tpu_watch"]
    assert dag.task_dict["watch"].is_mapped
    assert dag.task_dict["find"].downstream_task_ids == {"watch"}
    assert dag.max_active_runs == 1
    assert not dag.catchup


def test_the_schedule_is_one_setting(monkeypatch):
    monkeypatch.setenv("TPU_MIGRATION_WATCH_SCHEDULE", "17 * * * *")
    assert DagBag(ROOT / "dags" / "tpu_watch.py").dags["tpu_watch"].schedule == "17 * * * *"
    monkeypatch.setenv("TPU_MIGRATION_WATCH_SCHEDULE", "")
    assert not DagBag(ROOT / "dags" / "tpu_watch.py").dags["tpu_watch"].timetable.can_be_scheduled


# --------------------------------------------------------------------------------------- finding


def test_migrated_workloads_are_found_and_others_are_not(cluster, fleet):
    assert find() == []
    cluster.records.begin(record(Phase.MIGRATED))
    (found,) = find()
    assert found["workload"] == GPU
    assert found["place"]["namespace"] == NAMESPACE
    cluster.records.force(lambda r: record(Phase.FALLEN_BACK))
    assert find() == []


def test_a_cluster_that_does_not_answer_hides_no_other_and_has_an_alarm_of_its_own(cluster, fleet, monkeypatch):
    fleet([*FLEET, {**FLEET[0], "cluster": "elsewhere"}])
    cluster.records.begin(record(Phase.MIGRATED))
    calls = []

    def kubernetes(self):
        calls.append(self)
        if len(calls) == 1:
            raise TransientError("the GKE API does not answer")
        return cluster.kube

    monkeypatch.setattr(migration.MigrationHook, "kubernetes", kubernetes)
    silent, found = find()
    assert found["workload"] == GPU
    with pytest.raises(AirflowFailException, match="could not be looked at: the GKE API does not answer"):
        look(silent)


@pytest.mark.parametrize("value", [None, [], "inference"])
def test_without_a_fleet_it_says_how_to_give_one(cluster, fleet, value):
    fleet(value)
    with pytest.raises(AirflowFailException, match=r'tpu_migration_fleet .*"namespaces"'):
        find()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"cluster": "a"}, "entry 1: .*location.* is missing or not known"),
        ({**FLEET[0], "namespace": "x"}, r"entry 1: \['namespace'\] is missing or not known"),
        ({**FLEET[0], "namespaces": "inference"}, "must be a list of names"),
        ({**FLEET[0], "cluster": "Not A Name"}, "entry 1: cluster='Not A Name' is no valid name"),
        ("inference", "entry 1: inference is missing"),
    ],
)
def test_a_fleet_that_cannot_be_meant_is_refused_naming_entry_and_field(entry, words):
    with pytest.raises(FleetError, match=words):
        parse_fleet([entry])


def test_each_namespace_is_a_place():
    places = parse_fleet([{**FLEET[0], "namespaces": ["a", "b"], "gcp_conn_id": "other"}])
    assert [(each.namespace, each.gcp_conn_id) for each in places] == [("a", "other"), ("b", "other")]


# -------------------------------------------------------------------------------------- watching


def item(cluster, phase=Phase.MIGRATED):
    cluster.records.begin(record(phase))
    return {"place": vars(parse_fleet(FLEET)[0]), "workload": GPU, "trouble": ""}


def test_what_has_drifted_makes_the_task_red_with_all_of_it(cluster):
    cluster.give_route({GPU: 0, TPU: 100})
    cluster.give_endpoints(TPU, 2)
    with pytest.raises(AirflowFailException, match=f"{GPU} in namespace {NAMESPACE} .*Deployment {TPU} is gone"):
        look(item(cluster))


def test_users_who_are_sent_to_nobody_are_sent_to_the_safe_route(cluster):
    cluster.give_route({GPU: 100, TPU: 0})
    cluster.give_endpoints(TPU, 2)
    with pytest.raises(
        AirflowFailException, match="users were sent to where nobody is ready, and are sent to the safe"
    ):
        look(item(cluster))
    weights = {ref["name"]: ref["weight"] for ref in cluster.route()["spec"]["rules"][0]["backendRefs"]}
    assert weights[TPU] > 0
    assert not weights.get(GPU)


def test_a_workload_that_went_back_meanwhile_is_left_alone(cluster):
    assert look(item(cluster, Phase.FALLEN_BACK)) == "it is not on TPU any more"
