"""A source that lost a replica takes home what it carries; the rest stays on a target that is well, and comes later."""

from __future__ import annotations

import pytest

from sandbox.workload import NAMESPACE, WORKLOAD
from tests.simulation.harness import Calls, Killed, Phase, Scene
from tests.simulation.witness import TARGET, Witness
from tpu_migration.errors import TransientError
from tpu_migration.restore import restore

PLAN = {"steps": [50, 100], "bake_s": 60, "soak_s": 120}
AWAY_S = 240.0
SHARES_LEFT = "1 of the source's 2 replicas are ready and carry 50 %: 50 % of the users stay on the target"


def cordon(world, is_closed):
    """Let no machine of the source take a pod, or let each again."""
    for node in world.client.list("nodes"):
        if node["metadata"]["labels"].get("cloud.google.com/gke-nodepool") == "h100-pool":
            world.client.patch("nodes", None, node["metadata"]["name"], {"spec": {"unschedulable": is_closed}})


def end_replicas(world, count=None):
    """End so many of the source's replicas in good order; all without a number."""
    pods = [p for p in world.client.list("pods", NAMESPACE) if p["metadata"]["labels"].get("app") == WORKLOAD]
    for pod in pods[:count]:
        world.client.delete("pods", NAMESPACE, pod["metadata"]["name"])


class HalfGone:
    """A migration whose source loses one of two replicas at a share of the target, and the route since."""

    def __init__(self, at_percent=100, **plan):
        self.scene = Scene(**{**PLAN, **plan})
        self.world = self.scene.world
        self.witness = Witness(self.world)
        self.seen = []
        self.back_at = float("inf")
        self.scene.when(lambda: self.scene.weights().get(TARGET, 0) >= at_percent, self.lose)
        self.scene.when(lambda: self.world.clock.now() >= self.back_at, lambda: cordon(self.world, False))
        self.world.on_tick.append(self.note)

    def lose(self):
        """End a replica in good order, with no machine for another one in its place for a while."""
        cordon(self.world, True)
        end_replicas(self.world, 1)
        self.back_at = self.world.clock.now() + AWAY_S

    @property
    def phase(self):
        return self.witness.record.phase if self.witness.record else None

    @property
    def source_ready(self):
        return len(self.world.traffic.ready_engines(WORKLOAD))

    def note(self):
        if self.phase is Phase.FALLING_BACK:
            self.seen.append((self.source_ready, self.witness.written_percent))

    def meanwhile(self, act):
        """Do something once half of the users are left on the target."""
        self.scene.when(lambda: (1, 50) in self.seen, act)

    def left_dead(self):
        """Let Airflow die once half of the users stay, and a quarter of an hour go by; return it."""
        calls = Calls()
        self.meanwhile(lambda: setattr(calls, "kill_at", calls.count + 1))
        airflow = self.scene.airflow(calls=calls)
        with pytest.raises(Killed):
            airflow.run()
        self.world.advance(900.0)
        return airflow

    def assert_home(self):
        self.scene.assert_users_on_gpu()
        self.scene.assert_nothing_left()
        self.scene.assert_nobody_noticed()


def test_half_of_the_users_stay_until_the_source_is_whole_and_the_run_says_so():
    half = HalfGone()
    airflow = half.scene.airflow().run()
    assert SHARES_LEFT in airflow.reasons()
    assert {percent for ready, percent in half.seen if ready == 1} == {50}
    assert half.seen[-1] == (2, 0)
    half.assert_home()
    fallback = half.scene.record.fallback
    assert fallback.stays == 0
    assert fallback.observed > fallback.route_written > fallback.detected + 30.0, "the last write is what is followed"


def test_a_restore_that_is_tried_again_leaves_as_many_where_they_are():
    half, refused = HalfGone(), []
    calls = Calls()
    before = calls.before

    def refuse_once(method, path):
        before(method, path)
        if method == "PUT" and "httproutes" in path and half.source_ready == 1 and not refused:
            refused.append(path)
            raise TransientError("the API server is overloaded (503)")

    calls.before = refuse_once
    half.scene.airflow(calls=calls).run()
    assert refused
    assert {percent for ready, percent in half.seen if ready == 1} == {50}
    half.assert_home()


def test_no_share_grows_by_going_home():
    half = HalfGone(at_percent=10, steps=[10, 100])
    half.scene.airflow().run()
    assert {percent for ready, percent in half.seen if ready == 1} == {10}
    half.assert_home()


def test_a_target_that_fails_meanwhile_keeps_nobody():
    half = HalfGone()
    half.meanwhile(lambda: half.world.faults.set("errors-under-load", {"percent": 100}))
    half.meanwhile(lambda: half.world.faults.set("hang-mid-stream"))
    half.scene.airflow().run()
    assert (1, 0) in half.seen, half.seen
    half.scene.assert_users_on_gpu()
    half.scene.assert_nothing_left()


def test_a_person_takes_everybody_home_at_once():
    half = HalfGone()
    kube = half.scene.client("admin")

    def ask():
        restore(kube, NAMESPACE, WORKLOAD, actor="Ada", reason="all of them", clock=half.world.clock)

    half.meanwhile(ask)
    half.scene.airflow().run()
    assert (1, 0) in half.seen
    assert half.seen.index((1, 0)) > half.seen.index((1, 50))
    assert (1, 50) not in half.seen[half.seen.index((1, 0)) :]
    half.world.advance(AWAY_S)
    half.assert_home()


def test_with_airflow_dead_the_guard_brings_the_rest_home_once_the_source_is_whole():
    half = HalfGone(guards=2)
    airflow = half.left_dead()
    assert half.seen[-1] == (2, 0)
    assert {percent for ready, percent in half.seen if ready == 1} == {50}
    half.scene.goes_on(airflow)
    half.assert_home()
