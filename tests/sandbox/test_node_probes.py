"""Probes decide about readiness and restarts as a kubelet's do."""

from __future__ import annotations

import asyncio

import pytest
from node_world import probe, ready, restarts, running, server, shell, state

from sandbox.probes import Target, Timing, watch


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


def test_a_probe_has_the_apis_defaults_and_with_speed_its_failures_still_take_as_long():
    assert Timing.of({}) == Timing(delay_s=0, period_s=10, timeout_s=1, failures=3, successes=1)
    slow = Timing.of({"periodSeconds": 5, "failureThreshold": 2}, cap_s=2.0)
    assert (slow.period_s, slow.failures) == (2.0, 5)
    assert slow.period_s * slow.failures == 5 * 2


async def test_only_answers_in_a_row_cross_a_threshold():
    answers = iter(["good", "bad", "good", "bad", "bad", "good", "good", "bad", "bad", "bad"])
    seen: list[bool] = []

    async def execute(command: list[str]) -> int:
        answer = next(answers, None)
        if answer is None:
            raise asyncio.CancelledError
        return 0 if answer == "good" else 1

    timing = Timing(delay_s=0, period_s=0, timeout_s=5, failures=3, successes=2)
    target = Target("127.0.0.1", {}, execute)
    with pytest.raises(asyncio.CancelledError):
        await watch(
            {"exec": {"command": ["x"]}, "timeoutSeconds": 5}, timing, target, lambda good, _: seen.append(good)
        )
    assert seen == [True, False]
