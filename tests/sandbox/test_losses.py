"""Machines that die, and what Kubernetes makes of it, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest
from google.cloud import container_v1 as gke

from sandbox.api import Api, LocalClient
from sandbox.clock import VirtualClock
from sandbox.controllers import Manager
from sandbox.faults import Faults
from sandbox.gke.core import GkeCloud
from sandbox.gke.losses import SILENCE_S
from sandbox.gke.nodes import LocalNodes
from sandbox.power import ends_pods_within_s, is_off

CLUSTER = "projects/p/locations/us-west4/clusters/c"
EVICTED_AFTER_S = 300
Object = dict[str, Any]


class World:
    """Three TPU nodes and two H100 nodes, a Deployment on the TPUs, a Service before it; pods are ready at once."""

    def __init__(self, faults: Faults, speed: float = 1.0) -> None:
        self.clock = VirtualClock()
        self.faults = faults
        self.api = Api(self.clock)
        self.client = LocalClient(self.api)
        self.manager = Manager(self.api, self.clock, speed)
        nodes = LocalNodes(self.client)
        self.gke = GkeCloud(self.clock, nodes, project="p", cluster="c", faults=faults, speed=speed)
        for name, machine, count in (("tpu", "ct5lp-hightpu-8t", 3), ("h100", "a3-highgpu-1g", 2)):
            config = gke.NodeConfig(machine_type=machine)
            self.gke.add_running_pool(gke.NodePool(name=name, initial_node_count=count, config=config))
        toleration = {"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}
        container = {"name": "main", "image": "x:1", "resources": {"limits": {"google.com/tpu": "8"}}}
        spec = {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [container], "tolerations": [toleration]},
            },
        }
        meta = {"name": "web", "namespace": "default"}
        self.client.create("deployments", {"metadata": meta, "spec": spec})
        self.client.create(
            "services", {"metadata": meta, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}
        )
        self.run(2)

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.clock.advance(1)
            self.gke.tick()
            self.manager.settle()
            self._kubelets()
            self.manager.settle()

    def _kubelets(self) -> None:
        for pod in self.pods():
            node = self.client.get("nodes", None, pod["spec"].get("nodeName") or "none")
            if node and not pod["status"].get("podIP") and not is_off(node):
                ready = {"type": "Ready", "status": "True"}
                others = [each for each in pod["status"].get("conditions", []) if each["type"] != "Ready"]
                pod["status"] |= {"phase": "Running", "podIP": "10.0.0.1", "conditions": [*others, ready]}
                self.client.update("pods", pod, "status")

    def pods(self) -> list[Object]:
        return self.client.list("pods", "default")

    def nodes(self, machine: str = "ct") -> list[Object]:
        label = "node.kubernetes.io/instance-type"
        return [n for n in self.client.list("nodes") if n["metadata"]["labels"][label].startswith(machine)]

    def off(self, machine: str = "ct") -> list[Object]:
        return [node for node in self.nodes(machine) if is_off(node)]

    def endpoints(self) -> list[bool]:
        (one,) = self.client.list("endpointslices", "default")
        return [each["conditions"]["ready"] for each in one["endpoints"]]


@pytest.fixture
def faults(tmp_path) -> Faults:
    return Faults(tmp_path / "faults.json")


def lose_the_node_of_a_pod(faults: Faults, **options: Any) -> World:
    """Let a machine die on which a pod runs: the seed is searched, since one of three nodes is free."""
    for seed in range(20):
        faults.clear()
        world = World(faults)
        used = {pod["spec"]["nodeName"] for pod in world.pods()}
        faults.set("node-lost", {"seed": seed, **options})
        world.run(1)
        if {node["metadata"]["name"] for node in world.off()} & used:
            return world
    raise AssertionError("no seed takes a node that is used")


def ready_of(node: Object) -> str:
    return next(each["status"] for each in node["status"]["conditions"] if each["type"] == "Ready")


def test_a_machine_that_dies_is_ready_until_its_silence_is_noticed_and_its_endpoint_leaves_at_once(faults):
    world = lose_the_node_of_a_pod(faults)
    assert [ready_of(node) for node in world.off()] == ["True"]
    assert world.endpoints() == [True, True]
    world.run(SILENCE_S)
    (node,) = world.off()
    condition = node["status"]["conditions"][0]
    assert (condition["status"], condition["reason"]) == ("Unknown", "NodeStatusUnknown")
    taints = {(each["key"], each["effect"]) for each in node["spec"]["taints"]}
    assert {("node.kubernetes.io/unreachable", effect) for effect in ("NoSchedule", "NoExecute")} <= taints
    assert sorted(world.endpoints()) == [False, True]


def test_its_pods_are_evicted_when_their_tolerations_run_out_and_stay_until_the_node_is_gone(faults):
    world = lose_the_node_of_a_pod(faults)
    world.run(SILENCE_S + EVICTED_AFTER_S - 2)
    assert not [pod for pod in world.pods() if "deletionTimestamp" in pod["metadata"]]
    world.run(3)
    (leaving,) = [pod for pod in world.pods() if "deletionTimestamp" in pod["metadata"]]
    assert world.endpoints().count(True) == 2, "the Deployment has put another one on the free node"
    world.run(1000)
    assert leaving["metadata"]["name"] in [pod["metadata"]["name"] for pod in world.pods()]
    name = f"{CLUSTER}/nodePools/tpu"
    world.gke.set_node_pool_size(gke.SetNodePoolSizeRequest(name=name, node_count=0))
    world.run(60)
    assert leaving["metadata"]["name"] not in [pod["metadata"]["name"] for pod in world.pods()]


def test_with_speed_pods_leave_a_lost_node_as_much_sooner(faults):
    world = World(faults, speed=30.0)
    faults.set("node-lost", {"count": 3})
    world.run(1 + (SILENCE_S + EVICTED_AFTER_S) / 30 + 1)
    assert [pod for pod in world.pods() if "deletionTimestamp" in pod["metadata"]]


def test_a_machine_that_is_made_anew_has_none_of_the_pods_of_the_old_one(faults):
    world = lose_the_node_of_a_pod(faults, returns_after_s=600)
    world.run(510)
    assert len(world.nodes()) == 2, "the old Node is removed while the new machine boots"
    assert not [pod for pod in world.pods() if "deletionTimestamp" in pod["metadata"]]
    world.run(100)
    assert [ready_of(node) for node in world.nodes()] == ["True"] * 3
    assert world.off() == []
    assert not [t for n in world.nodes() for t in n["spec"]["taints"] if t["key"].startswith("node.kubernetes.io")]


def test_gpu_gone_takes_h100_machines_only(faults):
    world = World(faults)
    faults.set("gpu-gone")
    world.run(1)
    assert (len(world.off("a3")), len(world.off("ct"))) == (1, 0)


def test_a_spot_node_gets_its_notice_30_s_before_its_machine_is_off(faults):
    world = World(faults)
    faults.set("spot-notice", {"count": 3})
    world.run(1)
    for node in world.nodes():
        assert ready_of(node) == "False"
        keys = [each["key"] for each in node["spec"]["taints"]]
        assert "cloud.google.com/impending-node-termination" in keys
        assert ends_pods_within_s(node) == 15, "the other half is for the system's pods"
    assert world.endpoints() == [False, False]
    world.run(29)
    assert world.off() == []
    world.run(1)
    assert len(world.off()) == 3
    world.run(121)
    assert [ready_of(node) for node in world.nodes()] == ["True"] * 3
    assert world.endpoints() == [True, True]


def test_the_seed_draws_the_machine_and_each_time_that_it_is_switched_on_draws_anew(faults):
    drawn = []
    for seed in (1, 1, 2, 3, 4):
        faults.clear()
        world = World(faults)
        faults.set("node-lost", {"seed": seed})
        world.run(1)
        (node,) = world.off()
        drawn.append(node["metadata"]["name"])
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    world.run(10)
    assert len(world.off()) == 1, "one stroke, however long it is on"
    faults.clear()
    world.run(1)
    faults.set("node-lost")
    world.run(1)
    assert len(world.off()) == 2


def test_a_fault_that_finds_no_machine_waits_for_one(faults):
    faults.set("node-lost", {"machine": "ct6e"})
    world = World(faults)
    world.run(5)
    assert world.off() == []
    pool = gke.NodePool(name="v6e", initial_node_count=1, config=gke.NodeConfig(machine_type="ct6e-standard-8t"))
    world.gke.create_node_pool(gke.CreateNodePoolRequest(parent=CLUSTER, node_pool=pool))
    world.run(125)
    assert len(world.off("ct6e")) == 1


def test_the_clock_can_jump_to_what_happens_next(faults):
    world = World(faults)
    faults.set("node-lost", {"returns_after_s": 600})
    world.gke.tick()
    now = world.clock.now()
    due = []
    while (at := world.gke.next_due()) is not None:
        world.clock.advance(at - world.clock.now())
        world.gke.tick()
        due.append(round(world.clock.now() - now))
    assert due == [40, 500, 600]
