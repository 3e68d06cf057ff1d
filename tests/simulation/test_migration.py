"""Whole migrations in virtual time: the good one, and those that must go back."""

from __future__ import annotations

import pytest

from sandbox.virtual_engine import EnginePod
from sandbox.workload import NAMESPACE, WORKLOAD
from tests.simulation.harness import Phase, Scene
from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.domain.routing import epoch_annotation
from tpu_migration.restore import restore

TARGET = f"{WORKLOAD}-tpu"


def test_a_migration_moves_users_to_tpu_and_gives_the_gpus_back():
    scene = Scene()
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    assert scene.record.phase is Phase.MIGRATED
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()
    assert "h100-pool" not in scene.pools()
    assert {each.partition("/")[2] for each in scene.leftovers()} == {TARGET}


def test_by_default_the_gpus_are_kept_and_scaled_by_their_own_hpa_again():
    scene = Scene(source_release="keep")
    hpa = scene.world.client.get("horizontalpodautoscalers", NAMESPACE, WORKLOAD)
    assert scene.airflow().run().green
    assert len(scene.world.traffic.ready_engines(WORKLOAD)) == 2
    assert "h100-pool" in scene.pools()
    after = scene.world.client.get("horizontalpodautoscalers", NAMESPACE, WORKLOAD)
    assert after["spec"]["minReplicas"] == hpa["spec"]["minReplicas"]


def test_a_proof_of_concept_measures_and_touches_no_traffic():
    scene = Scene(stop_after="gate")
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    assert scene.record.phase is Phase.PROVEN
    assert scene.record.verdict["outcome"] == "pass"
    route = scene.world.client.get("httproutes", NAMESPACE, WORKLOAD)
    assert epoch_annotation(WORKLOAD) not in (route["metadata"].get("annotations") or {})
    scene.assert_users_on_gpu()
    scene.assert_nothing_left()


def test_a_tpu_too_slow_for_the_gate_is_given_back_and_the_reason_has_numbers():
    scene = Scene()
    scene.world.faults.set("slow-tpu")
    airflow = scene.airflow().run()
    assert not airflow.green
    assert scene.record.phase is Phase.FALLEN_BACK
    assert "TPOT" in scene.record.fallback.reason
    assert "> limit 70 ms" in scene.record.fallback.reason
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()
    scene.assert_nothing_left()


def breaks(scene: Scene) -> None:
    """A target replica dies while it has users."""
    engines = [pod for pod in scene.world.pods.values() if isinstance(pod, EnginePod) and pod.is_tpu]
    for engine in engines:
        engine.dead = True


@pytest.mark.parametrize("percent", [10, 50, 100])
def test_a_target_that_dies_at_any_step_is_left_at_once(percent):
    scene = Scene()
    scene.when_percent(percent, lambda: breaks(scene))
    airflow = scene.airflow().run()
    assert not airflow.green
    assert scene.record.phase is Phase.FALLEN_BACK, airflow.reasons()
    scene.assert_users_on_gpu()
    scene.assert_nothing_left()
    fallback = scene.record.fallback
    assert fallback.route_written - fallback.detected <= 2.0


def test_a_hung_source_replica_takes_everybody_home_before_it_is_too_late():
    scene = Scene()

    def hang_one():
        engine = next(p for p in scene.world.pods.values() if isinstance(p, EnginePod) and not p.is_tpu)
        engine.answer = lambda *_: (503, b"hung")

    scene.when_percent(50, hang_one)
    scene.airflow().run()
    assert scene.record.phase is Phase.FALLEN_BACK
    assert "source replica" in scene.record.fallback.reason


def test_a_person_at_a_terminal_restores_and_the_run_adopts_it():
    scene = Scene()
    kube = Kubernetes(scene.world.transport(lambda *_: None, lambda *_: None))
    scene.when_percent(
        50, lambda: restore(kube, NAMESPACE, WORKLOAD, actor="ada", reason="looks odd", clock=scene.world.clock)
    )
    airflow = scene.airflow().run()
    assert not airflow.green
    assert scene.record.phase is Phase.FALLEN_BACK
    assert scene.record.fallback.reason == "looks odd"
    assert scene.record.fallback.actor == "ada"
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()
    scene.assert_nothing_left()


