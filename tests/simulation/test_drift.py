"""A migrated workload is looked after: drift is told with who caused it, and users are never left to nobody."""

from __future__ import annotations

import pytest

from sandbox.workload import NAMESPACE, ORCHESTRATOR, WORKLOAD
from tests.simulation.harness import Phase, Scene
from tpu_migration.drift import drifts, serve_users, to_look_after

TARGET = f"{WORKLOAD}-tpu"


def migrated(**plan) -> Scene:
    scene = Scene(**{"source_release": "delete-pool", **plan})
    assert scene.airflow().run().green
    scene.assert_users_on_tpu()
    return scene


@pytest.fixture
def scene() -> Scene:
    return migrated()


def told(scene: Scene) -> str:
    return "; ".join(drifts(scene.client(ORCHESTRATOR), scene.record))


def served(scene: Scene) -> str:
    return serve_users(scene.client(ORCHESTRATOR), scene.record, "tpu_watch", scene.world.clock)


def test_what_is_as_it_was_proven_raises_no_alarm_and_is_not_touched(scene):
    version = scene.world.api.store.version
    assert to_look_after(scene.client(ORCHESTRATOR), NAMESPACE) == [WORKLOAD]
    assert told(scene) == ""
    assert served(scene) == ""
    assert scene.world.api.store.version == version


def test_gpus_that_were_kept_raise_no_alarm():
    scene = migrated(source_release="keep")
    assert told(scene) == ""
    assert served(scene) == ""


def test_a_workload_on_gpus_is_not_looked_after():
    scene = Scene(stop_after="gate")
    scene.airflow().run()
    assert scene.record.phase is Phase.PROVEN
    assert to_look_after(scene.client(ORCHESTRATOR), NAMESPACE) == []


def test_an_old_route_put_back_weeks_later_is_undone_once_users_meet_nobody_and_its_owner_is_named(scene):
    traffic = scene.world.traffic
    rate_rps, traffic.rate_rps = traffic.rate_rps, 0.0  # ten million requests would show no more
    scene.world.advance(14 * 86_400.0, tick_s=43_200.0)
    traffic.rate_rps = rate_rps
    scene.world.faults.set("gitops", {"after_s": 1.0})
    scene.world.advance(5.0)
    scene.world.faults.clear("gitops")
    said = told(scene)
    assert f"gives {TARGET} 0 %, the safe route gives it 100 %" in said
    assert "argocd" in said
    assert "Argo CD owns it: put the new weights into its declared state" in said
    assert "users were sent to where nobody is ready" in served(scene)
    scene.assert_users_on_tpu()
    assert served(scene) == ""


def test_an_old_route_put_back_while_the_gpus_still_serve_is_told_and_not_fought():
    scene = migrated(source_release="keep")
    scene.world.faults.set("gitops", {"after_s": 1.0})
    scene.world.advance(15.0)
    scene.world.faults.clear("gitops")
    assert "If they mean it, go back with the DAG gpu_fallback" in told(scene)
    assert served(scene) == ""
    assert scene.weights()[WORKLOAD] > 0
    # Whoever takes a backend out of its only route cuts what streams on it: that is what they did, and nobody else.
    assert [each for each in scene.world.traffic.violations if f"streams ended with {TARGET}" not in each.what] == []


def test_a_route_that_is_gone_is_made_again(scene):
    scene.world.client.delete("httproutes", NAMESPACE, WORKLOAD)
    assert told(scene) == f"HTTPRoute {WORKLOAD} is gone: somebody deleted it"
    assert served(scene) != ""
    scene.assert_users_on_tpu()


def test_an_edited_target_is_not_what_was_measured(scene):
    target = scene.world.client.get("deployments", NAMESPACE, TARGET)
    target["spec"]["template"]["spec"]["containers"][0]["image"] = "vllm/vllm-tpu:nightly"
    scene.world.client.update("deployments", target)
    assert "is not the one that passed the gate: its pod template was changed, last by" in told(scene)


def test_a_target_that_lost_replicas_or_its_budget_is_told(scene):
    one = {"spec": {"replicas": 1}}
    scene.world.client.patch("deployments", NAMESPACE, TARGET, one, subresource="scale")
    for each in scene.world.client.list("poddisruptionbudgets", NAMESPACE):
        scene.world.client.delete("poddisruptionbudgets", NAMESPACE, each["metadata"]["name"])
    scene.world.advance(30.0)
    said = told(scene)
    assert f"Deployment {TARGET} has 1 ready replicas of 1, the plan's 2 were proven to carry the peak" in said
    assert f"no PodDisruptionBudget covers the pods of {TARGET}" in said


def test_gpus_that_come_back_to_life_cost_and_are_told(scene):
    two = {"spec": {"replicas": 2}}
    scene.world.client.patch("deployments", NAMESPACE, WORKLOAD, two, subresource="scale")
    assert f"Deployment {WORKLOAD} was given up and asks for 2 replicas again" in told(scene)


def test_a_target_that_was_deleted_is_told_with_the_way_back(scene):
    scene.world.client.delete("deployments", NAMESPACE, TARGET)
    assert f"Deployment {TARGET} is gone" in told(scene)
    assert "DAG gpu_fallback" in told(scene)
