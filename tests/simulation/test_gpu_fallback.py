"""`gpu_fallback` brings users back from wherever a migration stands, also over the head of a run that lives."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest

from sandbox.workload import NAMESPACE, WORKLOAD
from sandbox.world import CLUSTER, LOCATION, PROJECT
from tests.simulation.harness import Calls, Killed, Phase, Scene
from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.domain.gate.sections import Slo
from tpu_migration.domain.plan import Plan
from tpu_migration.drive import drive
from tpu_migration.lease import Holder
from tpu_migration.resources import policy
from tpu_migration.stages import GPU_FALLBACK, rescue
from tpu_migration.stages.base import Context, Done, Failed
from tpu_migration.stages.run import StageRun

TARGET = f"{WORKLOAD}-tpu"


def fallback_run(scene: Scene, run_id: str = "back-1") -> StageRun:
    """Return the stage as Airflow makes it: from the few parameters of its own form."""
    plan = Plan.from_params(
        {"project_id": PROJECT, "location": LOCATION, "cluster": CLUSTER, "namespace": NAMESPACE, "workload": WORKLOAD}
    )
    world = scene.world
    kube = Kubernetes(world.transport(lambda *_: None, lambda *_: None), sleep=world.advance)
    pools = NodePools(world.cluster_manager(lambda *_: None, lambda *_: None), PROJECT, LOCATION, CLUSTER)
    return StageRun(GPU_FALLBACK, Context.create(plan, Holder(run_id, "gpu_fallback"), kube, pools, world.clock))


def fall_back(scene: Scene) -> Done | Failed:
    def pause(seconds: float) -> None:
        scene.world.advance(seconds, tick_s=1.0 if seconds <= 3.0 else 5.0)

    return drive(fallback_run(scene), sleep=pause, say=lambda _: None, keeping=lambda lease: nullcontext())


@pytest.mark.parametrize("percent", [10, 50, 100])
def test_users_of_a_run_that_lives_are_home_at_once_and_the_run_ends_by_itself(percent):
    scene = Scene()
    scene.when_percent(percent, lambda: fallback_run(scene).step())
    airflow = scene.airflow().run()
    assert not airflow.green
    assert scene.record.phase is Phase.FALLEN_BACK
    assert "asked for by the DAG gpu_fallback" in airflow.ended["restore"].reason
    assert isinstance(fall_back(scene), Done)
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()
    scene.assert_nothing_left()


def test_what_a_dead_run_holds_is_released_too():
    scene = Scene()
    calls = Calls()
    scene.when_percent(50, lambda: setattr(calls, "kill_at", calls.count + 1))
    with pytest.raises(Killed):
        scene.airflow(calls=calls).run()
    ended = fall_back(scene)
    assert isinstance(ended, Done), ended
    assert scene.record.phase is Phase.FALLEN_BACK
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()
    scene.assert_nothing_left()


@pytest.mark.parametrize("release", ["keep", "scale-to-zero", "delete-pool"])
def test_after_the_commit_the_gpus_stand_before_users_come_back(release):
    scene = Scene(source_release=release)
    assert scene.airflow().run().green
    seen: list[int] = []
    scene.when(
        lambda: scene.weights().get(WORKLOAD, 0) > 0,
        lambda: seen.append(len(scene.world.traffic.ready_engines(WORKLOAD))),
    )
    ended = fall_back(scene)
    assert isinstance(ended, Done), ended
    assert seen == [2]
    assert scene.record.phase is Phase.FALLEN_BACK
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()
    assert scene.leftovers() == []
    assert not [pool for pool in scene.pools() if pool.startswith("tpu-")]


def rescue_jobs(scene: Scene) -> list[str]:
    return [name for job in scene.world.client.list("jobs", NAMESPACE) if "rescue" in (name := job["metadata"]["name"])]


def test_the_gpus_carry_the_peak_within_the_limits_before_users_come_back():
    scene = Scene(source_release="scale-to-zero")
    assert scene.airflow().run().green
    seen: list[set[int]] = []
    scene.world.on_tick.append(lambda: seen.append({scene.weights().get(WORKLOAD, 0)}) if rescue_jobs(scene) else None)
    ended = fall_back(scene)
    assert isinstance(ended, Done), ended
    assert seen, "nothing was proven"
    assert all(each == {0} for each in seen), "users wait on the TPU until it is"
    verdict = scene.record.notes["rescue"]
    assert (verdict["outcome"], verdict["policy_name"]) == ("pass", "rescue")
    assert scene.leftovers() == []
    scene.assert_nobody_noticed()


def test_gpus_that_do_not_pass_leave_users_on_a_tpu_that_serves_and_say_what_to_do(monkeypatch):
    strict = replace(policy("rescue"), slo=Slo(ttft_limit_ms=0.001, tpot_limit_ms=0.001))
    monkeypatch.setattr(rescue, "policy_named", lambda name: strict)
    scene = Scene(source_release="scale-to-zero")
    assert scene.airflow().run().green
    ended = fall_back(scene)
    assert isinstance(ended, Failed)
    assert "did not pass the policy rescue: FAIL" in ended.reason
    assert "moves users without this proof" in ended.reason
    assert scene.record.phase is Phase.MIGRATED
    assert rescue_jobs(scene) == []
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()


def test_a_tpu_that_hangs_and_passes_its_probes_is_as_dead_as_one_that_is_gone():
    scene = Scene(source_release="scale-to-zero")
    assert scene.airflow().run().green
    scene.when(lambda: bool(rescue_jobs(scene)), lambda: scene.world.faults.set("hang-mid-stream"))
    ended = fall_back(scene)
    assert isinstance(ended, Done), ended
    assert "rescue" not in scene.record.notes
    scene.assert_users_on_gpu()


@pytest.mark.parametrize("dies", ["before", "in the middle of the proof"])
def test_with_the_tpu_dead_the_gpus_get_everybody_as_soon_as_one_answers_and_nothing_is_proven(dies):
    scene = Scene(source_release="scale-to-zero")
    assert scene.airflow().run().green
    died: list[float] = []

    def die() -> None:
        scene.world.client.patch("deployments", NAMESPACE, TARGET, {"spec": {"replicas": 0}}, subresource="scale")
        died.append(scene.world.clock.now())

    if dies == "before":
        die()
    else:
        scene.when(lambda: bool(rescue_jobs(scene)), die)
    moved: list[tuple[float, int]] = []

    def look() -> None:
        if not moved and scene.weights().get(WORKLOAD, 0) > 0:
            moved.append((scene.world.clock.now(), len(scene.world.traffic.ready_engines(WORKLOAD))))

    scene.world.on_tick.append(look)
    ended = fall_back(scene)
    assert isinstance(ended, Done), ended
    assert died
    ((at, ready),) = moved
    assert ready >= 1
    if dies != "before":
        assert at - died[0] <= 30.0
    assert "rescue" not in scene.record.notes
    scene.assert_users_on_gpu()


def test_streams_on_the_tpu_outlast_the_route_that_led_there():
    """A backend that no route names any more is taken from the load balancer, with its streams (seen with Envoy)."""
    scene = Scene(source_release="scale-to-zero")
    assert scene.airflow().run().green
    named: list[bool] = []

    def look() -> None:
        routes = scene.world.client.list("httproutes", NAMESPACE)
        refs = [ref["name"] for route in routes for rule in route["spec"]["rules"] for ref in rule["backendRefs"]]
        serving = [each for each in scene.world.traffic.ready_engines(f"{WORKLOAD}-tpu") if each.in_flight(now())]
        if serving:
            named.append(f"{WORKLOAD}-tpu" in refs)

    def now() -> float:
        return scene.world.clock.now()

    scene.world.on_tick.append(look)
    assert isinstance(fall_back(scene), Done)
    assert named
    assert all(named)
    assert scene.leftovers() == []


def test_a_person_may_waive_the_proof():
    scene = Scene(source_release="scale-to-zero")
    assert scene.airflow().run().green
    proven: list[str] = []
    scene.world.on_tick.append(lambda: proven.extend(rescue_jobs(scene)))
    run = fallback_run(scene)
    run.context.proves_gpus = False

    def pause(seconds: float) -> None:
        scene.world.advance(seconds, tick_s=1.0 if seconds <= 3.0 else 5.0)

    assert isinstance(drive(run, sleep=pause, say=lambda _: None, keeping=lambda lease: nullcontext()), Done)
    assert proven == []
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()


def closed_way(scene: Scene, monkeypatch, seconds: float) -> None:
    """Let the Gateway know nothing of the source's endpoints for a while."""
    traffic, opens = scene.world.traffic, scene.world.clock.now() + seconds
    backends = traffic.backends

    def not_programmed(arm=None):
        return {} if arm == "source" and scene.world.clock.now() < opens else backends(arm)

    monkeypatch.setattr(traffic, "backends", not_programmed)


