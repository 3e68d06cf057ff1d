"""The node agent runs pods as processes, and says so in the API as a kubelet does."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from node_world import condition, ended, probe, ready, restarts, running, server, shell, state

from sandbox.addresses import loopback_network


@pytest.fixture
async def world(tmp_path):
    async with running(tmp_path) as started:
        yield started


async def test_a_bound_pod_runs_and_gets_an_address_a_start_time_and_a_log(world):
    await world.pod("one", shell("echo hello from $HOSTNAME; exec sleep 1000"))
    pod = await world.until("one", lambda p: p["status"]["phase"] == "Running" and ready(p), "it runs")
    assert IPv4Address(pod["status"]["podIP"]) in loopback_network(world.agent.settings.supervisor.identity)
    assert pod["status"]["hostIP"] == "10.0.0.7"
    assert pod["status"]["startTime"]
    assert "startedAt" in state(pod)["running"]
    assert await world.until_log("one", "hello from one\n")


async def test_two_pods_never_share_an_address(world):
    for name in ("a", "b"):
        await world.pod(name, shell("exec sleep 1000"))
    pods = [await world.until(name, ready, f"{name} runs") for name in ("a", "b")]
    assert len({pod["status"]["podIP"] for pod in pods}) == 2


async def test_a_pod_that_is_not_bound_to_a_node_is_left_alone(world):
    await world.kube.create("pods", "default", {"metadata": {"name": "free"}, "spec": {"containers": [shell("x")]}})
    await world.pod("bound", shell("exec sleep 1000"))
    await world.until("bound", ready, "the bound one runs")
    assert len(world.agent.pods) == 1


@pytest.mark.parametrize(("code", "phase", "reason"), [(0, "Succeeded", "Completed"), (3, "Failed", "Error")])
async def test_a_pod_that_is_never_restarted_ends_with_its_exit_code(world, code, phase, reason):
    await world.pod("job", shell(f"exit {code}"), restartPolicy="Never")
    pod = await world.until("job", ended, "it ends")
    assert pod["status"]["phase"] == phase
    assert (state(pod)["terminated"]["exitCode"], state(pod)["terminated"]["reason"]) == (code, reason)
    assert condition(pod, "Ready") == "False"


async def test_exit_code_137_that_nobody_here_caused_is_out_of_memory(world):
    await world.pod("big", shell("exit 137"), restartPolicy="Never")
    pod = await world.until("big", ended, "it ends")
    assert state(pod)["terminated"]["reason"] == "OOMKilled"


async def test_a_container_that_fails_is_restarted_with_back_off(world):
    await world.pod("flaky", shell("echo again; exit 1"))
    pod = await world.until("flaky", lambda p: restarts(p) >= 2, "restarts")
    status = pod["status"]["containerStatuses"][0]
    assert status["lastState"]["terminated"]["exitCode"] == 1
    waiting = await world.until("flaky", lambda p: "waiting" in state(p), "it waits for its next try")
    assert state(waiting)["waiting"]["reason"] == "CrashLoopBackOff"


async def test_the_back_off_doubles_from_ten_seconds_on(world):
    await world.pod("loop", shell("exit 1"))
    await world.until("loop", lambda p: restarts(p) >= 4, "restarts")
    events = [each for each in await world.kube.list("events", "default") if each["reason"] == "BackOff"]
    waited = [int(each["message"].removeprefix("back-off ").partition("s ")[0]) for each in events]
    assert sorted(waited)[:3] == [10, 20, 40]


async def test_on_failure_restarts_until_it_succeeds(world):
    once = "test -e $HOME/seen && exit 0; touch $HOME/seen; exit 1"
    await world.pod("retry", shell(once), restartPolicy="OnFailure")
    pod = await world.until("retry", ended, "it succeeds")
    assert pod["status"]["phase"] == "Succeeded"
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 1


async def test_a_command_that_does_not_exist_is_a_start_error(world):
    nothing = {"name": "main", "image": "example.com/x", "command": ["/no/such/program"]}
    await world.pod("lost", nothing, restartPolicy="Never")
    pod = await world.until("lost", ended, "it fails")
    assert state(pod)["terminated"]["reason"] == "StartError"
    assert "/no/such/program" in state(pod)["terminated"]["message"]


async def test_init_containers_run_one_after_the_other_before_the_others(world):
    first, second = shell("echo 1 >> $ORDER", "first"), shell("echo 2 >> $ORDER", "second")
    main = shell("echo 3 >> $ORDER; exec sleep 1000")
    order = world.directory / "order"
    for container in (first, second, main):
        container["env"] = [{"name": "ORDER", "value": str(order)}]
    await world.pod("ordered", main, initContainers=[first, second])
    pod = await world.until("ordered", ready, "it runs")
    await world.until("ordered", lambda _: order.read_text().split() == ["1", "2", "3"], "all have written")
    assert [c["state"]["terminated"]["exitCode"] for c in pod["status"]["initContainerStatuses"]] == [0, 0]


async def test_a_failing_init_container_keeps_the_others_from_starting(world):
    await world.pod("stuck", shell("echo started"), initContainers=[shell("exit 1", "init")], restartPolicy="Never")
    pod = await world.until("stuck", ended, "it fails")
    assert pod["status"]["phase"] == "Failed"
    assert world.log("stuck") == ""


async def test_a_side_car_outlives_no_job(world):
    sidecar = shell("exec sleep 1000", "proxy", restartPolicy="Always")
    await world.pod("with-sidecar", shell("exit 0"), initContainers=[sidecar], restartPolicy="Never")
    await world.until("with-sidecar", ended, "it succeeds")
    assert not world.processes()


async def test_deletion_is_graceful_and_ends_with_the_object_gone(world):
    health = world.directory / "health"
    health.write_text("200")
    marker = world.directory / "pre-stop"
    hook = {"preStop": {"exec": {"command": ["touch", str(marker)]}}}
    await world.pod("bye", server(health, lifecycle=hook, readinessProbe=probe()))
    await world.until("bye", ready, "it runs")
    await world.kube.delete("pods", "default", "bye")
    await world.until("bye", lambda p: p is None, "its object is gone")
    assert marker.exists()
    assert not world.processes()


async def test_a_container_that_ignores_sigterm_is_killed_after_its_grace_period(world):
    await world.pod(
        "deaf", shell("trap '' TERM; echo up; while :; do sleep 0.1; done"), terminationGracePeriodSeconds=1
    )
    await world.until_log("deaf", "up")
    await world.kube.delete("pods", "default", "deaf")
    await world.until("deaf", lambda p: p is None, "its object is gone")
    assert not world.processes()


async def test_deletion_by_force_cuts_a_graceful_end_short(world):
    await world.pod(
        "slow", shell("trap '' TERM; echo up; while :; do sleep 0.1; done"), terminationGracePeriodSeconds=3600
    )
    await world.until_log("slow", "up")
    await world.kube.delete("pods", "default", "slow")
    await world.until("slow", lambda p: "deletionTimestamp" in p["metadata"], "it is being deleted")
    await world.kube.delete("pods", "default", "slow", grace_period_s=0)
    await world.until("slow", lambda p: p is None and not world.processes(), "it is gone with its process")


async def test_when_its_node_vanishes_a_pod_ends_with_it(world):
    await world.pod("homeless", shell("trap '' TERM; echo up; while :; do sleep 0.1; done"))
    await world.until_log("homeless", "up")
    await world.kube.delete("nodes", None, "node-1")
    await world.until("homeless", lambda p: p is None, "its object is gone")
    assert not world.processes()


async def test_a_process_that_left_the_session_ends_with_its_container(world):
    await world.pod("daemon", shell("setsid sleep 1000 & echo started; exit 0"), restartPolicy="Never")
    await world.until("daemon", ended, "it ends")
    assert not world.processes()
