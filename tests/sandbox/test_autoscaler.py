"""Pools that are filled for pods without a node, and emptied when nobody uses them, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest
from google.cloud import container_v1 as gke

from sandbox.api import Api, LocalClient
from sandbox.clock import VirtualClock
from sandbox.controllers import Manager
from sandbox.faults import Faults
from sandbox.gke.autoscaler import IDLE_S, SCAN_S
from sandbox.gke.core import GkeCloud
from sandbox.gke.nodes import LocalNodes

UP_S = 100
Object = dict[str, Any]


class World:
    """One autoscaled H100 pool, empty at first, and pods that want a GPU."""

    def __init__(self, faults: Faults, minimum: int = 0, count: int = 0) -> None:
        self.clock = VirtualClock()
        api = Api(self.clock)
        self.client = LocalClient(api)
        self.manager = Manager(api, self.clock)
        self.gke = GkeCloud(self.clock, LocalNodes(self.client), faults=faults)
        bounds = gke.NodePoolAutoscaling(enabled=True, min_node_count=minimum, max_node_count=2)
        config = gke.NodeConfig(machine_type="a3-highgpu-1g")
        pool = gke.NodePool(name="h100", initial_node_count=count, config=config, autoscaling=bounds)
        self.gke.add_running_pool(pool)
        self.run(1)

    def run(self, seconds: float) -> None:
        for second in range(int(seconds)):
            self.clock.advance(1)
            self.gke.tick()
            self.manager.settle()
            if second % int(SCAN_S) == 0:
                for event in self.gke.autoscale(self.client.list("pods")):
                    self.client.create("events", event)
                self.manager.settle()

    def pod(self, name: str, resource: str = "nvidia.com/gpu") -> None:
        toleration = {"key": "nvidia.com/gpu", "operator": "Exists"}
        container = {"name": "main", "image": "x:1", "resources": {"limits": {resource: "1"}}}
        spec = {"containers": [container], "tolerations": [toleration]}
        self.client.create("pods", {"metadata": {"name": name, "namespace": "default"}, "spec": spec})

    def placed(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.client.list("pods") if pod["spec"].get("nodeName")]

    def events(self) -> list[tuple[str, str]]:
        found = [e for e in self.client.list("events", "default") if e["source"]["component"] == "cluster-autoscaler"]
        return [(each["reason"], each["message"]) for each in found]


@pytest.fixture
def faults(tmp_path) -> Faults:
    return Faults(tmp_path / "faults.json")


def test_a_pool_grows_by_what_pending_pods_need_and_not_beyond_its_maximum(faults):
    world = World(faults)
    for name in ("a", "b", "c"):
        world.pod(name)
    world.run(UP_S + 5)
    assert len(world.placed()) == 2
    assert len(world.client.list("nodes")) == 2
    assert {reason for reason, _ in world.events()} == {"TriggeredScaleUp"}
    world.run(300)
    assert len(world.client.list("nodes")) == 2


def test_a_pod_that_would_not_fit_on_its_nodes_grows_no_pool(faults):
    world = World(faults)
    world.pod("tpu", "google.com/tpu")
    world.run(UP_S + 5)
    assert world.client.list("nodes") == []
    assert world.events() == []


def test_an_idle_node_goes_after_ten_minutes_and_the_busy_one_stays(faults):
    world = World(faults, count=2)
    world.pod("busy")
    world.run(IDLE_S - 5)
    assert len(world.client.list("nodes")) == 2
    world.run(20)
    (left,) = world.client.list("nodes")
    assert world.client.get("pods", "default", "busy")["spec"]["nodeName"] == left["metadata"]["name"]
    world.pod("another")
    world.run(UP_S + 25)
    assert sorted(world.placed()) == ["another", "busy"]
    assert len(world.client.list("nodes")) == 2


def test_a_pool_keeps_its_minimum(faults):
    world = World(faults, minimum=1, count=2)
    world.run(IDLE_S + 300)
    assert len(world.client.list("nodes")) == 1


def test_without_machines_the_pod_is_told_and_gets_them_at_a_later_try(faults):
    faults.set("stockout", {"machine": "a3"})
    world = World(faults)
    world.pod("a")
    world.run(60)
    ((reason, message),) = world.events()
    assert reason == "FailedScaleUp"
    assert "failed: GCE out of resources. Pod is at risk of not being scheduled." in message
    assert world.client.list("nodes") == []
    faults.clear()
    world.run(300 + UP_S + 25)
    assert world.placed() == ["a"]


def test_emptying_and_filling_takes_no_cluster_lock(faults):
    world = World(faults)
    world.pod("a")
    world.run(30)
    parent = "projects/sandbox-project/locations/us-west4/clusters/sandbox"
    pool = gke.NodePool(name="tpu", initial_node_count=1, config=gke.NodeConfig(machine_type="ct5lp-hightpu-8t"))
    assert world.gke.create_node_pool(gke.CreateNodePoolRequest(parent=parent, node_pool=pool)).name
