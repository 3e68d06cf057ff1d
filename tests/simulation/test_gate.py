"""The benchmark gate in virtual time: what it sends, what it watches, and when it stops or goes on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sandbox.virtual_engine import EnginePod
from sandbox.workload import NAMESPACE, WORKLOAD
from tests.simulation.harness import Phase, Scene
from tpu_migration.resources import policy as policy_named
from tpu_migration.stages import gate

SOURCE_JOB = "baseline-1a"


@pytest.fixture
def policy(monkeypatch):
    """Have the gate use a policy that is the demo's with other sections."""

    def use(**sections: dict[str, Any]) -> None:
        made = policy_named("demo")
        for name, changes in sections.items():
            value = dataclasses.replace(getattr(made, name), **changes) if isinstance(changes, dict) else changes
            made = dataclasses.replace(made, **{name: value})
        assert made.problems() == []
        monkeypatch.setattr(gate, "policy_named", lambda name: made)

    return use


def scene_of(**plan: Any) -> Scene:
    return Scene(stop_after="gate", **plan)


def jobs_made(scene: Scene) -> list[str]:
    """Note the benchmark's blocks in the order in which their Jobs appear."""
    seen: list[str] = []

    def look() -> None:
        for job in scene.world.client.list("jobs", NAMESPACE):
            name = job["metadata"]["name"].split("-", 3)[3]
            if name not in seen and not name.startswith("warm"):
                seen.append(name)

    scene.world.on_tick.append(look)
    return seen


def source_engines(scene: Scene) -> list[EnginePod]:
    return [pod for pod in scene.world.pods.values() if isinstance(pod, EnginePod) and not pod.is_tpu]


def slow_while(scene: Scene, share: float) -> None:
    """Have a share of the source's requests be slow while its probe runs, and never else."""
    before: dict[str, int] = {}

    def look() -> None:
        probing = any(SOURCE_JOB in job["metadata"]["name"] for job in scene.world.client.list("jobs", NAMESPACE))
        for engine in source_engines(scene):
            new = engine.first_tokens - before.get(engine.name, engine.first_tokens)
            before[engine.name] = engine.first_tokens
            if probing:
                engine.slow += round(share * new)

    scene.world.on_tick.append(look)


def test_a_probe_that_pushes_live_users_over_their_slo_is_stopped_and_nothing_moves():
    scene = Scene(peak_rps=20)
    slow_while(scene, 0.5)
    airflow = scene.airflow().run()
    assert not airflow.green
    assert scene.record.phase is Phase.HELD, airflow.reasons()
    assert "live users are over their SLO" in scene.record.verdict["sentence"]
    assert scene.record.verdict["outcome"] == "inconclusive"
    assert scene.record.verdict["checks"][0]["name"] == "live_users"
    assert not [job for job in scene.world.client.list("jobs", NAMESPACE) if SOURCE_JOB in job["metadata"]["name"]]
    scene.assert_users_on_gpu()


def test_the_probe_is_stopped_long_before_it_would_have_ended():
    scene = scene_of(peak_rps=4)  # 60 requests at 0.8 a second: 75 s
    seen = jobs_made(scene)
    slow_while(scene, 0.5)
    began: list[float] = []
    scene.when(lambda: SOURCE_JOB in seen, lambda: began.append(scene.world.clock.monotonic()))
    ended: list[float] = []

    def gone() -> bool:
        jobs = [job["metadata"]["name"] for job in scene.world.client.list("jobs", NAMESPACE)]
        return bool(began) and not any(SOURCE_JOB in name for name in jobs)

    scene.when(gone, lambda: ended.append(scene.world.clock.monotonic()))
    assert scene.airflow().run().green  # the proof of concept is done; its answer is no
    assert scene.record.verdict["checks"][0]["name"] == "live_users"
    assert ended[0] - began[0] < 40.0


def test_users_who_are_as_slow_as_the_slo_allows_stop_no_probe():
    scene = scene_of(peak_rps=20)
    slow_while(scene, 0.02)
    assert scene.airflow().run().green
    assert scene.record.verdict["outcome"] == "pass"


def test_a_source_whose_counters_cannot_be_read_is_not_probed_blindly():
    scene = Scene(peak_rps=4)
    seen = jobs_made(scene)

    def hide() -> None:
        for engine in source_engines(scene):
            engine.answer = lambda *_: (503, b"no metrics")  # type: ignore[method-assign]

    scene.when(lambda: SOURCE_JOB in seen, hide)
    airflow = scene.airflow().run()
    assert not airflow.green
    assert scene.record.phase is Phase.HELD, airflow.reasons()
    assert "could not be watched for" in scene.record.verdict["sentence"]


FOUR = {"load": {"shares": (1.0, 0.7, 1.2)}, "capacity": {"min_rates": 4}}


def test_four_rates_are_measured_one_job_each_and_their_sum_is_in_the_evidence(policy):
    policy(**FOUR)
    scene = scene_of()
    seen = jobs_made(scene)
    assert scene.airflow().run().green
    assert seen == ["baseline-1a", "load-1a-0", "load-1a-1", "load-1a-2", "load-1a-3"]
    evidence = scene.record.notes["evidence"]
    assert [each["rate_rps"] for each in evidence["sweep"]] == [4.0, 2.8, 4.8, 6.0]
    assert all(each["good"] == each["requests"] for each in evidence["sweep"])
    verdict = scene.record.verdict
    capacity = next(check for check in verdict["checks"] if check["name"] == "capacity")
    assert (verdict["outcome"], capacity["outcome"], capacity["value"]) == ("pass", "pass", 6.0)