def test_the_gpus_are_proven_and_users_come_back_once_the_gateway_itself_reaches_them(monkeypatch):
    scene = Scene(source_release="scale-to-zero")
    assert scene.airflow().run().green
    closed_way(scene, monkeypatch, 90.0)
    began, begun, moved = scene.world.clock.now(), [], []
    scene.when(lambda: bool(rescue_jobs(scene)), lambda: begun.append(scene.world.clock.now() - began))
    scene.when(lambda: scene.weights().get(WORKLOAD, 0) > 0, lambda: moved.append(scene.world.clock.now() - began))
    assert isinstance(fall_back(scene), Done)
    assert 90.0 <= begun[0] <= 130.0
    assert moved[0] > begun[0]
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()


def test_gpus_that_the_gateway_does_not_reach_get_no_users_of_a_tpu_that_serves(monkeypatch):
    scene = Scene(source_release="scale-to-zero")
    assert scene.airflow().run().green
    closed_way(scene, monkeypatch, 36_000.0)
    ended = fall_back(scene)
    assert isinstance(ended, Failed)
    assert "did not pass the policy rescue" in ended.reason
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()


def test_nobody_waits_for_the_gateway_while_no_tpu_serves(monkeypatch):
    scene = Scene(source_release="scale-to-zero")
    assert scene.airflow().run().green
    traffic = scene.world.traffic
    backends, moved, ready = traffic.backends, [], []
    monkeypatch.setattr(traffic, "backends", lambda arm=None: {} if arm == "source" else backends(arm))
    scene.world.faults.set("crash-loop", {"workload": f"{WORKLOAD}-tpu"})
    for pod in scene.world.client.list("pods", NAMESPACE):
        if pod["metadata"]["name"].startswith(f"{WORKLOAD}-tpu"):
            scene.world.client.delete("pods", NAMESPACE, pod["metadata"]["name"])
    scene.when(lambda: len(traffic.ready_engines(WORKLOAD)) == 2, lambda: ready.append(scene.world.clock.now()))
    scene.when(lambda: scene.weights().get(WORKLOAD, 0) > 0, lambda: moved.append(scene.world.clock.now()))
    assert isinstance(fall_back(scene), Done)
    assert moved[0] - ready[0] <= 15.0
    scene.assert_users_on_gpu()


