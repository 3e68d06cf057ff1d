"""A canary measures beside users, sees what has drifted, steps aside for whoever moves users, and brings GPUs back."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest

from sandbox.workload import NAMESPACE, ORCHESTRATOR, WORKLOAD
from sandbox.world import CLUSTER, LOCATION, PROJECT
from tests.simulation.harness import Calls, Killed, Phase, Scene
from tests.simulation.test_gpu_fallback import fallback_run
from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.domain.gate.sections import Quality
from tpu_migration.domain.plan import Plan
from tpu_migration.drive import drive
from tpu_migration.history import Histories, History
from tpu_migration.lease import Holder, Lease
from tpu_migration.names import answers_name, canary_lease
from tpu_migration.resources import policy
from tpu_migration.stages import CANARY, canary, gate
from tpu_migration.stages.base import Context, Done, Failed
from tpu_migration.stages.run import StageRun

TARGET = f"{WORKLOAD}-tpu"
DAY_S = 86_400.0


def canary_run(scene: Scene, run_id: str = "canary-1", calls: Calls | None = None) -> StageRun:
    """Return the stage as Airflow makes it: from the place of the workload alone."""
    plan = Plan.from_params(
        {"project_id": PROJECT, "location": LOCATION, "cluster": CLUSTER, "namespace": NAMESPACE, "workload": WORKLOAD}
    )
    world, calls = scene.world, calls or Calls()
    kube = Kubernetes(world.transport(calls.before, calls.done), sleep=world.advance)
    pools = NodePools(world.cluster_manager(calls.before, calls.done), PROJECT, LOCATION, CLUSTER)
    holder = Holder(run_id, "canary")
    lease_name = canary_lease(WORKLOAD)
    return StageRun(CANARY, Context.create(plan, holder, kube, pools, world.clock, lease_name=lease_name))


def drive_through(scene: Scene, run: StageRun) -> Done | Failed:
    def pause(seconds: float) -> None:
        scene.world.advance(seconds, tick_s=1.0 if seconds <= 5.0 else 5.0)
        run.context.lease.renew_if_due()

    return drive(run, sleep=pause, say=lambda _: None, keeping=lambda lease: nullcontext())


def look(scene: Scene, run_id: str = "canary-1") -> Done | Failed:
    return drive_through(scene, canary_run(scene, run_id))


def history(scene: Scene) -> History:
    return Histories(scene.client(ORCHESTRATOR), NAMESPACE, WORKLOAD).read()


def migrated(**plan) -> Scene:
    scene = Scene(**{"source_release": "delete-pool", **plan})
    assert scene.airflow().run().green
    scene.assert_users_on_tpu()
    return scene


@pytest.fixture
def scene() -> Scene:
    return migrated()


@pytest.fixture
def answering(monkeypatch) -> None:
    """Let the demo's policy compare answers: the others' load would take the test's time."""
    demo = policy("demo")
    comparing = replace(demo, quality=Quality(prompts=16, tokens=32, kl_quantile=0.95, top1_agreement=0.9))
    for stage in (gate, canary):
        monkeypatch.setattr(stage, "policy_named", lambda name: comparing)


def days_pass(scene: Scene, days: float) -> None:
    """Let days pass without users, whose requests would take the test's time."""
    rate, scene.world.traffic.rate_rps = scene.world.traffic.rate_rps, 0.0
    scene.world.advance(days * DAY_S, tick_s=43_200.0)
    scene.world.traffic.rate_rps = rate


def jobs(scene: Scene) -> list[str]:
    return [each["metadata"]["name"] for each in scene.world.client.list("jobs", NAMESPACE)]


# ----------------------------------------------------------------------------------- what it measures