def test_somebody_who_edits_the_route_is_not_fought_but_named():
    scene = Scene()

    def edit():
        route = scene.world.client.get("httproutes", NAMESPACE, WORKLOAD)
        route["spec"]["rules"][0]["backendRefs"] = [{"name": WORKLOAD, "port": 8000}]
        scene.world.client.update("httproutes", route)

    scene.when_percent(50, edit)
    scene.airflow().run()
    assert scene.record.phase is Phase.FALLEN_BACK
    assert "last written by sandbox" in scene.record.fallback.reason
    scene.assert_users_on_gpu()


def test_a_second_run_is_refused_by_name_and_its_teardown_touches_nothing():
    scene = Scene()
    seen = []

    def try_another():
        other = scene.airflow("run-2").run()
        seen.append((other.reasons(), dict(scene.weights())))

    scene.when_percent(50, try_another)
    first = scene.airflow().run()
    [(reasons, weights)] = seen
    assert "run-1" in reasons
    assert "nothing was changed" in reasons
    assert weights[TARGET] == 50
    assert first.green, first.reasons()
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()


def test_a_new_run_may_follow_one_that_fell_back():
    scene = Scene()
    scene.world.faults.set("slow-tpu")
    scene.airflow("run-1").run()
    scene.world.faults.clear()
    second = scene.airflow("run-2").run()
    assert second.green, second.reasons()
    assert scene.record.epoch > 1
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workload": "vllm-gemma4"}, "there are: tpu-migration-guard, vllm-gemma3-27b"),
        ({"route": "nope"}, "no such HTTPRoute"),
        ({"route": "other"}, "does not point at vllm-gemma3-27b but at somebody-else"),
        ({"peak_rps": 0}, "peak_rps is not given"),
        ({"target_replicas": 1}, "accept_single_replica"),
        ({"policy": "nope"}, "there are: "),
        ({"namespace": "elsewhere"}, "grant the right"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(changes, words):
    scene = Scene()
    scene.world.client.create(
        "httproutes",
        {
            "metadata": {"name": "other", "namespace": NAMESPACE},
            "spec": {"rules": [{"backendRefs": [{"name": "somebody-else", "port": 80}]}]},
        },
    )
    before = snapshot_of(scene)
    airflow = scene.airflow(**changes).run()
    assert words in airflow.reasons()
    assert not airflow.green
    assert snapshot_of(scene) == before


def test_a_namespace_without_a_guard_is_refused():
    scene = Scene()
    scene.world.user = "admin"
    assert "no guard runs in namespace elsewhere" in scene.airflow(namespace="elsewhere").run().reasons()


def snapshot_of(scene: Scene) -> dict[str, list[str]]:
    """Return the names of all objects that a run could make."""
    resources = ("configmaps", "secrets", "deployments", "services", "httproutes", "jobs", "poddisruptionbudgets")
    found = {
        resource: sorted(each["metadata"]["name"] for each in scene.world.client.list(resource, NAMESPACE))
        for resource in resources
    }
    return {**found, "pools": sorted(scene.pools())}


def test_without_a_guard_nothing_begins():
    scene = Scene(guard=False)
    airflow = scene.airflow().run()
    assert "kubectl apply --namespace inference --filename include/manifests/guard.yaml" in airflow.reasons()


def test_a_deployment_without_rights_is_told_which_ones_are_missing():
    scene = Scene()
    scene.world.user = "system:serviceaccount:inference:nobody"
    airflow = scene.airflow().run()
    assert "403" in airflow.reasons()
    assert "include/manifests/rbac.yaml" in airflow.reasons()


def test_a_record_that_somebody_deletes_in_mid_shift_sends_users_home():
    scene = Scene()
    scene.when_percent(
        50, lambda: scene.world.client.delete("configmaps", NAMESPACE, f"tpu-migration-{WORKLOAD}") and None
    )
    airflow = scene.airflow().run()
    assert not airflow.green
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()


def test_a_defect_in_the_keeper_is_a_breach_and_has_a_name(monkeypatch):
    scene = Scene()

    def stumble(*_):
        raise ZeroDivisionError("oops")

    scene.when_percent(50, lambda: monkeypatch.setattr("tpu_migration.domain.watch.Watch.split", stumble))
    airflow = scene.airflow().run()
    assert not airflow.green
    assert scene.record.phase is Phase.FALLEN_BACK
    assert scene.record.fallback.reason == "the keeper cannot go on: oops"
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()
