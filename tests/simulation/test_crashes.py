"""Kill the orchestrator at API calls all over a migration: nobody notices, and it always ends well.

A seeded sample; each point is killed before the call reaches the server, and after the server
has done it but before the answer is seen.
"""

from __future__ import annotations

import random

import pytest

from tests.simulation.harness import Airflow, Calls, Killed, Phase, Scene
from tpu_migration.domain.phases import AFTER_COMMIT, ENDED, USERS_MAY_BE_ON_TARGET
from tpu_migration.errors import MigrationError
from tpu_migration.guard import IDLE_LIMIT_S, NO_USER_DEPENDS

SAMPLE = 16
LEASE_S, GUARD_MARGIN_S, GATEWAY_S = 60.0, 5.0, 8.0
WRITES = ("POST", "PUT", "PATCH", "DELETE", "GKE")


def points() -> list[tuple[int, bool]]:
    """Return a sample of (call, after): mostly writes, since a killed read changes nothing."""
    whole = Scene().airflow(calls=(calls := Calls()))
    whole.run()
    writes = [i + 1 for i, call in enumerate(calls.trace) if call.startswith(WRITES)]
    reads = [i + 1 for i, call in enumerate(calls.trace) if not call.startswith(WRITES)]
    chosen = random.Random(20261122)
    sample = chosen.sample(writes, SAMPLE - 4) + chosen.sample(reads, 4)
    return [(call, after) for call in sorted(sample) for after in (False, True)]


POINTS = points()


def killed_at(call: int, after: bool) -> tuple[Scene, Airflow]:
    scene = Scene()
    airflow = scene.airflow(calls=Calls(kill_at=call, after=after))
    with pytest.raises(Killed):
        airflow.run()
    return scene, airflow


@pytest.mark.parametrize(("call", "after"), POINTS)
def test_started_again_within_the_lease_the_migration_goes_on_and_finishes(call, after):
    scene, killed = killed_at(call, after)
    scene.world.advance(12.0)
    again = scene.goes_on(killed)
    assert again.green, again.reasons()
    assert scene.record.phase is Phase.MIGRATED
    assert scene.rescued == []
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()


@pytest.mark.parametrize(("call", "after"), POINTS)
def test_left_dead_the_guard_has_users_safe_in_time_and_a_later_start_ends_the_run(call, after):
    scene, killed = killed_at(call, after)
    scene.world.advance(LEASE_S + GUARD_MARGIN_S + GATEWAY_S + 5.0)
    found = scene.world.client.get("configmaps", "inference", "tpu-migration-vllm-gemma3-27b")
    if found is None:
        scene.assert_users_on_gpu()
        return
    phase = scene.record.phase
    if phase in AFTER_COMMIT:
        scene.assert_users_on_tpu()
    else:
        assert phase not in USERS_MAY_BE_ON_TARGET
        scene.assert_users_on_gpu()
    if phase in NO_USER_DEPENDS:  # a slow hand-over is no death; the guard waits half an hour there
        scene.world.advance(IDLE_LIMIT_S)
        assert scene.record.phase is Phase.FALLING_BACK
    again = scene.goes_on(killed)
    assert scene.record.phase in ENDED
    if phase not in AFTER_COMMIT:
        assert not again.green
        scene.assert_users_on_gpu()
        scene.assert_nothing_left()
    scene.assert_nobody_noticed()


@pytest.mark.parametrize(("call", "after"), POINTS[::3])
def test_an_older_self_that_wakes_up_again_changes_nothing(call, after):
    scene, killed = killed_at(call, after)
    ghost = killed.current
    assert ghost is not None
    scene.world.advance(4.0)
    killed.calls.kill_at = None

    def haunt() -> None:
        if int(scene.world.clock.now()) % 7 == 0:
            try:
                ghost.step()
            except MigrationError as error:
                raise AssertionError(f"a step must not raise: {error}") from error

    scene.world.on_tick.append(haunt)
    again = scene.goes_on(killed)
    scene.world.on_tick.remove(haunt)
    assert scene.record.phase in (Phase.MIGRATED, Phase.FALLEN_BACK), again.reasons()
    scene.assert_nobody_noticed()


def test_a_later_run_ends_the_one_that_died_and_then_migrates():
    scene = Scene()
    scene.when_percent(50, lambda: setattr(first.calls, "kill_at", first.calls.count + 1))
    first = scene.airflow("run-1", calls=Calls())
    with pytest.raises(Killed):
        first.run()
    scene.world.advance(LEASE_S + GUARD_MARGIN_S + GATEWAY_S)
    assert scene.rescued == ["vllm-gemma3-27b"]
    second = scene.airflow("run-2").run()
    assert second.green, second.reasons()
    assert any("run run-1, which was left behind, is ended" in each for each in second.said)
    assert scene.record.run_id == "run-2"
    assert not any("run-1" in pool for pool in scene.pools())
    assert len([pool for pool in scene.pools() if pool.startswith("tpu-")]) == 1
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()


def test_one_damaged_record_does_not_blind_the_guard_to_the_others():
    scene, _ = killed_in_mid_shift()
    damaged = {"name": "tpu-migration-other", "namespace": "inference", "labels": {"tpu-migration/record": "true"}}
    scene.world.client.create("configmaps", {"metadata": damaged, "data": {"record.json": "{"}})
    scene.world.advance(LEASE_S + GUARD_MARGIN_S + GATEWAY_S)
    assert scene.record.phase is Phase.FALLING_BACK
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()


def test_a_record_that_is_damaged_in_mid_shift_is_restored_from_the_snapshot_by_the_guard():
    scene, _ = killed_in_mid_shift()
    name = "tpu-migration-vllm-gemma3-27b"
    scene.world.client.patch("configmaps", "inference", name, {"data": {"record.json": "{"}})
    scene.world.advance(2 * (LEASE_S + GUARD_MARGIN_S) + GATEWAY_S)
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()
    assert len(scene.rescued) <= 2  # once for each guard, not once a minute


def test_left_alone_after_the_commit_users_stay_where_they_are_and_nobody_writes_the_route():
    scene = Scene()
    airflow = scene.airflow(calls=Calls())
    scene.when(
        lambda: (
            scene.world.client.get("configmaps", "inference", "tpu-migration-vllm-gemma3-27b")["data"]["phase"]
            == "committed"
            if airflow.calls.count > 100
            else False
        ),
        lambda: setattr(airflow.calls, "kill_at", airflow.calls.count + 1),
    )
    with pytest.raises(Killed):
        airflow.run()
    epoch = scene.record.epoch
    scene.world.advance(600.0)
    assert scene.record.epoch == epoch
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()


def killed_in_mid_shift() -> tuple[Scene, Airflow]:
    scene = Scene()
    airflow = scene.airflow(calls=Calls())
    scene.when_percent(50, lambda: setattr(airflow.calls, "kill_at", airflow.calls.count + 1))
    with pytest.raises(Killed):
        airflow.run()
    return scene, airflow


def test_killed_between_the_lease_and_the_record_it_keeps_no_later_run_out():
    first = Scene().airflow(calls=(calls := Calls()))
    first.run()
    lease = next(i for i, call in enumerate(calls.trace) if call.startswith("POST") and "/leases" in call)
    scene, _ = killed_at(lease + 1, after=True)
    second = scene.airflow("run-2").run()
    assert second.green, second.reasons()
    assert any("still alive" in each for each in second.said)
