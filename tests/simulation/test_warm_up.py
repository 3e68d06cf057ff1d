"""The warm proof in virtual time: what is asked of an engine, when it is warm, and why it may never be."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.virtual_bench import BenchPod
from sandbox.virtual_engine import EnginePod
from sandbox.workload import NAMESPACE, WORKLOAD
from tests.simulation.harness import Airflow, Phase, Scene


def scene_of(**plan: Any) -> Scene:
    return Scene(stop_after="gate", **plan)


def warm_jobs(scene: Scene) -> dict[str, dict[str, str]]:
    """Note the passes' Jobs as they appear: name, from `warm` on → the options."""
    seen: dict[str, dict[str, str]] = {}

    def look() -> None:
        for job in scene.world.client.list("jobs", NAMESPACE):
            name = job["metadata"]["name"].split("-", 3)[3]
            if name.startswith("warm"):
                args = job["spec"]["template"]["spec"]["containers"][0]["args"]
                seen.setdefault(name, dict(each.removeprefix("--").partition("=")[::2] for each in args))

    scene.world.on_tick.append(look)
    return seen


def seconds(scene: Scene, stage: str) -> float:
    found = next(each for each in scene.record.stages if each.stage == stage)
    return (found.ended or 0.0) - found.started


def assert_given_up(scene: Scene, airflow: Airflow, *said: str, within_s: float) -> None:
    """Users stayed where they were, the TPU is given back, and the warm-up said why, early."""
    assert not airflow.green
    assert scene.record.phase is Phase.FALLEN_BACK, airflow.reasons()
    reason = airflow.ended["warm_up"].reason
    for words in said:
        assert words in reason, reason
    assert seconds(scene, "warm_up") < within_s
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()
    scene.assert_nothing_left()


# ----------------------------------------------------------------------------------- it gets warm


def test_two_passes_that_agree_are_warm_and_the_record_says_what_that_took():
    scene = scene_of()
    jobs = warm_jobs(scene)
    assert scene.airflow().run().green
    assert sorted({name.split("-")[1] for name in jobs}) == ["1", "2"]
    assert len(jobs) == 4  # two replicas, two passes
    warm_up = scene.record.notes["warm_up"]
    shapes = warm_up["shapes"].split(",")
    assert warm_up["passes"] == 2
    assert warm_up["settled"] is True
    assert warm_up["compiled_at_start"] == 2 * 24
    assert warm_up["compiled_by_requests"] == 2 * len(shapes)
    assert warm_up["compile_s"] == pytest.approx(9.1 * (2 * 24 + 2 * len(shapes)))
    assert warm_up["batch_buckets"] == [8, 16, 32, 64]
    assert warm_up["stalls"] == 0
    assert "ms, then" in warm_up["change"]
    assert "warm_marks" not in scene.record.notes  # what only the passes need is not kept


def test_no_pass_sends_the_prompts_of_another_for_a_prefix_cache_would_answer():
    scene = scene_of()
    jobs = warm_jobs(scene)
    assert scene.airflow().run().green
    seeds = {name.split("-")[1]: options["seed"] for name, options in jobs.items()}
    assert seeds["1"] != seeds["2"]


def test_live_lengths_and_stays_make_the_shapes(monkeypatch):
    """200 users with prompts of 65 to 128 tokens who stay 8 s, 4 a second: 16 a replica, on a slower TPU 32."""
    plain = EnginePod._metrics

    def told(self: EnginePod, now: float) -> str:
        label = 'engine="0",model_name="m"'
        lines = [
            f'vllm:request_{kind}_tokens_bucket{{engine="0",le="{bound}",model_name="m"}} {count}.0\n'
            for kind, bounds in (("prompt", (64, 128, "+Inf")), ("generation", (10, 50, "+Inf")))
            for bound, count in zip(bounds, (0, 100, 100), strict=True)
        ]
        stay = f"vllm:e2e_request_latency_seconds_sum{{{label}}} 800.0\n"
        return plain(self, now) + "".join(lines) + stay + f"vllm:e2e_request_latency_seconds_count{{{label}}} 100.0\n"

    monkeypatch.setattr(EnginePod, "_metrics", told)
    scene = scene_of(prompt_tokens=512)  # the gate of the demo sends the plan's
    assert scene.airflow().run().green
    warm_up = scene.record.notes["warm_up"]
    assert warm_up["shapes"] == "96x1,384x1,96x16,384x16,96x32,384x32"
    assert warm_up["lengths"] == "200 requests of the source's users"


