"""The lease says who may work on a migration, and stops a worker before others take it for dead."""

from __future__ import annotations

import threading

import pytest
from cluster import GPU, NAMESPACE, Cluster, once

from sandbox.clock import VirtualClock
from tpu_migration.clients.kubernetes import SECRETS
from tpu_migration.errors import ConflictError, NotHolderError, PermanentError, TransientError
from tpu_migration.lease import DURATION_S, RENEW_EVERY_S, STOP_BEFORE_S, Holder, Lease, renewing

NAME = f"tpu-migration-{GPU}"


@pytest.fixture
def cluster():
    return Cluster()


def worker(cluster, run_id="run-1", task="shift", attempt=1, clock=None):
    return Lease(cluster.kube, NAMESPACE, GPU, Holder(run_id, task, attempt), clock or cluster.clock)


def spec(cluster):
    return cluster.client.get("leases", NAMESPACE, NAME)["spec"]


def held(cluster, **who):
    lease = worker(cluster, **who)
    lease.acquire()
    return lease


# -------------------------------------------------------------------------------- taking it


def test_the_first_worker_takes_the_lease_and_says_who_it_is(cluster):
    lease = held(cluster)
    lease.check()
    assert spec(cluster)["leaseDurationSeconds"] == DURATION_S
    assert Holder.parse(spec(cluster)["holderIdentity"]) == lease.holder
    assert (lease.holder.run_id, lease.holder.task, lease.holder.attempt) == ("run-1", "shift", 1)


def test_two_workers_of_one_task_are_told_apart(cluster):
    assert worker(cluster).holder != worker(cluster).holder


def test_the_lease_of_another_run_is_never_taken_not_even_when_it_has_run_out(cluster):
    held(cluster, run_id="run-0")
    cluster.clock.advance(10 * DURATION_S)
    late = worker(cluster)
    with pytest.raises(NotHolderError, match=r"run run-0 \(shift\).*tpu-migration restore vllm"):
        late.acquire()
    with pytest.raises(NotHolderError, match="never taken"):
        late.check()


def test_a_lease_seen_to_stand_still_is_taken_from_the_dead_who_then_may_not_write(cluster):
    dead = held(cluster, run_id="run-0")
    heir = worker(cluster)
    assert heir.look().holder == dead.holder
    heir.acquire(from_the_dead=True)
    heir.check()
    assert heir.is_mine()
    cluster.clock.advance(RENEW_EVERY_S)
    dead.renew_if_due()
    with pytest.raises(NotHolderError, match="held by run-1"):
        dead.check()
    assert not dead.replaced, "another run has it: this one is over"


def test_a_dead_that_renews_in_the_last_instant_keeps_its_lease(cluster):
    dead = held(cluster, run_id="run-0")
    cluster.clock.advance(RENEW_EVERY_S)
    cluster.before = once(dead.renew_if_due, "PUT", "leases")
    with pytest.raises(ConflictError):
        worker(cluster).acquire(from_the_dead=True)
    assert spec(cluster)["holderIdentity"] == str(dead.holder)
    dead.check()


def test_a_lease_that_is_not_there_or_was_given_back_is_nobodys(cluster):
    assert worker(cluster).look().holder is None
    first = held(cluster)
    assert worker(cluster).look().holder == first.holder
    first.release()
    assert worker(cluster).look().holder is None


def test_a_lease_is_taken_as_it_was_found_or_not_at_all(cluster):
    late = worker(cluster, attempt=2)
    held(cluster)
    found = late.look()
    later = held(cluster, task="decommission")
    with pytest.raises(ConflictError):
        late.acquire(found)
    assert later.is_mine()
    with pytest.raises(NotHolderError, match="never taken"):
        late.check()


def test_a_lease_that_was_not_there_is_made_or_not_taken_at_all(cluster):
    late = worker(cluster)
    found = late.look()
    quicker = held(cluster, task="decommission")
    with pytest.raises(ConflictError):
        late.acquire(found)
    assert quicker.is_mine()


def test_how_long_a_lease_stands_still_is_told_by_ones_own_clock_and_counted_anew_once_it_moves(cluster):
    other, here = held(cluster), worker(cluster, run_id="run-2")
    assert here.still_for(here.look()) == 0
    cluster.clock.advance(RENEW_EVERY_S)
    assert here.still_for(here.look()) == RENEW_EVERY_S
    other.renew_if_due()
    assert here.still_for(here.look()) is None
    cluster.clock.advance(5.0)
    assert here.still_for(here.look()) == 0
    cluster.clock.advance(DURATION_S + 1)
    assert here.still_for(here.look()) == DURATION_S + 1