def test_a_healthy_workload_passes_and_the_canary_leaves_only_its_history(scene):
    before, record = scene.world.traffic.weights(), scene.record
    ended = look(scene)
    assert isinstance(ended, Done), ended
    assert ended.result["outcome"] == "pass", ended.result
    (seen,) = history(scene).canaries
    assert seen.proof == record.run_id
    assert seen.identity.version == "0.32.0"
    assert seen.figures["ttft_p95_since_pass"].value < seen.figures["ttft_p95_since_pass"].limit
    assert seen.usd_per_hour > 0
    assert (jobs(scene), scene.record, scene.world.traffic.weights()) == ([], record, before)
    scene.assert_nobody_noticed()


def test_its_load_is_a_few_per_cent_of_the_peak_with_prompts_of_its_own(scene):
    asked: list[list[str]] = []

    def note() -> None:
        asked.extend(
            each["spec"]["template"]["spec"]["containers"][0]["args"]
            for each in scene.world.client.list("jobs", NAMESPACE)
        )

    scene.world.on_tick.append(note)
    look(scene, "canary-1")
    look(scene, "canary-2")
    rates = {arg for args in asked for arg in args if arg.startswith("--rate=")}
    seeds = {arg for args in asked for arg in args if arg.startswith("--seed=")}
    assert rates == {"--rate=0.8"}  # of a peak of 4
    assert len(seeds) == 2
    assert not [arg for args in asked for arg in args if arg.startswith("--header=x-tpu")]


def test_a_workload_that_got_slow_fails_and_the_gpus_come_back_and_nobody_noticed(scene):
    days_pass(scene, 3)
    assert isinstance(look(scene, "canary-1"), Done)
    scene.world.faults.set("slow-tpu")
    began = scene.world.clock.now()
    ended = look(scene, "canary-2")
    assert isinstance(ended, Failed), ended
    assert scene.world.clock.now() - began >= 120.0, "a burst of a minute moves nobody"
    assert ended.kind == "drift"
    assert "failed 2 times, minutes apart" in ended.reason
    assert [each.outcome for each in history(scene).canaries] == ["pass", "fail"]
    back = fallback_run(scene)
    back.context.why = ended.reason
    assert isinstance(drive_through(scene, back), Done)
    assert scene.record.phase is Phase.FALLEN_BACK
    assert "failed 2 times, minutes apart" in scene.record.fallback.reason
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()
    assert [each.outcome for each in history(scene).canaries] == ["pass", "fail"]


def test_errors_are_found_by_the_load_where_users_histograms_show_nothing(scene):
    scene.world.faults.set("lb-errors", {"percent": 30})
    ended = look(scene)
    assert isinstance(ended, Failed)
    assert "failed 2 times, minutes apart" in ended.reason
    assert "of 150 met every SLO" in ended.reason


def test_a_hiccup_that_is_over_at_the_second_look_warns_and_fails_nothing(scene):
    scene.world.faults.set("lb-errors", {"percent": 30})
    scene.when(lambda: any("canary-2" in name for name in jobs(scene)), lambda: scene.world.faults.clear("lb-errors"))
    ended = look(scene)
    assert isinstance(ended, Done), ended
    assert ended.result["outcome"] == "warn"
    assert "failed once and passed minutes later" in ended.result["sentence"]


def test_users_who_suffer_beside_the_load_end_it_at_once_and_are_not_loaded_again(scene):
    scene.when(lambda: any("canary-1" in name for name in jobs(scene)), lambda: scene.world.faults.set("slow-tpu"))
    gone: list[bool] = []
    seen: set[str] = set()

    def over() -> None:
        seen.update(jobs(scene))
        if scene.world.faults.get("slow-tpu") and not jobs(scene) and not gone:
            gone.append(True)
            scene.world.faults.clear("slow-tpu")

    scene.world.on_tick.append(over)
    ended = look(scene)
    assert gone, "the load was never ended"
    assert len(seen) == 1, seen
    assert isinstance(ended, Done)
    assert ended.result["outcome"] == "warn"
    assert "beside 0.8 requests/s of the canary, live users are over their SLO" in ended.result["sentence"]


# ------------------------------------------------------------------------------ what has changed


