"""Many hundred migrations with what may go wrong in them: nobody notices, and there is always a way back."""

from __future__ import annotations

import pytest

from sandbox.workload import NAMESPACE, WORKLOAD
from tests.simulation import scenarios
from tests.simulation.fault_matrix import FORETOLD
from tests.simulation.harness import Phase
from tests.simulation.scenarios import Death, Onset, Play, Scenario, draw, play
from tpu_migration.domain.watch import Watch
from tpu_migration.guard import Guard
from tpu_migration.restore import Restored
from tpu_migration.stages import shift, teardown
from tpu_migration.stages.base import Failed

SEEDS, BLOCK = 600, 25


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_whatever_is_drawn_users_are_safe_and_nothing_is_left(first):
    ends = [play(draw(seed)) for seed in range(first, first + BLOCK)]
    broken = [f"{each.scenario} ended {each.phase}: {each.problems}" for each in ends if each.problems]
    assert not broken, "\n".join(broken)


def test_the_draw_is_the_same_for_the_same_seed_and_covers_every_fault():
    assert draw(7) == draw(7)
    drawn = [draw(seed) for seed in range(SEEDS)]
    assert {onset.fault for each in drawn for onset in each.onsets} == set(scenarios.FAULTS)
    assert sum(each.death is not None for each in drawn) > SEEDS / 4


# A judge that sees nothing wrong must not be one that cannot: each of these breaks the product, and must be seen.

REVERTED = Onset("gitops", Phase.SHIFTING, 0.0, None, one_replica=False)


def broken(*onsets: Onset, death: Death | None = None) -> Play:
    plan = {**scenarios.QUICK, "steps": [50, 100], "soak_s": 60}
    return Play(Scenario(1, onsets, death, plan, {"speed": scenarios.SPEED, "rate_rps": 16.0, "answer_s": 1.0}))


def problems(run: Play) -> str:
    return " ".join(run.run().problems)


def test_sees_a_keeper_that_overlooks_a_target_without_engines(monkeypatch):
    monkeypatch.setattr(Watch, "_hard", lambda *_: None)
    monkeypatch.setattr(Watch, "_missing", lambda *_: None)
    run = broken()
    none = {"spec": {"replicas": 0}}
    run.scene.when(
        lambda: run.phase == Phase.SOAKING,
        lambda: run.world.client.patch("deployments", NAMESPACE, f"{WORKLOAD}-tpu", none, subresource="scale"),
    )
    assert f"users: {WORKLOAD}-tpu has weight 100 and no ready endpoint" in problems(run)


# A route in other hands is seen in the route itself.
@pytest.mark.parametrize("fault", sorted(scenarios.SEEN_BY_THE_KEEPER - {"gitops"}))
def test_sees_a_keeper_that_overlooks_what_users_meet(monkeypatch, fault):
    look = Watch.add
    monkeypatch.setattr(Watch, "add", lambda *given, **more: look(*given, **more) and None)
    assert "of the soak, and the run committed" in problems(broken(Onset(fault, Phase.SOAKING, 0.0, None, False)))


def test_what_a_keeper_must_see_is_what_ends_a_soak():
    ends_it = {
        fault for fault, cells in FORETOLD.items() for each in cells
        if "soak" in each.stages.split() and each.ends is Phase.FALLEN_BACK
    }  # fmt: skip
    passing = {"api-down", "gpu-gone", "node-lost"}  # they strike once, however long they are switched on
    assert ends_it - passing == scenarios.SEEN_BY_THE_KEEPER


def test_sees_a_teardown_that_leaves_the_pool(monkeypatch):
    monkeypatch.setattr(teardown, "removed", lambda *_: None)
    assert "node pools left" in problems(broken(REVERTED))


def test_sees_a_teardown_that_leaves_objects(monkeypatch):
    monkeypatch.setattr(teardown, "remove_target", lambda ctx: None)
    assert "objects left" in problems(broken(REVERTED))


def test_sees_a_teardown_that_brings_nobody_home(monkeypatch):
    monkeypatch.setattr(shift, "send_home", lambda ctx, reason, **_: Failed(reason, "breach"))
    monkeypatch.setattr(teardown, "_send_to_safe_route", lambda ctx, *_: Restored("nothing was done", ctx.epoch))
    hung = Onset("gpu-gone", Phase.SOAKING, 0.0, None, one_replica=False)
    assert "the run ended in phase soaking" in problems(broken(hung))


def test_sees_a_guard_that_sleeps(monkeypatch):
    monkeypatch.setattr(Guard, "_help", lambda *_: False)
    assert "the guard has not restored" in problems(broken(death=Death(450, after=False, back_after_s=None)))


def test_sees_a_green_run_that_moved_nobody(monkeypatch):
    monkeypatch.setattr(teardown, "_GREEN", frozenset(Phase))
    assert "the run is green in phase fallen_back" in problems(broken(REVERTED))