def test_the_first_task_of_a_run_that_was_cut_off_takes_the_lease_from_no_later_task(cluster):
    later = held(cluster, task="provision")
    with pytest.raises(NotHolderError, match="provision of this run holds the lease, so preflight is over"):
        worker(cluster, task="preflight").acquire(begins_the_run=True)
    later.check()


def test_a_lease_that_somebody_else_made_by_hand_is_left_alone(cluster):
    held(cluster)
    cluster.client.patch("leases", NAMESPACE, NAME, {"spec": {"holderIdentity": "kubectl"}})
    with pytest.raises(NotHolderError, match="run kubectl"):
        worker(cluster).acquire()


def test_the_lease_is_taken_by_a_newer_self_at_once(cluster):
    older = held(cluster)
    newer = held(cluster, attempt=2)
    newer.check()
    assert spec(cluster)["holderIdentity"] == str(newer.holder)
    cluster.clock.advance(RENEW_EVERY_S)
    older.renew_if_due()
    with pytest.raises(NotHolderError, match=r"held by run-1\|shift\|2"):
        older.check()
    assert older.replaced, "its run goes on: this is no reason to send anybody home"


def test_an_older_self_that_has_lost_the_lease_never_writes_it_again(cluster):
    older = held(cluster)
    newer = held(cluster)
    for _ in range(3):
        cluster.clock.advance(RENEW_EVERY_S)
        older.renew_if_due()
        newer.renew_if_due()
    assert spec(cluster)["holderIdentity"] == str(newer.holder)
    newer.check()


def test_of_two_workers_that_begin_at_once_one_is_told_to_try_again(cluster):
    cluster.before = once(lambda: held(cluster), "POST", "leases")
    second = worker(cluster)
    with pytest.raises(ConflictError):
        second.acquire()
    with pytest.raises(NotHolderError, match="never taken"):
        second.check()


def test_of_two_workers_that_take_over_at_once_one_is_told_to_try_again(cluster):
    held(cluster)
    cluster.before = once(lambda: held(cluster), "PUT", "leases")
    with pytest.raises(ConflictError):
        held(cluster)


def test_an_answer_that_is_lost_leaves_no_right_to_write(cluster):
    def lost(*_):
        raise TransientError("no answer")

    cluster.after = once(lost, "POST", "leases")
    lease = worker(cluster)
    with pytest.raises(TransientError):
        lease.acquire()
    with pytest.raises(NotHolderError):
        lease.check()
    lease.acquire()
    lease.check()


# ------------------------------------------------------------------------------ keeping it


def test_the_lease_is_renewed_every_ten_seconds_and_not_more_often(cluster):
    lease = held(cluster)
    cluster.calls.clear()
    for _ in range(60):
        cluster.clock.advance(1.0)
        lease.renew_if_due()
    assert [call.split()[0] for call in cluster.calls] == ["GET", "PUT"] * 6


def test_renewals_keep_the_time_since_when_it_is_held(cluster):
    lease = held(cluster)
    before = spec(cluster)
    cluster.clock.advance(RENEW_EVERY_S)
    lease.renew_if_due()
    after = spec(cluster)
    assert after["acquireTime"] == before["acquireTime"]
    assert after["renewTime"] > before["renewTime"]


def test_a_mutation_stops_20_s_before_the_lease_would_expire(cluster):
    lease = held(cluster)
    cluster.clock.advance(DURATION_S - STOP_BEFORE_S)
    lease.check()
    cluster.clock.advance(0.5)
    with pytest.raises(NotHolderError, match="last renewed 40 s ago"):
        lease.check()


def test_a_write_of_a_fenced_client_never_leaves_once_the_lease_is_stale(cluster):
    lease = held(cluster)
    kube = cluster.kube.fenced(lease.check)
    cluster.clock.advance(DURATION_S)
    cluster.calls.clear()
    assert kube.get(SECRETS, "x", NAMESPACE) is None
    with pytest.raises(NotHolderError):
        kube.delete(SECRETS, "x", NAMESPACE)
    with pytest.raises(NotHolderError):
        kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x", "namespace": NAMESPACE}})
    assert [call.split()[0] for call in cluster.calls] == ["GET"]


def test_a_renewal_that_times_out_is_tried_again_and_the_worker_goes_on(cluster):
    lease = held(cluster)
    cluster.cut_off()
    for _ in range(3):
        cluster.clock.advance(RENEW_EVERY_S)
        lease.renew_if_due()
        with pytest.raises(TransientError):  # whose it is cannot be read, and nothing could be written either
            lease.check()
    cluster.reconnect()
    lease.renew_if_due()
    cluster.clock.advance(DURATION_S - STOP_BEFORE_S)
    lease.check()