def test_a_latency_that_falls_from_pass_to_pass_is_waited_for(monkeypatch):
    falling(monkeypatch, 1.0, 0.7, 0.5, 0.49)
    scene = scene_of()
    assert scene.airflow().run().green
    assert scene.record.notes["warm_up"]["passes"] == 4
    assert scene.record.notes["warm_up"]["settled"] is True


def test_a_latency_that_never_settles_is_told_and_left_to_the_gate(monkeypatch):
    """Latency is what the gate judges, with intervals; a compile under a user's request it could only meet."""
    falling(monkeypatch, 1.0, 2.0, 1.0, 2.0, 1.0)
    scene = scene_of()
    assert scene.airflow().run().green
    warm_up = scene.record.notes["warm_up"]
    assert (warm_up["passes"], warm_up["settled"]) == (5, False)
    assert "-50." in warm_up["change"] or "-49." in warm_up["change"]


def falling(monkeypatch: pytest.MonkeyPatch, *factors: float) -> None:
    """Have the passes' latencies be so many times the usual one, pass after pass."""
    plain = BenchPod._figures

    def figures(self: BenchPod, shape: str, slower: float) -> dict[str, Any]:
        number = int(self.options()["seed"]) % 1000
        return plain(self, shape, slower * factors[number - 1])

    monkeypatch.setattr(BenchPod, "_figures", figures)


def test_tokens_that_stand_still_without_a_compile_cost_a_pass_and_are_told(monkeypatch):
    """The counters are the second witness: what the log does not explain is looked at once more."""
    scene = scene_of()
    jobs = warm_jobs(scene)

    def stall() -> None:
        for engine in tpus(scene):
            engine._stalls += 3

    scene.when(lambda: any(name.startswith("warm-2") for name in jobs), stall)
    assert scene.airflow().run().green
    warm_up = scene.record.notes["warm_up"]
    assert (warm_up["passes"], warm_up["settled"], warm_up["stalls"]) == (3, True, 6)


def test_a_replica_that_is_replaced_in_mid_pass_is_driven_like_the_others():
    scene = scene_of()
    jobs = warm_jobs(scene)

    def lose() -> None:
        victim = sorted(tpus(scene), key=lambda engine: engine.name)[0]
        scene.world.client.delete("pods", NAMESPACE, victim.name)

    scene.when(lambda: scene.record.phase is Phase.DEPLOYED and passes_begun(scene) == 2, lose)
    assert scene.airflow().run().green
    warm_up = scene.record.notes["warm_up"]
    assert warm_up["settled"] is True
    assert len({name.split("-")[2] for name in jobs}) == 3  # each pod has Jobs of its own


def passes_begun(scene: Scene) -> int:
    return len(scene.record.notes.get("warm_marks") or [])


def tpus(scene: Scene) -> list[EnginePod]:
    return [pod for pod in scene.world.pods.values() if isinstance(pod, EnginePod) and pod.is_tpu]


# -------------------------------------------------------------------------------- it never will be


@pytest.mark.parametrize(
    ("fault", "said", "within_s"),
    [
        ("oom", ("ran out of accelerator memory", "RESOURCE_EXHAUSTED: Error loading program", "--max-num-seqs"), 300),
        ("late-oom", ("ran out of accelerator memory", "RESOURCE_EXHAUSTED", "larger slice"), 400),
        ("host-oom", ("killed for the host memory", "OOMKilled, exit code 137", "memory limit"), 250),
        ("crash-loop", ("keeps crashing", "3 restarts", "TPU initialization failed"), 250),
        ("compile-hang", ("no progress for 20 minutes", "Finished XLA compilation of jit(step_11)"), 1500),
        ("slow-compile", ("compiles for too long", "in 75 minutes", "VLLM_XLA_CACHE_PATH"), 4700),
        ("image-pull", ("cannot start (ImagePullBackOff)", "correct the image's name"), 700),
        ("recompile", ("still compile after 10 warm-up passes", "VLLM_TPU_BUCKET_PADDING_GAP"), 500),
        ("hang-mid-stream", ("has given no answer for", "it hangs"), 700),
    ],
)
def test_each_trouble_is_told_apart_with_its_lines_and_remedy_long_before_the_stage_s_time_is_over(
    fault, said, within_s
):
    scene = Scene()
    scene.world.faults.set(fault)
    assert_given_up(scene, scene.airflow().run(), *said, within_s=within_s)


