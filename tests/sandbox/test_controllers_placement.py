"""Where pods go, and what Services know of them."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.api import Api, LocalClient
from sandbox.clock import VirtualClock
from sandbox.controllers import Manager

NS = "inference"
Object = dict[str, Any]
TPU = {"cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice"}
TPU_TAINT = {"key": "google.com/tpu", "value": "present", "effect": "NoSchedule"}
TOLERATION = {"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}


class World:
    """A cluster without nodes, in virtual time."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.api = Api(self.clock)
        self.manager = Manager(self.api, self.clock)
        self.client = LocalClient(self.api)
        self.client.create("namespaces", {"metadata": {"name": NS}})

    def node(self, name: str, labels: Object | None = None, taints: Any = (), **allocatable: str) -> None:
        amounts = {key.replace("__", "/").replace("_", "."): value for key, value in allocatable.items()}
        node = {
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
            "spec": {"taints": list(taints)},
            "status": {"allocatable": amounts},
        }
        self.client.create("nodes", node)
        self.manager.settle()

    def pod(self, name: str, labels: Object | None = None, limits: Object | None = None, **spec: Any) -> Object:
        ports = [{"name": "http", "containerPort": 8000}]
        container = {"name": "main", "image": "x:1", "ports": ports, "resources": {"limits": limits or {}}}
        meta = {"name": name, "namespace": NS, "labels": labels or {}}
        self.client.create("pods", {"metadata": meta, "spec": {"containers": [container], **spec}})
        self.manager.settle()
        return self.get(name)

    def get(self, name: str) -> Object:
        found = self.client.get("pods", NS, name)
        assert found is not None
        return found

    def where(self, name: str) -> str | None:
        return self.get(name)["spec"].get("nodeName")

    def why(self, name: str) -> str:
        conditions = self.get(name)["status"]["conditions"]
        condition = next(c for c in conditions if c["type"] == "PodScheduled")
        assert (condition["status"], condition["reason"]) == ("False", "Unschedulable")
        return condition["message"]

    def ready(self, name: str, ready: bool = True, ip: str = "127.9.0.1") -> None:
        pod = self.get(name)
        others = [c for c in pod["status"].get("conditions", []) if c["type"] != "Ready"]
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-11-22T00:00:00Z"}
        pod["status"] |= {"phase": "Running", "podIP": ip, "conditions": [*others, condition]}
        self.client.update("pods", pod, "status")
        self.manager.settle()

    def service(self, target: int | str) -> None:
        spec = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": target}]}
        self.client.create("services", {"metadata": {"name": "web", "namespace": NS}, "spec": spec})
        self.manager.settle()

    def slice(self) -> Object:
        (only,) = self.client.list("endpointslices", NS, {"kubernetes.io/service-name": "web"})
        return only


@pytest.fixture
def world() -> World:
    return World()


def test_a_tpu_pod_goes_to_the_tpu_node_that_it_tolerates(world: World) -> None:
    world.node("cpu", cpu="8", memory="32Gi")
    world.node("tpu", TPU, [TPU_TAINT], google_com__tpu="8")
    limits = {"google.com/tpu": "8"}
    world.pod("p", limits=limits, nodeSelector=TPU, tolerations=[TOLERATION])
    assert world.where("p") == "tpu"


def test_a_pod_that_fits_nowhere_says_why_and_leaves_an_event(world: World) -> None:
    world.node("cpu", cpu="8")
    world.node("tpu", TPU, [TPU_TAINT], google_com__tpu="8")
    world.node("small", TPU, google_com__tpu="4")
    world.pod("p", limits={"google.com/tpu": "8"}, nodeSelector=TPU)
    expected = (
        "0/3 nodes are available: 1 Insufficient google.com/tpu, 1 node(s) didn't match Pod's node "
        "affinity/selector, 1 node(s) had untolerated taint {google.com/tpu: present}. no new claims to "
        "deallocate, preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, "
        "2 Preemption is not helpful for scheduling."
    )
    assert world.why("p") == expected
    (event,) = [e for e in world.client.list("events", NS) if e["reason"] == "FailedScheduling"]
    assert (event["type"], event["message"]) == ("Warning", expected)
    assert event["involvedObject"]["name"] == "p"


def test_a_pending_pod_is_placed_when_its_node_comes(world: World) -> None:
    world.pod("p", nodeSelector=TPU, tolerations=[TOLERATION], limits={"google.com/tpu": "8"})
    assert world.why("p") == "no nodes available to schedule pods"
    world.node("tpu", TPU, [TPU_TAINT], google_com__tpu="8")
    assert world.where("p") == "tpu"


