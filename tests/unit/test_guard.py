"""The guard is the dead man's switch: a lease that stands still sends users to the safe route."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cluster import GPU, NAMESPACE, TPU, Cluster, once, record

from sandbox.clock import VirtualClock
from tpu_migration import restore
from tpu_migration.clients.kubernetes import LEASES, Kubernetes
from tpu_migration.domain.phases import ENDED, USERS_MAY_BE_ON_TARGET, Phase
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.guard import BEAT_EVERY_S, IDLE_LIMIT_S, Guard, run
from tpu_migration.lease import DURATION_S, Holder, Lease
from tpu_migration.names import GUARD_LEASE, SCHEMA_ANNOTATION
from tpu_migration.record import SCHEMA_VERSION
from tpu_migration.records import Records

BEFORE_USERS = [Phase.PLANNED, Phase.PROVISIONED, Phase.DEPLOYED, Phase.WARM, Phase.GATED]


class Scene(Cluster):
    """A migration in mid-shift: a worker that renews as long as it lives, and guards that look."""

    def __post_init__(self):
        super().__post_init__()
        self.give_route({GPU: 50, TPU: 50})
        self.give_endpoints(GPU, 2)
        self.give_endpoints(TPU, 2)
        self.give_deployment(TPU, 2)
        self.records.begin(record())
        self.worker = Lease(self.kube, NAMESPACE, GPU, Holder("run-1", "shift"), self.clock)
        self.worker.acquire()
        self.alive = True
        self.restored = []  # (seconds since the worker died, workload)
        self.died = self.clock.now()

    def guard(self, identity="guard-0", clock=None):
        return Guard(self.kube, NAMESPACE, clock or self.clock, identity)

    def pass_time(self, seconds, *guards):
        for _ in range(int(seconds)):
            self.clock.advance(1.0)
            if self.alive:
                self.worker.renew_if_due()
            for guard in guards:
                self.restored += [(self.clock.now() - self.died, each) for each in guard.tick()]

    def die(self):
        self.alive = False
        self.died = self.clock.now()


@pytest.fixture
def scene():
    return Scene()


def test_a_worker_that_lives_is_left_alone_for_hours(scene):
    scene.pass_time(2 * 3600, scene.guard())
    assert scene.restored == []
    assert scene.weights() == {GPU: 50, TPU: 50}


@pytest.mark.parametrize("phase", sorted(USERS_MAY_BE_ON_TARGET))
def test_a_worker_that_dies_has_its_users_sent_home_within_lease_and_five_seconds(scene, phase):
    scene.records.force(lambda r: replace(r, phase=phase))
    scene.pass_time(30, guard := scene.guard())
    scene.die()
    scene.pass_time(DURATION_S + 5, guard)
    [(after, workload)] = scene.restored
    assert workload == GPU
    assert after <= DURATION_S + 5
    assert scene.weights() == {GPU: 1, TPU: 0}
    assert scene.records.read().phase is Phase.FALLING_BACK


@pytest.mark.parametrize("phase", BEFORE_USERS)
def test_before_the_first_weight_a_slow_hand_over_between_two_tasks_is_no_death(scene, phase):
    scene.records.force(lambda r: replace(r, phase=phase))
    guard = scene.guard()
    scene.die()
    scene.pass_time(IDLE_LIMIT_S, guard)
    assert scene.restored == []
    scene.pass_time(5, guard)
    assert [workload for _, workload in scene.restored] == [GPU]
    scene.pass_time(DURATION_S + 5, guard)
    assert scene.replicas(TPU) == 0, "nobody pays for TPUs that nobody works on"


def test_a_lease_that_stands_still_for_less_than_its_duration_is_not_dead(scene):
    scene.pass_time(1, guard := scene.guard())
    scene.die()
    scene.pass_time(DURATION_S - 1, guard)
    assert scene.restored == []


def test_the_reason_says_who_restored_it_and_in_which_phase(scene):
    scene.die()
    scene.pass_time(70, scene.guard("guard-7"))
    fallback = scene.records.read().fallback
    assert fallback.actor == "the guard guard-7"
    assert "nobody works on it, in phase shifting" in fallback.reason
    assert "stood still for 61 s" in fallback.reason


def test_a_guard_that_just_started_waits_a_whole_lease_of_its_own(scene):
    scene.die()
    scene.pass_time(3600)
    guard = scene.guard()
    scene.pass_time(DURATION_S, guard)
    assert scene.restored == []
    scene.pass_time(5, guard)
    assert [workload for _, workload in scene.restored] == [GPU]


@pytest.mark.parametrize("skew", [-7200.0, -30.0, 30.0, 7200.0])
def test_a_guard_with_a_clock_skew_neither_kills_a_living_worker_nor_spares_a_dead_one(scene, skew):
    class Skewed(VirtualClock):
        def now(self):
            return scene.clock.now() + skew

        def monotonic(self):
            return scene.clock.monotonic() - 1000.0

    guard = scene.guard(clock=Skewed())
    scene.pass_time(600, guard)
    assert scene.restored == []
    scene.die()
    scene.pass_time(DURATION_S + 5, guard)
    assert [workload for _, workload in scene.restored] == [GPU]


def test_a_worker_whose_wall_clock_is_wrong_is_believed_as_long_as_it_renews(scene):
    class Wrong(VirtualClock):
        def now(self):
            return scene.clock.now() - 86_400.0

        def monotonic(self):
            return scene.clock.monotonic()

    scene.worker = Lease(scene.kube, NAMESPACE, GPU, Holder("run-1", "shift", 2), Wrong())
    scene.worker.acquire()
    scene.pass_time(600, scene.guard())
    assert scene.restored == []


def test_a_missing_lease_is_a_dead_one(scene):
    scene.die()
    scene.client.delete("leases", NAMESPACE, f"tpu-migration-{GPU}")
    scene.pass_time(70, scene.guard())
    assert [workload for _, workload in scene.restored] == [GPU]


def test_the_next_worker_that_takes_the_lease_is_given_its_time(scene):
    guard = scene.guard()
    scene.die()
    scene.pass_time(55, guard)
    scene.worker = Lease(scene.kube, NAMESPACE, GPU, Holder("run-1", "shift", 2), scene.clock)
    scene.worker.acquire()
    scene.alive = True
    scene.pass_time(300, guard)
    assert scene.restored == []


# ------------------------------------------------------------------------ the TPU pods, later


def test_the_guard_does_not_scale_the_target_in_the_same_breath(scene):
    guard = scene.guard()
    scene.die()
    while not scene.restored:
        scene.pass_time(1, guard)
        assert scene.clock.now() - scene.died < 120
    assert scene.replicas(TPU) == 2
    scene.pass_time(DURATION_S - 1, guard)
    assert scene.replicas(TPU) == 2, "the Gateway takes up to a minute to follow: users would meet nobody"
    scene.pass_time(5, guard)
    assert scene.replicas(TPU) == 0


def test_pods_that_users_are_still_sent_to_are_not_ended(scene):
    guard = scene.guard()
    scene.give_endpoints(GPU, 0, unready=2)  # the source is away: the target is the safe route
    scene.die()
    scene.pass_time(300, guard)
    assert scene.weights() == {GPU: 0, TPU: 100}
    assert scene.replicas(TPU) == 2
    scene.give_endpoints(GPU, 2)
    scene.pass_time(10, guard)
    assert scene.weights() == {GPU: 1, TPU: 0}, "the source serves again"
    assert scene.replicas(TPU) == 2
    scene.pass_time(DURATION_S + 10, guard)
    assert scene.replicas(TPU) == 0


def test_a_run_that_came_back_to_clean_up_itself_keeps_the_guard_from_scaling(scene):
    guard = scene.guard()
    scene.die()
    scene.pass_time(65, guard)
    scene.worker = Lease(scene.kube, NAMESPACE, GPU, Holder("run-1", "restore"), scene.clock)
    scene.worker.acquire()
    scene.alive = True
    scene.pass_time(600, guard)
    assert scene.replicas(TPU) == 2


def test_pods_that_are_ended_already_are_not_scaled_again_and_again(scene):
    scene.die()
    scene.pass_time(150, guard := scene.guard())
    assert scene.replicas(TPU) == 0
    scene.calls.clear()
    scene.pass_time(120, guard)
    assert [call for call in scene.calls if "/scale" in call] == []


def test_a_target_that_was_never_made_is_no_trouble(scene):
    scene.client.delete("deployments", NAMESPACE, TPU)
    scene.die()
    scene.pass_time(200, scene.guard())
    assert scene.weights() == {GPU: 1, TPU: 0}


# ------------------------------------------------------------------------------- after the commit


AFTER = pytest.mark.parametrize("phase", [Phase.COMMITTED, Phase.DECOMMISSIONING])


@AFTER
def test_after_the_commit_users_go_to_the_target_once_and_its_pods_run_on(scene, phase):
    scene.records.force(lambda r: replace(r, phase=phase))
    scene.die()
    scene.pass_time(600, scene.guard())
    assert scene.weights() == {GPU: 0, TPU: 100}
    assert scene.replicas(TPU) == 2
    assert scene.records.read().phase is phase
    assert len(scene.restored) == 1, "where users are right already, nothing is written again and again"


@AFTER
def test_after_the_commit_a_target_that_dies_sends_users_to_what_is_left_of_the_source(scene, phase):
    scene.records.force(lambda r: replace(r, phase=phase, source_capacity=1))
    scene.die()
    scene.pass_time(120, guard := scene.guard())
    scene.give_endpoints(TPU, 0, unready=2)
    scene.pass_time(120, guard)
    assert scene.weights() == {GPU: 1, TPU: 0}
    assert scene.replicas(TPU) == 2


@pytest.mark.parametrize("phase", sorted(ENDED))
def test_a_migration_that_has_ended_is_left_alone_for_ever(scene, phase):
    scene.records.force(lambda r: replace(r, phase=phase))
    scene.die()
    scene.pass_time(600, scene.guard())
    assert scene.restored == []
    assert scene.epoch() == 1


# --------------------------------------------------------------------------------- two guards


def test_two_guards_do_not_fight(scene):
    guards = [scene.guard("guard-0"), scene.guard("guard-1")]
    scene.die()
    scene.pass_time(80, *guards)
    assert scene.weights() == {GPU: 1, TPU: 0}
    assert scene.records.read().fallback.actor == "the guard guard-0"
    assert scene.epoch() == scene.records.read().epoch
    assert scene.replicas(TPU) == 2
    scene.pass_time(600, *guards)
    assert scene.replicas(TPU) == 0
    assert scene.epoch() <= 3
    assert scene.records.read().fallback.actor == "the guard guard-0"


def test_two_guards_that_restore_in_the_same_instant_both_end_with_users_at_home(scene):
    first, second = scene.guard("guard-0"), scene.guard("guard-1")
    scene.die()
    scene.pass_time(DURATION_S, first, second)
    assert scene.restored == []
    scene.clock.advance(2.0)
    scene.before = once(second.tick, "PUT", "httproutes")
    assert first.tick() == [GPU]
    assert scene.weights() == {GPU: 1, TPU: 0}
    assert scene.epoch() == scene.records.read().epoch == 3


def test_the_second_guard_goes_on_when_the_first_is_cut_off(scene):
    lonely = Guard(Kubernetes(_silent), NAMESPACE, scene.clock, "guard-0")
    scene.die()
    guard = scene.guard("guard-1")
    for _ in range(70):
        with pytest.raises(TransientError):
            lonely.tick()
        scene.pass_time(1, guard)
    assert scene.records.read().fallback.actor == "the guard guard-1"


def _silent(*_, **__):
    raise TransientError("no answer")


# ---------------------------------------------------------------------------- when calls fail


def test_a_restore_that_fails_is_tried_again_at_the_next_look(scene):
    guard = scene.guard()
    scene.die()

    def refuse(method, path):
        if method == "PUT" and "httproutes" in path:
            raise TransientError("no answer")

    scene.before = refuse
    scene.pass_time(65, guard)
    assert scene.weights() == {GPU: 50, TPU: 50}
    scene.reconnect()
    scene.pass_time(1, guard)
    assert scene.weights() == {GPU: 1, TPU: 0}


def test_a_workload_that_cannot_be_helped_does_not_keep_the_others_from_it(scene):
    # Sorted before the other, and without a route: its restore fails each time.
    Records(scene.kube, NAMESPACE, "aaa").begin(record(workload="aaa", source=replace(record().source, route="gone")))
    scene.die()
    scene.pass_time(70, scene.guard())
    assert {workload for _, workload in scene.restored} == {GPU}
    assert scene.weights() == {GPU: 1, TPU: 0}


def test_one_damaged_record_does_not_blind_the_guard_for_the_others(scene):
    Records(scene.kube, NAMESPACE, "aaa").begin(record(workload="aaa"))
    scene.damage_record("{", workload="aaa")
    scene.die()
    scene.pass_time(70, scene.guard())
    assert scene.weights() == {GPU: 1, TPU: 0}
    assert GPU in {workload for _, workload in scene.restored}


@pytest.mark.parametrize("text", ["{", '{"schema_version": 99}'], ids=["damaged", "schema-of-tomorrow"])
def test_a_record_that_cannot_be_read_is_restored_from_the_snapshot_once(scene, text):
    scene.snapshots.take(1, "run-1", [], record().source)
    scene.damage_record(text)
    guard = scene.guard()
    scene.pass_time(120, guard)
    assert scene.restored == [], "its worker lives"
    scene.die()
    scene.pass_time(600, guard)
    assert scene.weights() == {GPU: 1, TPU: 0}
    assert [workload for _, workload in scene.restored] == [GPU]


@AFTER
def test_a_record_that_cannot_be_read_after_the_commit_is_left_to_people(scene, phase):
    scene.snapshots.take(1, "run-1", [], record().source)
    scene.records.force(lambda r: replace(r, phase=phase))
    scene.damage_record("{")
    scene.die()
    scene.pass_time(600, scene.guard())
    assert scene.restored == [], "the snapshot's side may be gone by now"


def test_a_worker_whose_record_cannot_be_read_and_who_dies_twice_is_helped_twice(scene):
    scene.snapshots.take(1, "run-1", [], record().source)
    scene.damage_record("{")
    guard = scene.guard()
    scene.die()
    scene.pass_time(100, guard)
    scene.worker = Lease(scene.kube, NAMESPACE, GPU, Holder("run-1", "shift", 2), scene.clock)
    scene.worker.acquire()
    scene.pass_time(100, guard)
    assert [workload for _, workload in scene.restored] == [GPU, GPU]


def test_a_workload_in_a_trouble_that_nobody_foresaw_does_not_end_the_guard(scene, monkeypatch):
    Records(scene.kube, NAMESPACE, "aaa").begin(record(workload="aaa"))
    real = restore.restore

    def broken(kube, namespace, workload, **more):
        if workload == "aaa":
            raise ZeroDivisionError
        return real(kube, namespace, workload, **more)

    monkeypatch.setattr("tpu_migration.guard.restore", broken)
    scene.die()
    scene.pass_time(70, scene.guard())
    assert scene.weights() == {GPU: 1, TPU: 0}


def test_what_stood_still_while_the_guard_could_not_look_proves_nothing(scene):
    guard = scene.guard()
    scene.pass_time(5, guard)
    scene.clock.advance(600.0)  # the guard's node was frozen, and the worker's, too
    assert guard.tick() == []
    scene.pass_time(5)  # the worker renews
    scene.pass_time(120, guard)
    assert scene.restored == []


def test_an_outage_of_the_api_is_no_dead_worker(scene):
    guard = scene.guard()
    scene.pass_time(5, guard)
    scene.cut_off()
    for _ in range(300):
        scene.clock.advance(1.0)
        with pytest.raises(TransientError):
            guard.tick()
    scene.reconnect()
    scene.worker = Lease(scene.kube, NAMESPACE, GPU, Holder("run-1", "shift", 2), scene.clock)
    scene.worker.acquire()  # the worker was cut off, too, and is back first
    scene.pass_time(30, guard)
    assert scene.restored == []


# ----------------------------------------------------------------------------- the heartbeat


def beat(scene):
    return scene.client.get("leases", NAMESPACE, GUARD_LEASE)


def test_the_heartbeat_says_which_records_the_guard_can_read(scene):
    scene.guard("guard-7").tick()
    assert beat(scene)["metadata"]["annotations"][SCHEMA_ANNOTATION] == str(SCHEMA_VERSION)
    assert beat(scene)["spec"]["holderIdentity"] == "guard-7"


def test_an_older_guards_annotation_is_corrected_and_what_others_wrote_is_kept(scene):
    scene.guard().tick()
    annotations = {SCHEMA_ANNOTATION: "0", "team": "inference"}
    scene.client.patch("leases", NAMESPACE, GUARD_LEASE, {"metadata": {"annotations": annotations}})
    scene.pass_time(BEAT_EVERY_S + 1, scene.guard())
    assert beat(scene)["metadata"]["annotations"] == {SCHEMA_ANNOTATION: str(SCHEMA_VERSION), "team": "inference"}


def test_it_beats_every_five_seconds_and_each_beat_moves(scene):
    guard = scene.guard()
    guard.tick()
    seen = []
    for _ in range(60):
        scene.pass_time(1, guard)
        seen.append(beat(scene)["spec"]["renewTime"])
    assert len(set(seen)) == pytest.approx(60 / BEAT_EVERY_S, abs=1)
    assert seen == sorted(seen)


def test_of_two_guards_that_beat_at_once_neither_stumbles(scene):
    other = scene.guard("guard-1")
    scene.before = once(other.tick, "POST", "leases")
    scene.guard("guard-0").tick()
    assert beat(scene)["spec"]["holderIdentity"] == "guard-1"


def test_the_heartbeat_is_no_lease_of_a_migration(scene):
    scene.guard().tick()
    assert GUARD_LEASE not in {f"tpu-migration-{each.workload}" for each in (record(),)}
    assert scene.kube.get(LEASES, GUARD_LEASE, NAMESPACE)["spec"]["leaseDurationSeconds"] == 4 * BEAT_EVERY_S


# ------------------------------------------------------------------------------ the command


@pytest.fixture
def signals(monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)


@pytest.mark.usefixtures("signals")
def test_one_look_ends_with_0_and_leaves_a_heartbeat(scene):
    assert run(scene.kube, NAMESPACE, "guard-0", once=True) == 0
    assert beat(scene) is not None


@pytest.mark.usefixtures("signals")
def test_one_look_that_may_not_read_ends_with_1(scene):
    scene.user = "somebody"
    with pytest.raises(PermanentError, match="grant the right"):
        scene.guard().tick()
    assert run(scene.kube, NAMESPACE, "guard-0", once=True) == 1
