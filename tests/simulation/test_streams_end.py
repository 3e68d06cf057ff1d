"""On each way back the streams on the TPU end by themselves, also where nothing but the users' route names it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sandbox.workload import NAMESPACE, WORKLOAD
from tests.simulation.harness import Airflow, Calls, Killed, Phase, Scene
from tests.simulation.test_gpu_fallback import fall_back
from tpu_migration import restore
from tpu_migration.domain import routing
from tpu_migration.stages.base import Done, Failed

LONG = {"answer_s": 30.0}  # longer than the Gateway takes to follow


def users_rules(scene: Scene) -> list:
    return scene.world.client.get("httproutes", NAMESPACE, WORKLOAD)["spec"]["rules"]


def without_probe_route(scene: Scene) -> None:
    """Let somebody delete the probe route, so that it names the target no more."""
    for each in scene.world.client.list("httproutes", NAMESPACE):
        if each["metadata"]["name"] != WORKLOAD:
            scene.world.client.delete("httproutes", NAMESPACE, each["metadata"]["name"])


def shifted(act: Callable[[Airflow], None]) -> tuple[Scene, Airflow]:
    """Return a migration to which something happens once half of the users are on the target."""
    scene = Scene(world=LONG)
    airflow = scene.airflow(calls=Calls())

    def now() -> None:
        without_probe_route(scene)
        act(airflow)

    scene.when_percent(50, now)
    return scene, airflow


def die(airflow: Airflow) -> None:
    airflow.calls.kill_at = airflow.calls.count + 1


def by_the_guard() -> Scene:
    scene, airflow = shifted(die)
    with pytest.raises(Killed):
        airflow.run()
    scene.world.advance(90.0)
    assert scene.rescued
    scene.goes_on(airflow)
    return scene


def by_the_keeper() -> Scene:
    scene, airflow = shifted(lambda airflow: airflow.world.faults.set("lb-errors", {"percent": 30}))
    scene.when(
        lambda: airflow.current is not None and airflow.current.stage.name == "restore",
        lambda: scene.world.faults.clear("lb-errors"),
    )
    airflow.run()
    scene.world.traffic.violations[:] = [each for each in scene.world.traffic.violations if "streams" in each.what]
    return scene


def by_the_teardown() -> Scene:
    scene, airflow = shifted(die)
    with pytest.raises(Killed):
        airflow.run()
    again = scene.again(airflow)
    again.ended["shift"] = Failed("a person marked the task as failed")
    again.run()
    return scene


def by_gpu_fallback() -> Scene:
    scene = Scene(world=LONG, source_release="scale-to-zero")
    assert scene.airflow().run().green
    scene.when(lambda: scene.record.phase is Phase.FALLING_BACK, lambda: without_probe_route(scene))
    assert isinstance(fall_back(scene), Done)
    return scene


WAYS = [by_the_guard, by_the_keeper, by_the_teardown, by_gpu_fallback]


@pytest.mark.parametrize("way", WAYS)
def test_no_stream_on_the_tpu_is_cut_and_the_route_is_as_before_once_they_have_ended(way):
    before = users_rules(Scene())
    scene = way()
    assert scene.record.phase is Phase.FALLEN_BACK
    scene.assert_nobody_noticed()
    assert users_rules(scene) == before
    assert scene.leftovers() == []


@pytest.mark.parametrize("way", WAYS)
def test_sees_streams_that_are_cut_with_the_route_that_led_there(way, monkeypatch):
    def at_once(live, recorded, source, target, *, streaming):
        return routing.restored(live, recorded, source, target)

    monkeypatch.setattr(restore, "restored", at_once)
    assert "streams ended with" in " ".join(each.what for each in way().world.traffic.violations)


def test_a_target_that_is_kept_for_a_diagnosis_is_in_no_route():
    before = users_rules(Scene())
    scene, airflow = shifted(lambda airflow: airflow.world.faults.set("lb-errors", {"percent": 30}))
    airflow.plan = type(airflow.plan).from_params({**airflow.plan.to_dict(), "on_fallback": "keep"})
    airflow.run()
    assert scene.record.phase is Phase.HELD
    assert users_rules(scene) == before