def test_a_worker_that_is_cut_off_stops_by_its_own_clock(cluster):
    lease = held(cluster)
    cluster.cut_off()
    for _ in range(41):
        cluster.clock.advance(1.0)
        lease.renew_if_due()
    with pytest.raises(NotHolderError, match="this worker stops before others may take it for dead"):
        lease.check()


def test_a_slow_renewal_counts_from_when_it_was_sent(cluster):
    lease = held(cluster)
    cluster.clock.advance(RENEW_EVERY_S)
    cluster.before = once(lambda: cluster.clock.advance(9.0), "PUT", "leases")
    lease.renew_if_due()
    cluster.clock.advance(DURATION_S - STOP_BEFORE_S - 9.0 + 0.5)
    with pytest.raises(NotHolderError):
        lease.check()


def test_a_renewal_whose_answer_is_lost_does_not_lose_the_lease(cluster):
    lease = held(cluster)

    def lost(*_):
        raise TransientError("no answer")

    cluster.after = once(lost, "PUT", "leases")
    cluster.clock.advance(RENEW_EVERY_S)
    lease.renew_if_due()
    lease.renew_if_due()
    cluster.clock.advance(RENEW_EVERY_S - 1)
    lease.check()
    assert spec(cluster)["holderIdentity"] == str(lease.holder)


def test_a_renewal_that_loses_the_compare_and_swap_finds_out_to_whom(cluster):
    older = held(cluster)
    newer = worker(cluster, attempt=2)
    cluster.clock.advance(RENEW_EVERY_S)
    cluster.before = once(newer.acquire, "PUT", "leases")
    older.renew_if_due()
    older.renew_if_due()
    with pytest.raises(NotHolderError, match=r"held by run-1\|shift\|2"):
        older.check()
    newer.check()


def test_a_lease_that_somebody_deleted_is_lost_and_not_made_again(cluster):
    lease = held(cluster)
    cluster.client.delete("leases", NAMESPACE, NAME)
    cluster.clock.advance(RENEW_EVERY_S)
    lease.renew_if_due()
    with pytest.raises(NotHolderError, match="held by nobody"):
        lease.check()
    assert cluster.client.get("leases", NAMESPACE, NAME) is None


def test_a_wall_clock_that_jumps_neither_ends_nor_prolongs_the_right_to_write(cluster):
    class Jumping(VirtualClock):
        offset = 0.0

        def now(self):
            return super().now() + self.offset

    clock = Jumping()
    lease = held(cluster, clock=clock)
    clock.offset = 7200.0
    lease.check()
    clock.offset = -7200.0
    clock.advance(DURATION_S)
    with pytest.raises(NotHolderError):
        lease.check()


# -------------------------------------------------------------------------- giving it back


def test_a_lease_given_back_lets_the_next_run_begin_at_once_and_ends_ones_own_writes(cluster):
    lease = held(cluster)
    lease.release()
    assert not spec(cluster).get("holderIdentity")
    with pytest.raises(NotHolderError, match="given back"):
        lease.check()
    held(cluster, run_id="run-2").check()


def test_giving_back_what_another_run_holds_changes_nothing(cluster):
    lease = held(cluster)
    lease.release()
    held(cluster, run_id="run-2")
    before = spec(cluster)
    lease.release()
    assert spec(cluster) == before


def test_an_older_self_that_learns_it_was_replaced_does_not_give_the_newer_ones_lease_away(cluster):
    older = held(cluster)
    newer = held(cluster, attempt=2)
    older.release()
    newer.check()
    assert spec(cluster)["holderIdentity"] == str(newer.holder)


def test_a_new_run_leaves_a_lease_alone_that_was_never_taken(cluster):
    worker(cluster).release()
    assert cluster.client.get("leases", NAMESPACE, NAME) is None


# ------------------------------------------------------------------------- beside the work


def test_the_lease_is_renewed_beside_a_step_that_hangs_and_one_refusal_does_not_end_that():
    class Refused:
        def __init__(self):
            self.calls = 0
            self.again = threading.Event()

        def renew_if_due(self):
            self.calls += 1
            if self.calls == 1:
                raise PermanentError("403")
            self.again.set()

    lease = Refused()
    with renewing(lease):
        assert lease.again.wait(30.0), "nobody renewed the lease while the step hung"


def test_nobody_renews_once_the_work_has_ended():
    class Counted:
        def renew_if_due(self):
            raise AssertionError("renewed after the end")

    before = set(threading.enumerate())  # one of another test may not have ended yet
    with renewing(Counted()):
        [thread] = [each for each in set(threading.enumerate()) - before if each.name == "lease-renewal"]
    thread.join(10.0)
    assert not thread.is_alive()
