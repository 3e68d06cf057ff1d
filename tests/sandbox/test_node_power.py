"""What becomes of pods when their machine dies, or is told that it will."""

from __future__ import annotations

import aiohttp
import pytest
from node_world import probe, ready, running, server, shell

from sandbox.power import annotations


@pytest.fixture
async def world(tmp_path):
    async with running(tmp_path) as started:
        yield started


async def power(world, **what) -> None:
    body = {"metadata": {"annotations": annotations(**what)}}
    await world.kube.patch("nodes", None, "node-1", body)


async def test_on_a_dead_machine_requests_hang_and_the_pod_looks_as_it_did(world):
    health = world.directory / "health"
    health.write_text("200")
    await world.pod("lost", server(health, readinessProbe=probe(), livenessProbe=probe(failureThreshold=1)))
    pod = await world.until("lost", ready, "it runs")
    await power(world, off=True, notice_s=0)
    url = f"http://{pod['status']['podIP']}:8000/health"
    timeout = aiohttp.ClientTimeout(total=0.5)

    async def hangs(_=None) -> bool:
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url):
                return False
        except TimeoutError:
            return True

    for _ in range(200):
        if await hangs():
            break
    await world.kube.delete("pods", "default", "lost")
    # Longer than its probes take to fail and its grace period lasts at this speed.
    assert await hangs()
    assert await hangs()
    pod = await world.get("lost")
    assert ready(pod)
    assert "deletionTimestamp" in pod["metadata"], "no kubelet confirms it"
    await world.kube.delete("nodes", None, "node-1")
    await world.until("lost", lambda p: p is None and not world.processes(), "it goes with its node")


async def test_a_dead_machine_starts_nothing(world):
    await power(world, off=True, notice_s=0)
    await world.pod("late", shell("echo up; exec sleep 1000"))
    await world.until("late", lambda p: p["metadata"]["uid"] in world.agent._objects, "the agent has seen it")
    assert world.agent.pods == {}
    node = await world.kube.get("nodes", None, "node-1")
    node["metadata"]["annotations"] = {}
    await world.kube.update("nodes", None, "node-1", node)
    await world.until("late", ready, "it runs once the machine has power")


async def test_with_its_notice_a_machine_ends_its_pods_gracefully_and_they_stay_as_failed(world):
    marker = world.directory / "ended"
    script = f"trap 'echo clean > {marker}; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    await world.pod("spot", shell(script))
    await world.until_log("spot", "up")
    await world.until("spot", ready, "it runs")
    await power(world, off=False, notice_s=30)
    pod = await world.until("spot", lambda p: p["status"]["phase"] == "Failed", "it has ended")
    assert marker.read_text() == "clean\n"
    assert (pod["status"]["reason"], ready(pod)) == ("Terminated", False)
    assert pod["status"]["message"] == "Pod was terminated in response to imminent node shutdown."
    assert not world.processes()
    await world.kube.delete("pods", "default", "spot")
    await world.until("spot", lambda p: p is None, "it can be deleted")


async def test_a_pod_that_takes_longer_than_its_half_of_the_notice_is_killed(world):
    await world.pod(
        "slow", shell("trap '' TERM; echo up; while :; do sleep 0.05; done"), terminationGracePeriodSeconds=90
    )
    await world.until_log("slow", "up")
    await power(world, off=False, notice_s=2)
    await world.until("slow", lambda p: p["status"]["phase"] == "Failed", "it was killed")
    assert not world.processes()