def test_an_active_baseline_runs_a_b_b_a_on_a_source_that_has_the_room(policy):
    policy(load={"baseline": "active"})
    scene = scene_of(source_peak_replicas=1)  # of two that run
    seen = jobs_made(scene)
    assert scene.airflow().run().green
    assert seen == ["a1-1a", "b1-1a", "b2-1a", "a2-1a"]
    assert scene.record.verdict["outcome"] == "pass"


def test_an_active_baseline_is_refused_on_a_source_that_users_need_whole(policy):
    policy(load={"baseline": "active"})
    scene = Scene(source_peak_replicas=2)
    seen = jobs_made(scene)
    airflow = scene.airflow().run()
    assert not airflow.green
    assert "baseline `active` puts the peak a second time" in airflow.reasons()
    assert seen == []
    scene.assert_users_on_gpu()
    scene.assert_nothing_left()


def test_the_baseline_of_a_proof_of_concept_judges_a_later_migration(policy):
    scene = scene_of()
    assert scene.airflow().run().green
    policy(load={"baseline": "recorded"})
    seen = jobs_made(scene)
    airflow = scene.airflow("run-2", stop_after="none").run()
    assert airflow.green, airflow.reasons()
    assert [name for name in seen if not name.startswith("load-1a")] == []
    checks = {check["name"]: check["outcome"] for check in scene.record.verdict["checks"]}
    assert checks["tpot_p95_ratio"] == checks["arm_health"] == "pass"
    assert scene.record.notes["lengths"]["origin"].startswith("the baseline of ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "there is no ConfigMap"),
        (lambda about: about.replace('"peak_rps": 4', '"peak_rps": 5'), "this migration is of"),
        (lambda about: about.replace('"at": ', '"at": -'), "older than 30 days"),
        (lambda about: about[:-3], "cannot be read"),
    ],
)
def test_a_recorded_baseline_that_is_missing_foreign_old_or_broken_is_refused_with_the_remedy(policy, change, said):
    scene = scene_of()
    if change is not None:
        assert scene.airflow().run().green
        name = f"tpu-migration-{WORKLOAD}-baseline"
        kept = scene.world.client.get("configmaps", NAMESPACE, name)
        kept["data"]["about.json"] = change(kept["data"]["about.json"])
        scene.client("admin").replace(kept)
    policy(load={"baseline": "recorded"})
    airflow = scene.airflow("run-2").run()
    assert not airflow.green
    assert said in airflow.reasons()
    assert "stop_after: gate" in airflow.reasons()


def test_a_look_that_decides_nothing_is_extended_at_most_twice_and_then_held(policy):
    # An error rate this low cannot be proven with the requests of three looks.
    policy(looks=3, requests={"cap": 3000}, errors={"limit": 0.001})
    scene = Scene()
    seen = jobs_made(scene)
    airflow = scene.airflow().run()
    assert not airflow.green
    assert seen == [f"{block}-{look}a{end}" for look in (1, 2, 3) for block, end in (("baseline", ""), ("load", "-0"))]
    assert scene.record.phase is Phase.HELD
    assert [look["outcome"] for look in scene.record.notes["evidence"]["looks"]] == ["inconclusive"] * 3
    assert scene.record.verdict["sentence"].endswith("that was the last look: hold")
    scene.assert_users_on_gpu()


def test_requests_are_as_long_as_the_users_own_where_enough_of_them_were_seen(policy, monkeypatch):
    policy(load={"lengths": "live"})
    plain = EnginePod._metrics

    def with_lengths(self: EnginePod, now: float) -> str:
        lines = [
            f'vllm:request_{kind}_tokens_bucket{{engine="0",le="{bound}",model_name="m"}} {count}.0\n'
            for kind, bounds in (("prompt", (100, 500, "+Inf")), ("generation", (10, 50, "+Inf")))
            for bound, count in zip(bounds, (0, 90, 100), strict=True)
        ]
        return plain(self, now) + "".join(lines)

    monkeypatch.setattr(EnginePod, "_metrics", with_lengths)
    scene = scene_of()
    asked: list[list[str]] = []

    def look() -> None:
        for job in scene.world.client.list("jobs", NAMESPACE):
            if "-load-" in job["metadata"]["name"]:
                asked.append(job["spec"]["template"]["spec"]["containers"][0]["args"])

    scene.world.on_tick.append(look)
    assert scene.airflow().run().green
    lengths = scene.record.notes["lengths"]
    assert lengths["prompt"].startswith("bins:101-500=180,501-")
    assert lengths["output"].startswith("bins:11-50=180,51-")
    assert lengths["origin"] == "200 requests of the source's users"
    assert f"--output-tokens={lengths['output']}" in asked[0]


def test_too_few_users_seen_leave_the_lengths_to_the_plan_and_say_so(policy):
    policy(load={"lengths": "live"})
    scene = scene_of(prompt_tokens=333)
    assert scene.airflow().run().green
    lengths = scene.record.notes["lengths"]
    assert lengths["prompt"] == "333"
    assert "hold 0 requests only" in lengths["origin"]
