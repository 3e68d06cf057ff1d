"""People hear what matters of a migration, in order and once; and whoever tells them can break nothing."""

from __future__ import annotations

import pytest

from sandbox.workload import WORKLOAD
from tests.simulation.harness import Airflow, Phase, Scene
from tests.simulation.test_canary import canary_run, drive_through, migrated
from tests.simulation.test_gpu_fallback import fallback_run
from tpu_migration.answers import answer
from tpu_migration.domain.gate import Verdict
from tpu_migration.notices import Notice
from tpu_migration.stages import gate
from tpu_migration.stages.base import Context


@pytest.fixture
def heard(monkeypatch) -> list[Notice]:
    """What everybody who works as the product does tells."""
    found: list[Notice] = []
    made = Context.create.__func__
    monkeypatch.setattr(
        Context, "create", classmethod(lambda cls, *given, **more: made(cls, *given, **{"tell": found.append, **more}))
    )
    return found


def titles(heard: list[Notice]) -> list[str]:
    return [each.title.removeprefix(f"{WORKLOAD}: ") for each in heard]


def test_a_migration_is_told_from_its_start_to_its_end_once_each(heard):
    assert Scene().airflow().run().green
    assert titles(heard) == [
        "migration begins", "TPU is warm", "the gate has decided", "users begin to move", "10 % on TPU", "50 % on TPU",
        "100 % on TPU", "all users are on TPU", "committed", "GPUs are being released", "migrated",
    ]  # fmt: skip
    assert "2 × nvidia-h100-80gb to 2 × tpu-v5e-8" in heard[0].body
    assert heard[2].body.startswith("PASS: all")


def test_a_fall_back_is_told_with_its_reason(heard):
    scene = Scene()
    scene.world.faults.set("slow-tpu")
    scene.airflow().run()
    assert titles(heard) == ["migration begins", "TPU is warm", "gate failed", "fell back"], "one an event"
    (fell,) = [each for each in heard if each.title.endswith("fell back")]
    assert "the benchmark gate: FAIL" in fell.body


def test_users_who_are_sent_home_in_mid_shift_are_told_of_once_with_why_and_once_at_the_end(heard):
    scene = Scene()
    scene.when_percent(50, lambda: scene.world.faults.set("slow-tpu", {"factor": 20}))
    scene.airflow().run()
    assert scene.record.phase is Phase.FALLEN_BACK
    assert titles(heard)[-2:] == ["shift failed", "fell back"]
    assert [each.kind for each in heard].count("failure") == 1


def test_a_run_that_is_refused_is_told_once(heard):
    scene = Scene()
    assert not scene.airflow(peak_rps=0).run().green
    assert titles(heard) == ["preflight failed"]


def test_a_verdict_that_stays_open_is_told_once_as_what_became_of_it(heard, monkeypatch):
    open_ = Verdict("inconclusive", (), "demo", "", "INCONCLUSIVE: too little was seen")
    monkeypatch.setattr(gate, "judge", lambda *given, **more: open_)
    scene = Scene()
    assert not scene.airflow().run().green
    assert titles(heard) == ["migration begins", "TPU is warm", "held"]


def test_going_back_after_the_commit_is_told_with_who_asked_for_it(heard):
    scene = migrated()
    heard.clear()
    back = fallback_run(scene)
    back.context.why = "p99 TTFT 900 ms > limit 700 ms"
    drive_through(scene, back)
    assert titles(heard) == ["users go back", "fell back"]
    assert "p99 TTFT 900 ms > limit 700 ms" in heard[1].body


def test_a_question_and_its_answer_are_told(heard):
    scene = Scene(approvals=["decommission"], approval_timeout_s=3600)

    def say_yes() -> None:
        answer(
            scene.client("admin"), scene.plan.namespace, WORKLOAD, "decommission",
            approved=True, by="ada", reason="", clock=scene.world.clock,
        )  # fmt: skip

    scene.when(lambda: "approve the decommission?" in titles(heard), say_yes)
    assert scene.airflow().run().green
    (asked,) = [each for each in heard if each.title.endswith("approve the decommission?")]
    assert f"`tpu-migration approve {WORKLOAD}`. Silence is a no." in asked.body
    assert titles(heard).count("migrated") == 1


def test_a_canary_is_told_when_it_changes_its_mind_and_not_every_six_hours(heard):
    scene = migrated()
    heard.clear()
    for number in range(3):
        drive_through(scene, canary_run(scene, f"canary-{number}"))
    assert titles(heard) == []
    scene.world.faults.set("slow-tpu")
    drive_through(scene, canary_run(scene, "canary-3"))
    assert titles(heard) == ["canary failed"]
    assert "failed 2 times, minutes apart" in heard[0].body
    scene.world.faults.clear("slow-tpu")
    scene.world.advance(60.0)
    drive_through(scene, canary_run(scene, "canary-4"))
    assert titles(heard) == ["canary failed", "canary pass"]


def test_whoever_tells_people_can_break_no_migration(monkeypatch):
    def broken(notice: Notice) -> None:
        raise RuntimeError("the chat is down")

    made = Context.create.__func__
    monkeypatch.setattr(
        Context, "create", classmethod(lambda cls, *given, **more: made(cls, *given, **{"tell": broken, **more}))
    )
    scene = Scene()
    airflow: Airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    assert scene.record.phase is Phase.MIGRATED
    scene.assert_nobody_noticed()