def test_a_node_that_is_full_takes_the_next_pod_when_one_has_ended(world: World) -> None:
    world.node("n", google_com__tpu="8")
    limits = {"google.com/tpu": "8"}
    world.pod("first", limits=limits)
    world.pod("second", limits=limits)
    assert (world.where("first"), world.where("second")) == ("n", None)
    world.client.delete("pods", NS, "first", grace_period_s=0)
    world.manager.settle()
    assert world.where("second") == "n"


def test_a_node_that_is_not_ready_or_cordoned_gets_no_pod(world: World) -> None:
    world.node("n", cpu="8")
    condition = {"type": "Ready", "status": "False"}
    world.client.patch("nodes", None, "n", {"status": {"conditions": [condition]}}, subresource="status")
    world.pod("p")
    assert "node.kubernetes.io/not-ready" in world.why("p")
    condition["status"] = "True"
    world.client.patch("nodes", None, "n", {"status": {"conditions": [condition]}}, subresource="status")
    world.client.patch("nodes", None, "n", {"spec": {"unschedulable": True}})
    world.manager.settle()
    assert "1 node(s) were unschedulable" in world.why("p")
    world.client.patch("nodes", None, "n", {"spec": {"unschedulable": None}})
    world.manager.settle()
    assert world.where("p") == "n"


def test_anti_affinity_puts_two_replicas_on_two_nodes(world: World) -> None:
    world.node("a", cpu="8")
    selector = {"matchLabels": {"app": "web"}}
    term = {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}
    rule = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    for name in ("one", "two"):
        world.pod(name, {"app": "web"}, affinity=rule)
    assert (world.where("one"), world.where("two")) == ("a", None)
    assert "1 node(s) didn't match pod anti-affinity rules" in world.why("two")
    world.node("b", cpu="8")
    assert world.where("two") == "b"


def test_pods_of_a_node_that_is_gone_are_gone(world: World) -> None:
    world.node("n", cpu="8")
    world.pod("p")
    world.client.delete("nodes", None, "n")
    world.manager.settle()
    assert world.client.get("pods", NS, "p") is None


def test_a_no_execute_taint_expels_a_pod_when_its_patience_ends(world: World) -> None:
    world.node("n", cpu="8")
    world.pod("p")
    unreachable = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}
    world.client.patch("nodes", None, "n", {"spec": {"taints": [unreachable]}})
    world.manager.settle()
    assert "deletionTimestamp" not in world.get("p")["metadata"]
    assert world.manager.next_due() == world.clock.now() + 300
    world.clock.advance(300)
    world.manager.settle()
    assert "deletionTimestamp" in world.get("p")["metadata"]


def test_a_slice_follows_readiness_and_termination(world: World) -> None:
    world.node("n", {"topology.kubernetes.io/zone": "z1"}, cpu="8")
    world.service(8000)
    assert world.slice()["endpoints"] == []
    pod = world.pod("p", {"app": "web"})
    world.ready("p", ready=False)
    (endpoint,) = world.slice()["endpoints"]
    assert endpoint["conditions"] == {"ready": False, "serving": False, "terminating": False}
    world.ready("p")
    (endpoint,) = world.slice()["endpoints"]
    assert endpoint["conditions"] == {"ready": True, "serving": True, "terminating": False}
    assert (endpoint["addresses"], endpoint["nodeName"], endpoint["zone"]) == (["127.9.0.1"], "n", "z1")
    assert endpoint["targetRef"]["uid"] == pod["metadata"]["uid"]
    world.client.delete("pods", NS, "p")
    world.manager.settle()
    (endpoint,) = world.slice()["endpoints"]
    assert endpoint["conditions"] == {"ready": False, "serving": True, "terminating": True}
    world.client.delete("pods", NS, "p", grace_period_s=0)
    world.manager.settle()
    assert world.slice()["endpoints"] == []


def test_a_named_target_port_is_looked_up_in_the_pod(world: World) -> None:
    world.node("n", cpu="8")
    world.pod("p", {"app": "web"})
    world.ready("p")
    world.service("http")
    assert world.slice()["ports"] == [{"name": "", "port": 8000, "protocol": "TCP"}]


def test_a_pod_that_loses_its_label_leaves_the_slice(world: World) -> None:
    world.node("n", cpu="8")
    world.service(8000)
    world.pod("p", {"app": "web"})
    world.ready("p")
    world.client.patch("pods", NS, "p", {"metadata": {"labels": {"app": None}}})
    world.manager.settle()
    assert world.slice()["endpoints"] == []


def test_a_slice_goes_with_its_service(world: World) -> None:
    world.service(8000)
    world.client.delete("services", NS, "web")
    world.manager.settle()
    assert world.client.list("endpointslices", NS) == []


def test_a_settled_cluster_has_nothing_to_do(world: World) -> None:
    world.node("n", cpu="8")
    world.service(8000)
    world.pod("p", {"app": "web"})
    version = world.api.store.version
    world.manager.settle()
    assert world.api.store.version == version
