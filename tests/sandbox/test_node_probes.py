"""Probes decide about readiness and restarts as a kubelet's do."""

from __future__ import annotations

import pytest
from node_world import probe, ready, restarts, running, server, shell, state


@pytest.fixture
async def world(tmp_path):
    async with running(tmp_path) as started:
        yield started


async def test_readiness_follows_the_probe_in_both_directions(world):
    health = world.directory / "health"
    health.write_text("503")
    await world.pod("web", server(health, readinessProbe=probe(failureThreshold=1)))
    await world.until("web", lambda p: "running" in state(p), "it runs")
    assert not ready(await world.get("web"))
    health.write_text("200")
    await world.until("web", ready, "ready once the probe is answered")
    health.write_text("503")
    await world.until("web", lambda p: not ready(p), "not ready once it fails")
    assert (await world.get("web"))["status"]["containerStatuses"][0]["restartCount"] == 0


async def test_a_liveness_probe_that_fails_restarts_the_container(world):
    health = world.directory / "health"
    health.write_text("200")
    probes = {"startupProbe": probe(failureThreshold=600), "livenessProbe": probe(failureThreshold=1)}
    await world.pod("live", server(health, **probes))
    await world.until("live", ready, "it runs")
    health.write_text("500")
    pod = await world.until("live", lambda p: restarts(p) > 0, "restarted")
    assert pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 0
    events = await world.kube.list("events", "default")
    assert any("liveness probe" in event["message"] for event in events)


async def test_a_startup_probe_holds_back_readiness(world):
    started = world.directory / "started"
    check = {"exec": {"command": ["test", "-e", str(started)]}, "periodSeconds": 1, "failureThreshold": 600}
    await world.pod("slow", shell("exec sleep 1000", startupProbe=check))
    pod = await world.until("slow", lambda p: "running" in state(p), "it runs")
    assert not ready(pod)
    assert pod["status"]["containerStatuses"][0]["started"] is False
    started.touch()
    await world.until("slow", ready, "ready once it has started")
