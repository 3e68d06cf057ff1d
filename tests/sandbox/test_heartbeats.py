"""Nodes live in the eyes of the control plane as long as their machines do."""

from __future__ import annotations

from typing import Any

import pytest
from node_world import running

from sandbox.heartbeats import NAMESPACE, revived
from sandbox.power import annotations

THEN = "2026-01-01T00:00:00Z"
READY = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "", "lastTransitionTime": THEN}
UNKNOWN = {**READY, "status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting"}


@pytest.fixture
async def world(tmp_path):
    async with running(tmp_path) as started:
        yield started


async def node(world, name: str) -> dict[str, Any]:
    found = await world.kube.get("nodes", None, name)
    assert found is not None
    return found


def ready(found: dict[str, Any]) -> list[str]:
    return [each["status"] for each in found["status"].get("conditions", []) if each["type"] == "Ready"]


def test_a_node_that_was_given_up_on_is_revived_and_others_are_left_alone():
    disk = {**READY, "type": "DiskPressure", "status": "False"}
    assert revived([READY, disk]) is None
    again = revived([UNKNOWN, disk, {**UNKNOWN, "type": "MemoryPressure"}])
    assert again is not None
    assert [condition["status"] for condition in again] == ["True", "False", "False"]
    assert again[0]["lastTransitionTime"] != THEN
    assert again[1] == disk


async def test_a_node_has_a_lease_that_is_renewed_and_goes_with_it(world):
    async def lease() -> bool:
        return await world.kube.get("leases", NAMESPACE, "node-1") is not None

    await world.eventually(lease)
    found = await world.kube.get("leases", NAMESPACE, "node-1")
    assert found["spec"]["holderIdentity"] == "node-1"
    owner = found["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["uid"]) == ("Node", (await node(world, "node-1"))["metadata"]["uid"])


async def test_a_dead_machine_is_not_revived(world):
    off = {"metadata": {"annotations": annotations(off=True, notice_s=0)}}
    await world.kube.patch("nodes", None, "node-1", off)
    # The heartbeats look at nodes in the order in which they came: node-1 has had its turn when node-2 has.
    await world.kube.create("nodes", None, {"metadata": {"name": "node-2"}})
    for name in ("node-1", "node-2"):
        await world.kube.patch("nodes", None, name, {"status": {"conditions": [UNKNOWN]}}, subresource="status")

    async def second_lives() -> bool:
        return ready(await node(world, "node-2")) == ["True"]

    await world.eventually(second_lives)
    assert ready(await node(world, "node-1")) == ["Unknown"]