def test_one_crash_is_survived_and_its_engine_gets_warm():
    scene = scene_of()
    scene.world.faults.set("crash-loop")
    scene.when(lambda: any(engine.restarts for engine in tpus(scene)), scene.world.faults.clear)
    assert scene.airflow().run().green
    assert scene.record.notes["warm_up"]["settled"] is True


def test_a_registry_that_comes_back_in_time_is_waited_for():
    scene = scene_of()
    scene.world.faults.set("image-pull")
    began: list[float] = []

    def mend() -> None:
        if tpus(scene) and not began:
            began.append(scene.world.clock.now())
        if began and scene.world.clock.now() > began[0] + 400:
            scene.world.faults.clear()

    scene.world.on_tick.append(mend)
    assert scene.airflow().run().green


def test_pods_that_find_no_node_are_named_and_given_up_in_twenty_minutes():
    scene = Scene()

    def cordon() -> None:
        for node in scene.world.client.list("nodes", None):
            if "cloud.google.com/gke-tpu-accelerator" in node["metadata"]["labels"]:
                node["spec"]["unschedulable"] = True
                scene.world.client.update("nodes", node)
        for engine in tpus(scene):
            scene.world.client.delete("pods", NAMESPACE, engine.name)

    scene.when(lambda: record_phase(scene) == "deployed", cordon)
    airflow = scene.airflow().run()
    assert_given_up(scene, airflow, "finds no node for 20 minutes", "kubectl describe nodes", within_s=1400)


def record_phase(scene: Scene) -> str:
    entry = scene.world.api.store.get("configmaps", NAMESPACE, f"tpu-migration-{WORKLOAD}")
    return str(entry.obj["data"]["phase"]) if entry else ""


def test_a_compile_that_outlasts_a_request_is_not_mistaken_for_a_hang(monkeypatch):
    monkeypatch.setattr(BenchPod, "_error", lambda self, engine: "timeout after 300.0 s" if self._shapes else "")
    plain = EnginePod.log

    def compiling(self: EnginePod) -> list[str]:
        return [*plain(self), *(["Compiling jit(step_fun) with global shapes and types []"] if self.warm else [])]

    monkeypatch.setattr(EnginePod, "log", compiling)
    scene = Scene()
    said = ("warm-up pass 1", "12 of 12 requests failed", "it compiles meanwhile (Compiling jit(step_fun)")
    assert_given_up(scene, scene.airflow().run(), *said, within_s=400)


def test_an_engine_that_stands_still_under_requests_hangs(monkeypatch):
    monkeypatch.setattr(BenchPod, "_error", lambda self, engine: "timeout after 300.0 s" if self._shapes else "")
    monkeypatch.setattr(EnginePod, "compile", lambda self, shapes: True)
    scene = Scene()
    said = ("12 of 12 requests failed", "it compiles nothing and its process lives: it hangs")
    assert_given_up(scene, scene.airflow().run(), *said, within_s=400)


@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        ("/v1/models", b'{"data":[{"id":"other","max_model_len":32768}]}', "would get 404"),
        ("/v1/models", b'{"data":[{"id":"gemma-3-27b-it","max_model_len":8192}]}', "longer prompts would be refused"),
        ("/v1/models", b'{"data":[{"id":"gemma-3-27b-it"}]}', "longer prompts would be refused"),
        ("/v1/completions", b'{"usage":{"completion_tokens":0}}', "has given no answer for"),
    ],
    ids=["other name", "shorter context", "unknown context", "no token"],
)
def test_an_engine_that_is_healthy_and_does_not_serve_what_users_ask_is_refused(monkeypatch, path, answer, said):
    plain = EnginePod.answer

    def other(self: EnginePod, method: str, asked: str, body: bytes) -> tuple[int, bytes]:
        return (200, answer) if self.is_tpu and asked == path else plain(self, method, asked, body)

    monkeypatch.setattr(EnginePod, "answer", other)
    scene = Scene()
    assert_given_up(scene, scene.airflow().run(), said, within_s=700)


def test_a_log_that_would_not_show_compiles_is_refused(monkeypatch):
    """Without JAX_LOG_COMPILES the start's own lines are there all the same."""
    monkeypatch.setattr(
        EnginePod, "log", lambda self: ["Compilation of worker0 backbone --> {} finished in 52.1 [secs]."]
    )
    scene = Scene()
    assert_given_up(scene, scene.airflow().run(), "tells of no compiled program", "JAX_LOG_COMPILES", within_s=400)