def test_an_image_that_was_moved_and_programs_that_are_compiled_warn_before_anything_fails(scene):
    look(scene, "canary-1")
    for pod in scene.world.traffic.ready_engines(TARGET):
        pod.compiled += 3
    histories = Histories(scene.client(ORCHESTRATOR), NAMESPACE, WORKLOAD)

    def older(found: History) -> History:
        first = found.canaries[0]
        return replace(found, canaries=(replace(first, identity=replace(first.identity, version="0.31.0")),))

    histories.update(older)
    ended = look(scene, "canary-2")
    assert isinstance(ended, Done)
    assert ended.result["outcome"] == "warn"
    findings = "; ".join(ended.result["findings"])
    assert "version: 0.32.0, 0.31.0 at the first canary" in findings
    assert "6 programs were compiled since" in findings


def test_a_slow_creep_is_told_days_before_it_reaches_the_limit(scene):
    for day in range(5):
        scene.world.faults.set("slow-tpu", {"factor": 1.0 + 0.2 * day})
        look(scene, f"canary-{day}")
        days_pass(scene, 1)
    *before, last = history(scene).canaries
    assert {each.outcome for each in before} == {"pass"}
    assert last.outcome == "warn"
    assert "tpot_p95_since_pass rises by" in last.sentence
    scene.assert_nobody_noticed()


def test_what_is_compiled_before_the_first_canary_counts_from_the_gate(scene):
    for pod in scene.world.traffic.ready_engines(TARGET):
        pod.compiled += 2
    ended = look(scene)
    assert isinstance(ended, Done)
    assert ended.result["outcome"] == "warn"
    assert "4 programs were compiled since it passed the gate" in ended.result["sentence"]


# ------------------------------------------------------------------------------------------ answers


def test_with_the_gpus_gone_answers_are_held_to_those_of_the_pass(answering):
    scene = migrated()
    ended = look(scene)
    assert isinstance(ended, Done), ended
    assert ended.result["outcome"] == "pass", ended.result
    assert ended.result["sentence"].endswith("its answers are the source's at the pass")
    assert history(scene).canaries[0].figures["quality_kl_mean"].value < 0.01
    assert jobs(scene) == []


def test_with_the_gpus_kept_answers_are_held_to_theirs_of_now_too(answering):
    scene = migrated(source_release="keep")
    ended = look(scene)
    assert isinstance(ended, Done), ended
    assert ended.result["sentence"].endswith("its answers are the source's at the pass and the live source's")


def test_a_tpu_that_gives_other_answers_fast_and_without_errors_fails(answering):
    scene = migrated()
    scene.world.faults.set("wrong-answers")
    ended = look(scene)
    assert isinstance(ended, Failed)
    assert ended.kind == "drift"
    assert "failed 2 times, minutes apart: its answers are not the source's at the pass: mean KL" in ended.reason
    scene.assert_nobody_noticed()


def test_answers_that_cannot_be_compared_are_a_warning(answering):
    scene = migrated()
    broken = {"data": {"answers.jsonl": "cut in the mid"}}
    scene.world.client.patch("configmaps", NAMESPACE, answers_name(WORKLOAD), broken)
    ended = look(scene)
    assert isinstance(ended, Done), ended
    assert ended.result["outcome"] == "warn"
    assert "the answers were not compared with the source's at the pass: Job" in ended.result["sentence"]


def test_answers_of_another_pass_are_no_measure(answering):
    scene = migrated()
    scene.world.client.patch(
        "configmaps", NAMESPACE, answers_name(WORKLOAD), {"data": {"about.json": '{"run": "other"}'}}
    )
    assert "compared with nobody's" in look(scene).result["sentence"]


# ----------------------------------------------------------------------------- whom it gives way to