def test_a_worker_that_hands_over_to_the_triggerer_is_not_taken_for_a_stranger():
    scene = Scene(source_release="scale-to-zero")
    assert scene.airflow().run().green
    worker = fallback_run(scene)
    while not worker.step().seconds:
        pass  # until it really waits, and is deferred
    said: list[str] = []

    def pause(seconds: float) -> None:
        scene.world.advance(seconds, tick_s=1.0 if seconds <= 3.0 else 5.0)

    ended = drive(fallback_run(scene), sleep=pause, say=said.append, keeping=lambda lease: nullcontext())
    assert isinstance(ended, Done)
    assert not [each for each in said if "still alive" in each], said
    scene.assert_nobody_noticed()


def test_gpus_that_are_not_to_be_had_leave_users_on_the_tpu_and_say_so():
    scene = Scene(source_release="delete-pool")
    assert scene.airflow().run().green
    scene.world.faults.set("stockout", {"machine": "a3"})
    ended = fall_back(scene)
    assert isinstance(ended, Failed)
    assert "node pool vllm-gemma3-27b-h100" in ended.reason
    assert scene.record.phase is Phase.MIGRATED
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()


def test_a_workload_without_a_migration_is_refused_with_where_it_was_looked_for():
    ended = fall_back(Scene())
    assert isinstance(ended, Failed)
    assert f"{WORKLOAD} has no migration in namespace {NAMESPACE}" in ended.reason


def test_a_migration_that_has_fallen_back_already_is_left_alone():
    scene = Scene()
    scene.world.faults.set("slow-tpu")
    scene.airflow().run()
    epoch = scene.record.epoch
    assert isinstance(fall_back(scene), Done)
    assert scene.record.epoch == epoch
