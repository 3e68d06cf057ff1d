"""Other controllers that write the routes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sandbox.api import Api, LocalClient
from sandbox.api.http import serve
from sandbox.api.messages import Request, dumps
from sandbox.clock import SystemClock, VirtualClock
from sandbox.faults import Faults
from sandbox.kube import KubeClient
from sandbox.kubeconfig import Access
from sandbox.others import Others, differs, run_others
from sandbox.workload import NAMESPACE, WORKLOAD, workload_objects

ROUTE = f"/apis/gateway.networking.k8s.io/v1/namespaces/{NAMESPACE}/httproutes/{WORKLOAD}"
Object = dict[str, Any]


def in_git() -> list[Object]:
    return [each for each in workload_objects() if each["kind"] == "HTTPRoute"]


class World:
    """The API with the workload's route, and the other controllers, in virtual time."""

    def __init__(self, faults: Faults) -> None:
        self.clock = VirtualClock()
        self.api = Api(self.clock)
        self.client = LocalClient(self.api)
        self.client.create("namespaces", {"metadata": {"name": NAMESPACE}})
        for each in in_git():
            self.client.create("httproutes", each)
        self.others = Others(faults, in_git())

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.5)):
            self.clock.advance(0.5)
            for write in self.others.writes(self.client.list("httproutes"), self.clock.monotonic()):
                controller = LocalClient(self.api, write.manager)
                where = ("httproutes", write.namespace, write.name)
                controller.patch(*where, write.body, write.content_type, force=True)

    def route(self) -> Object:
        found = self.client.get("httproutes", NAMESPACE, WORKLOAD)
        assert found is not None
        return found

    def weights(self) -> dict[str, int]:
        return {ref["name"]: ref["weight"] for ref in self.route()["spec"]["rules"][0]["backendRefs"]}

    def shift(self) -> None:
        """Give another backend half of the users, as a migration does."""
        route = self.route()
        refs = route["spec"]["rules"][0]["backendRefs"]
        route["spec"]["rules"][0]["backendRefs"] = [
            {**refs[0], "weight": 50},
            {"name": f"{WORKLOAD}-tpu", "port": 8000, "weight": 50},
        ]
        LocalClient(self.api, "tpu-migration").update("httproutes", route)


@pytest.fixture
def faults(tmp_path) -> Faults:
    return Faults(tmp_path / "faults.json")


def test_a_write_that_is_stale_because_of_another_controllers_annotation_gets_409(faults):
    world = World(faults)
    faults.set("conflict", {"every_s": 1})
    read = world.route()
    world.run(1)
    request = Request("PUT", ROUTE, {}, {"content-type": "application/json"}, dumps(read))
    assert world.api.handle(request).status == 409
    managers = {each["manager"] for each in world.route()["metadata"]["managedFields"]}
    assert "route-annotator" in managers
    assert world.weights() == {WORKLOAD: 1}, "it touches nothing but its annotation"


def test_gitops_puts_the_route_back_at_once_under_its_own_name_and_then_rests(faults):
    world = World(faults)
    world.run(5)
    world.shift()
    faults.set("gitops")
    world.run(0.5)
    assert world.weights() == {WORKLOAD: 1}
    newest = max(world.route()["metadata"]["managedFields"], key=lambda each: each["time"])
    assert newest["manager"] == "argocd-controller"
    version = world.route()["metadata"]["resourceVersion"]
    world.run(10)
    assert world.route()["metadata"]["resourceVersion"] == version


def test_gitops_may_come_hours_after_the_route_was_changed(faults):
    world = World(faults)
    faults.set("gitops", {"after_s": 7200})
    world.shift()
    world.run(7199)
    assert world.weights() == {WORKLOAD: 50, f"{WORKLOAD}-tpu": 50}
    world.run(2)
    assert world.weights() == {WORKLOAD: 1}


def test_a_fault_limited_to_another_workload_leaves_this_one_alone(faults):
    world = World(faults)
    faults.set("gitops", {"workload": "other"})
    faults.set("conflict", {"workload": "other"})
    world.shift()
    before = world.route()
    world.run(5)
    assert world.route() == before


@pytest.mark.parametrize(
    ("live", "different"),
    [
        ({"a": [{"x": 1}], "filled": "in"}, False),
        ({"a": [{"x": 1, "filled": "in"}]}, False),
        ({"a": [{"x": 2}]}, True),
        ({"a": [{"x": 1}, {"x": 1}]}, True),
        ({}, True),
    ],
)
def test_a_live_object_may_have_more_than_git_but_not_less(live, different):
    assert differs({"a": [{"x": 1}]}, live) is different


async def test_both_are_carried_out_against_a_server(faults):
    world = World(faults)
    server = await serve(world.api, "127.0.0.1", 0, None, None, lambda token: "admin")
    async with KubeClient(Access(f"http://127.0.0.1:{server.port}", None)) as kube:
        running = asyncio.create_task(run_others(kube, faults, in_git(), SystemClock()))
        world.shift()
        faults.set("gitops")
        faults.set("conflict")
        async with asyncio.timeout(20):
            while world.weights() != {WORKLOAD: 1} or not world.route()["metadata"].get("annotations"):
                await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await server.close()