def test_it_steps_aside_at_once_for_a_fall_back_and_does_not_hold_it_up(scene):
    back = fallback_run(scene)
    started: list[float] = []

    def begin() -> None:
        started.append(scene.world.clock.now())
        assert back.step().why  # it takes the migration's lease

    scene.when(lambda: any("canary-1" in name for name in jobs(scene)), begin)
    ended = look(scene)
    assert isinstance(ended, Done)
    assert "steps aside" in ended.result["skipped"]
    assert scene.world.clock.now() - started[0] <= 10.0
    assert jobs(scene) == []
    assert history(scene).canaries == ()
    assert isinstance(drive_through(scene, back), Done)
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()


def test_a_workload_that_went_back_is_left_alone():
    scene = Scene(stop_after="gate")
    scene.airflow().run()
    ended = look(scene)
    assert isinstance(ended, Done)
    assert "users are not on the TPU" in ended.result["skipped"]


def test_two_canaries_never_load_a_workload_at_the_same_time(scene):
    first = canary_run(scene, "canary-1")
    first.step()
    second = canary_run(scene, "canary-2").step()
    assert isinstance(second, Failed)
    assert "is being worked on by run canary-1" in second.reason


def test_a_lease_that_a_dead_run_left_behind_does_not_end_the_watch_for_ever(scene):
    Lease(scene.client("admin"), NAMESPACE, WORKLOAD, Holder("run-1", "decommission"), scene.world.clock).acquire()
    assert "steps aside" in look(scene, "canary-1").result["skipped"]
    scene.world.advance(601.0, tick_s=60.0)
    assert look(scene, "canary-2").result["outcome"] == "pass"


# ------------------------------------------------------------------------------------ its own trouble


def test_a_canary_that_is_killed_goes_on_with_the_load_that_runs_and_concludes_once(scene):
    calls = Calls()
    scene.when(lambda: bool(jobs(scene)), lambda: setattr(calls, "kill_at", calls.count + 2))
    with pytest.raises(Killed):
        drive_through(scene, canary_run(scene, calls=calls))
    ended = look(scene)
    assert isinstance(ended, Done), ended
    assert look(scene).result == ended.result  # cleared and run again: told, not measured
    assert len(history(scene).canaries) == 1


def test_replicas_that_are_missing_are_not_loaded_and_three_blind_canaries_are_an_alarm(scene):
    scene.world.client.patch("deployments", NAMESPACE, TARGET, {"spec": {"replicas": 1}}, subresource="scale")
    scene.world.advance(30.0)
    outcomes = [look(scene, f"canary-{number}") for number in range(3)]
    assert [type(each) for each in outcomes] == [Done, Done, Failed]
    assert "1 replicas of vllm-gemma3-27b-tpu are ready, 2 were proven" in outcomes[0].result["sentence"]
    assert "3 canaries in a row decided nothing" in outcomes[2].reason
    assert outcomes[2].kind != "drift"


def test_a_tpu_without_any_ready_replica_fails():
    scene = migrated(source_release="keep")
    scene.world.client.patch("deployments", NAMESPACE, TARGET, {"spec": {"replicas": 0}}, subresource="scale")
    ended = look(scene)
    assert isinstance(ended, Failed)
    assert ended.kind == "drift"
    assert "users meet nobody" in ended.reason


def test_a_route_that_somebody_split_in_the_middle_ends_the_load_and_decides_nothing():
    scene = migrated(source_release="keep")

    def put_back() -> None:
        scene.world.faults.set("gitops", {"after_s": 1.0})

    scene.when(lambda: bool(jobs(scene)), put_back)
    ended = look(scene)
    assert isinstance(ended, Done)
    assert ended.result["outcome"] == "undecided"
    assert "0 % of users: see tpu_watch" in ended.result["sentence"]
    assert jobs(scene) == []


def test_it_looks_every_five_seconds_to_its_end_for_users_are_watched_by_it(scene):
    waits: list[float] = []
    run = canary_run(scene)
    while not isinstance(outcome := run.step(), Done | Failed):
        waits.append(outcome.seconds)
        scene.world.advance(outcome.seconds)
        run.context.lease.renew_if_due()
    assert max(waits) <= 5.0
