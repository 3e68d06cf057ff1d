"""deploy_all where only its own stacks serve: it touches nothing of others, and turns users to what serves."""

from __future__ import annotations

import pytest
from google.cloud import container_v1

from sandbox.workload import NAMESPACE, WORKLOAD
from sandbox.world import ZONE
from tests.simulation.deploying import (
    TPU,
    backends,
    calls_of,
    deploy,
    new_cluster,
    on_tpu,
)
from tests.simulation.harness import Calls, Killed


@pytest.mark.parametrize(("words", "service"), [((), TPU), (("--accelerator", "gpu"), WORKLOAD)])
def test_a_cluster_that_serves_nobody_gets_the_whole_stack(words, service, capsys):
    scene = new_cluster()
    assert deploy(scene, *words) == 0
    assert f"users are served by {service}" in capsys.readouterr().out
    assert backends(scene) == {service: 1}
    assert len(scene.world.traffic.ready_engines(service)) == 2


def test_from_a_tpu_stack_back_to_gpus_users_move_only_when_those_are_ready_and_a_migration_may_follow():
    scene = new_cluster()
    assert deploy(scene) == 0
    scene.world.advance(60.0)
    scene.world.traffic.violations.clear()
    seen = []
    scene.when(
        lambda: backends(scene).get(WORKLOAD, 0) > 0,
        lambda: seen.append(len(scene.world.traffic.ready_engines(WORKLOAD))),
    )
    assert deploy(scene, "--accelerator", "gpu") == 0
    assert seen == [2]
    assert backends(scene) == {WORKLOAD: 1}
    assert [name for name in scene.pools() if "v5e" in name] == []
    assert scene.world.client.get("services", NAMESPACE, TPU) is None
    scene.assert_nobody_noticed()
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    scene.assert_nobody_noticed()


@pytest.mark.parametrize("part", range(1, 8))
def test_an_exchange_of_stacks_that_is_cut_off_is_finished_by_the_same_command(part):
    scene, word = on_tpu(), "--accelerator=gpu"
    with pytest.raises(Killed):
        deploy(scene, word, calls=Calls(kill_at=calls_of(on_tpu, word) * part // 8))
    assert deploy(scene, word) == 0
    assert backends(scene) == {WORKLOAD: 1}
    assert len(scene.pools()) == 3
    scene.assert_nobody_noticed()


def test_what_others_wrote_into_the_route_stays_when_users_go_back_to_gpus():
    scene = new_cluster()
    assert deploy(scene) == 0
    route = scene.world.client.get("httproutes", NAMESPACE, WORKLOAD)
    theirs = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/docs"}}],
        "backendRefs": [{"name": "d", "port": 1}],
    }
    route["spec"]["rules"].insert(0, theirs)
    route["spec"]["rules"][1]["timeouts"] = {"request": "600s"}
    scene.world.client.update("httproutes", route)
    assert deploy(scene, "--accelerator=gpu") == 0
    rules = scene.world.client.get("httproutes", NAMESPACE, WORKLOAD)["spec"]["rules"]
    assert rules[0]["backendRefs"][0]["name"] == "d"
    assert rules[1]["timeouts"] == {"request": "600s"}
    assert [ref["name"] for ref in rules[1]["backendRefs"]] == [WORKLOAD]


def test_a_route_that_sends_users_elsewhere_is_left_as_it_is(capsys):
    scene = new_cluster()
    theirs = {"parentRefs": [{"name": "inference-gateway"}], "rules": [{"backendRefs": [{"name": "other", "port": 1}]}]}
    scene.world.client.create("httproutes", {"metadata": {"name": WORKLOAD, "namespace": NAMESPACE}, "spec": theirs})
    assert deploy(scene, "--accelerator=gpu") == 0
    assert f"users stay where HTTPRoute {WORKLOAD} sends them: other" in capsys.readouterr().out
    assert list(backends(scene)) == ["other"]


def test_a_missing_token_is_told_before_anything_is_made(capsys):
    scene = new_cluster()
    scene.world.client.delete("secrets", NAMESPACE, "huggingface")
    assert deploy(scene) == 1
    assert "Secret huggingface with key token is not in namespace" in capsys.readouterr().out
    assert scene.pools() == {"default-pool", "h100-pool"}


def test_an_object_of_somebody_else_is_named_before_anything_is_made(capsys):
    scene = new_cluster()
    theirs = {"selector": {"app": "other"}, "ports": [{"name": "http", "port": 8000, "targetPort": 9}]}
    scene.world.client.create("services", {"metadata": {"name": TPU, "namespace": NAMESPACE}, "spec": theirs})
    assert deploy(scene) == 1
    assert f"Service {TPU} is in namespace {NAMESPACE} already" in capsys.readouterr().out
    assert scene.world.client.get("services", NAMESPACE, TPU)["spec"]["selector"] == {"app": "other"}
    assert scene.pools() == {"default-pool", "h100-pool"}


def test_a_node_pool_of_somebody_else_is_named_and_not_used(capsys):
    scene = new_cluster()
    name = f"{WORKLOAD}-v5e-8"
    config = container_v1.NodeConfig(machine_type="ct5lp-hightpu-8t")
    scene.world.gke.add_running_pool(
        container_v1.NodePool(name=name, initial_node_count=2, config=config, locations=[ZONE])
    )
    assert deploy(scene) == 1
    assert f"node pool {name} is there already" in capsys.readouterr().out
    assert scene.world.client.get("deployments", NAMESPACE, TPU) is None


def test_a_stack_that_somebody_changed_by_hand_is_not_written_over(capsys):
    scene = new_cluster()
    assert deploy(scene) == 0
    service = scene.world.client.get("services", NAMESPACE, TPU)
    service["spec"]["ports"][0]["targetPort"] = 9
    scene.world.client.update("services", service)
    assert deploy(scene) == 1
    assert f"Service {TPU} was changed by somebody else" in capsys.readouterr().out
    assert scene.world.client.get("services", NAMESPACE, TPU)["spec"]["ports"][0]["targetPort"] == 9


@pytest.mark.parametrize("accelerator", ["tpu", "gpu"])
@pytest.mark.parametrize("part", range(1, 6))
def test_a_new_stack_that_is_cut_off_is_finished_by_the_same_command_with_one_pool(part, accelerator):
    word = f"--accelerator={accelerator}"
    scene = new_cluster()
    with pytest.raises(Killed):
        deploy(scene, word, calls=Calls(kill_at=calls_of(new_cluster, word) * part // 6, after=bool(part % 2)))
    assert deploy(scene, word) == 0
    assert len(scene.pools()) == 3
    assert backends(scene) == {TPU if accelerator == "tpu" else WORKLOAD: 1}
