"""A seeded sample of the crash points that `make prove` plays in full; and its judge must be able to see."""

from __future__ import annotations

import random

import pytest

from sandbox.workload import NAMESPACE, WORKLOAD
from tests.simulation.crash_points import STORIES, Fate, Play, Point, different, play, points
from tests.simulation.harness import Phase, Scene
from tests.simulation.witness import TARGET, Witness
from tpu_migration import restore
from tpu_migration.clients.kubernetes import LEASES
from tpu_migration.guard import Guard
from tpu_migration.lease import Lease
from tpu_migration.stages import decommission

SAMPLE = 4  # of each story and fate


@pytest.mark.parametrize("story", STORIES.values(), ids=lambda story: story.name)
def test_killed_or_doubled_at_any_call_of_a_story_users_are_safe_at_every_instant(story):
    found = points(story)
    worlds = different(found, set())
    assert len(worlds) < len(found)
    chance = random.Random(f"{story.name}/20261125")
    broken = []
    for fate in Fate:
        choice = [point for point, _ in found] if fate is Fate.JOINED else worlds
        for point in chance.sample(choice, SAMPLE):
            if problems := play(story, fate, point).problems:
                broken.append(f"{fate}, {point}: {problems}")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("phase", [Phase.PLANNED, Phase.WARM])
def test_two_teardowns_of_one_run_that_restore_in_the_same_moment_still_end_it(phase):
    played = play(STORIES[f"stopped in {phase}"], Fate.JOINED, Point(2, after=True))
    assert played.problems == []


def test_a_preflight_that_was_cut_off_does_not_write_the_record_anew_under_a_later_task():
    played = play(STORIES["migration"], Fate.JOINED, Point(4, after=False))
    assert played.problems == []


# ------------------------------------------------------------- a judge that sees nothing wrong must be able to


def problems(story: str, fate: Fate, point: Point) -> str:
    return " ".join(play(STORIES[story], fate, point).problems)


def in_phase(story: str, phase: Phase) -> Point:
    """Return the first point of a story in a phase."""
    found: list[Point] = []

    def look(point: Point) -> None:
        if one.phase is phase and point.after:
            found.append(point)

    one = Play(STORIES[story], look)
    one.to_its_end()
    return found[0]


def test_sees_a_guard_that_sleeps(monkeypatch):
    point = in_phase("migration", Phase.SOAKING)
    monkeypatch.setattr(Guard, "_help", lambda *_: False)
    assert "the guard has not restored within" in problems("migration", Fate.DEAD, point)


def test_sees_a_guard_that_is_late(monkeypatch):
    point = in_phase("migration", Phase.SHIFTING)
    monkeypatch.setattr("tpu_migration.guard.DURATION_S", 80.0)
    assert "the safe route came" in problems("migration", Fate.DEAD, point)


def test_sees_a_guard_that_leaves_the_targets_pods(monkeypatch):
    point = in_phase("migration", Phase.SOAKING)
    monkeypatch.setattr(Guard, "_end_target", lambda *_: None)
    assert "nobody came back, and" in problems("migration", Fate.DEAD, point)


def test_sees_a_keeper_that_restores_and_tells_no_record(monkeypatch):
    point = in_phase("breach in soaking", Phase.SOAKING)
    monkeypatch.setattr(restore.Records, "force", lambda *_: None)
    assert problems("breach in soaking", Fate.RESUMED, point)


def test_sees_an_older_self_that_gives_the_newer_ones_lease_away(monkeypatch):
    point = in_phase("stopped in shifting", Phase.FALLING_BACK)

    def give_away(self: Lease) -> None:
        found = self._kube.get(LEASES, self._name, self._namespace)
        assert found is not None
        self._kube.replace({**found, "spec": {**found["spec"], "holderIdentity": ""}})

    monkeypatch.setattr(Lease, "release", give_away)
    assert "the lease is held by nobody now" in problems("stopped in shifting", Fate.JOINED, point)


def test_sees_gpus_that_are_given_up_before_the_record_counts_without_them(monkeypatch):
    point = in_phase("decommission", Phase.COMMITTED)
    release = decommission._release

    def hasty(ctx, record, policy):
        ctx.kube.scale(record.source.deployment, ctx.plan.namespace, 0)
        return release(ctx, record, policy)

    monkeypatch.setattr(decommission, "_release", hasty)
    assert "source replicas, and 0 are asked for" in problems("decommission", Fate.RESUMED, point)


def test_sees_a_weight_that_moves_in_an_instant_between_two_ticks():
    scene = Scene()
    witness = Witness(scene.world)
    route = scene.world.client.get("httproutes", NAMESPACE, WORKLOAD)
    before = [dict(rule) for rule in route["spec"]["rules"]]
    for rule in route["spec"]["rules"]:
        rule["backendRefs"] = [{"name": TARGET, "port": 8000, "weight": 100}]
    scene.world.client.update("httproutes", route)
    route = scene.world.client.get("httproutes", NAMESPACE, WORKLOAD)
    route["spec"]["rules"] = before
    scene.world.client.update("httproutes", route)
    told = " ".join(each.what for each in witness.broken)
    assert "from 0 to 100 % without proof; record: none" in told
    assert f"{TARGET} has weight 100 in the route as written, and no ready endpoint" in told
