"""A restore sends users to the safe route: without a lease, without a record if need be, and it wins."""

from __future__ import annotations

import pytest
from cluster import GPU, NAMESPACE, ROOT, TPU, Cluster, once, record, ref, source

from tpu_migration.clients.kubernetes import HTTP_ROUTES
from tpu_migration.domain.phases import AFTER_COMMIT, ENDED, Phase
from tpu_migration.domain.routing import epoch_annotation, with_target
from tpu_migration.errors import ConflictError, PermanentError, TransientError
from tpu_migration.record import Fallback
from tpu_migration.restore import ready_endpoints, restore, with_epoch
from tpu_migration.stages.objects import stripped

BEFORE_COMMIT = sorted(set(Phase) - AFTER_COMMIT)


@pytest.fixture
def cluster():
    made = Cluster()
    made.give_route({GPU: 50, TPU: 50})
    made.give_endpoints(GPU, 2)
    made.give_endpoints(TPU, 2)
    return made


def send_home(cluster, actor="a person", reason="p99 TTFT 812 ms > limit 700 ms"):
    return restore(cluster.kube, NAMESPACE, GPU, actor=actor, reason=reason, clock=cluster.clock)


# --------------------------------------------------------------------------- before the commit


def test_users_go_home_and_the_epoch_is_raised_in_one_write(cluster):
    cluster.records.begin(record())
    done = send_home(cluster)
    assert (done.target_percent, done.epoch) == (0, 2)
    assert cluster.weights() == {GPU: 1, TPU: 0}
    assert cluster.epoch() == 2
    assert [call for call in cluster.calls if call.startswith("PUT") and "httproutes" in call] == [
        f"PUT /apis/gateway.networking.k8s.io/v1/namespaces/{NAMESPACE}/httproutes/{GPU}"
    ]


def test_the_record_tells_who_restored_it_why_and_when(cluster):
    cluster.records.begin(record(waiting="baking"))
    send_home(cluster, actor="the guard g-1", reason="nobody worked on it")
    after = cluster.records.read()
    assert (after.phase, after.epoch) == (Phase.FALLING_BACK, 2)
    now = cluster.clock.now()
    assert after.fallback == Fallback("nobody worked on it", "the guard g-1", now, now)
    assert after.waiting == ""


def test_the_first_reason_stays_when_it_is_restored_again(cluster):
    cluster.records.begin(record())
    send_home(cluster, reason="errors 3 %")
    send_home(cluster, actor="the teardown", reason="the stage failed")
    assert cluster.records.read().fallback.reason == "errors 3 %"
    assert cluster.epoch() == cluster.records.read().epoch == 3


def test_it_writes_even_when_the_weights_are_right_so_that_a_late_writer_loses(cluster):
    cluster.records.begin(record())
    send_home(cluster)
    late = cluster.route()
    send_home(cluster)
    advanced = {**late, "spec": {**late["spec"], "rules": with_target(source().rules, source().rules, GPU, TPU, 100)}}
    with pytest.raises(ConflictError):
        cluster.kube.replace(with_epoch(advanced, GPU, 2))
    assert cluster.weights() == {GPU: 1, TPU: 0}


@pytest.mark.parametrize("phase", BEFORE_COMMIT)
def test_before_the_commit_the_source_is_safe_whatever_the_phase(cluster, phase):
    cluster.records.begin(record(phase))
    assert send_home(cluster).target_percent == 0
    assert cluster.weights() == {GPU: 1, TPU: 0}
    after = cluster.records.read()
    stays = phase in ENDED - {Phase.HELD}  # a held TPU is kept: going back from it is a way back like any other
    assert after.phase is (phase if stays else Phase.FALLING_BACK)


def test_a_source_without_a_ready_endpoint_gets_nobody_while_the_target_serves(cluster):
    cluster.records.begin(record())
    cluster.give_endpoints(GPU, 0, unready=2)
    done = send_home(cluster)
    assert done.target_percent == 100
    assert "the source has no ready endpoint" in done.reason
    assert cluster.weights() == {GPU: 0, TPU: 100}


def test_half_a_source_takes_half_of_the_users_of_a_target_that_is_well_and_the_record_says_so(cluster):
    cluster.records.begin(record())
    cluster.give_endpoints(GPU, 1)
    done = restore(
        cluster.kube, NAMESPACE, GPU, actor="the keeper", reason="a GPU is gone", clock=cluster.clock, stays=100
    )
    assert done.target_percent == 50
    assert cluster.weights() == {GPU: 50, TPU: 50}
    fallback = cluster.records.read().fallback
    assert (fallback.stays, fallback.reason) == (50, f"a GPU is gone; {done.reason}")
    cluster.give_endpoints(GPU, 2)
    cluster.clock.advance(30.0)
    assert send_home(cluster).target_percent == 0
    after = cluster.records.read().fallback
    assert (after.stays, after.reason) == (0, fallback.reason)
    assert after.route_written == cluster.clock.now()


def test_a_target_never_gets_more_of_the_users_than_it_has():
    cluster = Cluster()
    cluster.give_route({GPU: 90, TPU: 10})
    cluster.give_endpoints(GPU, 1)
    cluster.give_endpoints(TPU, 2)
    cluster.records.begin(record())
    done = restore(cluster.kube, NAMESPACE, GPU, actor="the keeper", reason="x", clock=cluster.clock, stays=100)
    assert done.target_percent == 10
    assert cluster.weights() == {GPU: 90, TPU: 10}


def test_endpoints_that_cannot_be_read_do_not_stop_it_before_the_commit(cluster):
    cluster.records.begin(record())

    def refuse(method, path):
        if "endpointslices" in path:
            raise TransientError("no answer")

    cluster.before = refuse
    assert "could not be read" in send_home(cluster).reason
    assert cluster.weights() == {GPU: 1}


def test_only_ready_endpoints_count(cluster):
    cluster.give_endpoints(GPU, 2, unready=3)
    assert ready_endpoints(cluster.kube, NAMESPACE, GPU) == 2
    assert ready_endpoints(cluster.kube, NAMESPACE, "nobody") == 0


def test_an_endpoint_that_two_slices_have_counts_once(cluster):
    (one,) = [
        each for each in cluster.client.list("endpointslices", NAMESPACE)
        if each["metadata"]["labels"]["kubernetes.io/service-name"] == GPU
    ]  # fmt: skip
    before = ready_endpoints(cluster.kube, NAMESPACE, GPU)
    metadata = {"name": f"{GPU}-other-family", "namespace": NAMESPACE, "labels": one["metadata"]["labels"]}
    cluster.client.create("endpointslices", {**one, "metadata": metadata})
    assert ready_endpoints(cluster.kube, NAMESPACE, GPU) == before


# --------------------------------------------------------------------------- others write, too


def test_it_loses_the_compare_and_swap_several_times_and_still_wins(cluster):
    cluster.records.begin(record())
    cluster.before = once(lambda: cluster.touch_route(beat=str(len(cluster.calls))), "PUT", "httproutes", times=7)
    send_home(cluster)
    assert cluster.weights() == {GPU: 1, TPU: 0}
    assert len([call for call in cluster.calls if call.startswith("PUT") and "httproutes" in call]) == 8
    assert "beat" in cluster.route()["metadata"]["annotations"]


def test_a_controller_that_writes_all_the_time_is_named_as_the_cause(cluster):
    cluster.records.begin(record())

    def other(method, path):
        if method == "PUT" and "httproutes" in path:
            cluster.touch_route(beat=str(len(cluster.calls)))

    cluster.before = other
    with pytest.raises(TransientError, match=r"lost 50 times; stop the other controller"):
        send_home(cluster)


def test_an_advance_in_between_is_overwritten_with_an_epoch_above_it(cluster):
    cluster.records.begin(record())

    def advance():
        route = cluster.route()
        route["spec"]["rules"] = with_target(source().rules, source().rules, GPU, TPU, 100)
        cluster.client.update("httproutes", route)

    cluster.before = once(advance, "PUT", "httproutes")
    send_home(cluster)
    assert cluster.weights() == {GPU: 1, TPU: 0}
    assert cluster.epoch() == 2


def test_of_two_restores_at_once_both_win_and_the_epoch_only_rises(cluster):
    cluster.records.begin(record())
    cluster.before = once(lambda: send_home(cluster, actor="the other"), "PUT", "httproutes")
    assert send_home(cluster).epoch == 3
    assert cluster.weights() == {GPU: 1, TPU: 0}
    assert cluster.records.read().epoch == 3
    assert cluster.records.read().fallback.actor == "the other"


def test_a_route_ahead_of_its_record_is_never_brought_back_to_an_older_epoch(cluster):
    cluster.records.begin(record(epoch=1))
    cluster.touch_route(**{epoch_annotation(GPU): "7"})
    assert send_home(cluster).epoch == 8
    assert cluster.records.read().epoch == 8


def test_an_epoch_that_somebody_spoilt_does_not_block_the_way_back(cluster):
    cluster.records.begin(record(epoch=3))
    cluster.touch_route(**{epoch_annotation(GPU): "two"})
    assert send_home(cluster).epoch == 4
    assert cluster.weights() == {GPU: 1, TPU: 0}


def test_another_workload_s_epoch_and_rule_on_a_shared_route_are_left_alone(cluster):
    cluster.records.begin(record())
    cluster.touch_route(**{epoch_annotation("other"): "5"})
    route = cluster.route()
    route["spec"]["rules"].append(
        {
            "matches": [{"path": {"type": "PathPrefix", "value": "/other"}}],
            "backendRefs": [ref("other", 75), ref("other-tpu", 25)],
        }
    )
    cluster.client.update("httproutes", route)
    send_home(cluster)
    assert cluster.weights(1) == {"other": 75, "other-tpu": 25}
    assert cluster.route()["metadata"]["annotations"][epoch_annotation("other")] == "5"
    assert cluster.epoch() == 2


def test_a_rule_whose_matches_were_edited_in_mid_shift_still_leaves_the_target(cluster):
    cluster.records.begin(record())
    route = cluster.route()
    route["spec"]["rules"][0]["matches"] = [{"path": {"type": "PathPrefix", "value": "/v1"}}]
    cluster.client.update("httproutes", route)
    send_home(cluster)
    assert cluster.weights().get(TPU, 0) == 0
    assert cluster.weights()[GPU] > 0


def test_a_record_ahead_of_the_route_counts_too(cluster):
    cluster.records.begin(record(epoch=5))
    assert send_home(cluster).epoch == 6


def test_rules_added_by_others_are_kept(cluster):
    cluster.records.begin(record())
    route = cluster.route()
    added = {"matches": [{"path": {"type": "PathPrefix", "value": "/admin"}}], "backendRefs": [ref("admin")]}
    route["spec"]["rules"].append(added)
    route["spec"]["hostnames"] = ["llm.example.com"]
    cluster.client.update("httproutes", route)
    send_home(cluster)
    assert cluster.weights() == {GPU: 1, TPU: 0}
    assert cluster.weights(1) == {"admin": 1}
    assert cluster.route()["spec"]["hostnames"] == ["llm.example.com"]


def test_a_target_that_is_gone_is_not_named_any_more(cluster):
    """A ref to a Service that is not there could keep a Gateway from following the route at all."""
    cluster.records.begin(record())
    for each in cluster.client.list("endpointslices", NAMESPACE):
        if each["metadata"]["labels"]["kubernetes.io/service-name"] == TPU:
            cluster.client.delete("endpointslices", NAMESPACE, each["metadata"]["name"])
    send_home(cluster)
    assert cluster.weights() == {GPU: 1}


def test_a_rule_added_in_mid_shift_that_points_at_the_target_is_freed_of_it(cluster):
    cluster.records.begin(record())
    route = cluster.route()
    matches = [{"path": {"type": "PathPrefix", "value": "/v2"}}]
    route["spec"]["rules"].append({"matches": matches, "backendRefs": [ref(TPU, 100)]})
    cluster.client.update("httproutes", route)
    send_home(cluster)
    assert cluster.weights(1) == {GPU: 1, TPU: 0}


def test_a_record_that_cannot_be_written_does_not_keep_users_from_going_home(cluster):
    cluster.records.begin(record())

    def refuse(method, path):
        if method == "PUT" and "configmaps" in path:
            raise TransientError("no answer")

    cluster.before = refuse
    with pytest.raises(TransientError):
        send_home(cluster)
    assert cluster.weights() == {GPU: 1, TPU: 0}
    assert cluster.epoch() == 2


def test_a_commit_that_lands_during_the_restore_is_not_unmade(cluster):
    cluster.records.begin(record(Phase.SOAKING))

    def commit():
        cluster.records.update("run-1", 1, lambda r: r.moved_to(Phase.COMMITTED))

    cluster.before = once(commit, "PUT", "httproutes")
    send_home(cluster)
    after = cluster.records.read()
    assert (after.phase, after.epoch) == (Phase.COMMITTED, 2)


# ----------------------------------------------------------------------------- after the commit


@pytest.mark.parametrize("phase", sorted(AFTER_COMMIT))
def test_after_the_commit_the_safe_route_is_the_target_while_it_serves(cluster, phase):
    cluster.records.begin(record(phase))
    assert send_home(cluster).target_percent == 100
    assert cluster.weights() == {GPU: 0, TPU: 100}
    after = cluster.records.read()
    assert (after.phase, after.epoch, after.fallback) == (phase, 2, None)


def test_after_the_commit_a_dead_target_sends_users_to_what_is_left_of_the_source(cluster):
    cluster.records.begin(record(Phase.DECOMMISSIONING, source_capacity=1))
    cluster.give_endpoints(TPU, 0, unready=2)
    assert send_home(cluster).target_percent == 0
    assert cluster.weights() == {GPU: 1, TPU: 0}


def test_a_source_that_was_given_up_gets_nobody_even_if_its_pods_still_answer(cluster):
    cluster.records.begin(record(Phase.DECOMMISSIONING, source_capacity=0))
    cluster.give_endpoints(TPU, 0)
    assert send_home(cluster).target_percent == 100


def test_after_the_commit_nothing_is_written_while_nobody_knows_who_serves(cluster):
    cluster.records.begin(record(Phase.COMMITTED))
    before = cluster.route()

    def refuse(method, path):
        if "endpointslices" in path:
            raise TransientError("no answer")

    cluster.before = refuse
    with pytest.raises(TransientError):
        send_home(cluster)
    assert cluster.route() == before


# ----------------------------------------------------------------------- without a good record


def test_without_a_record_the_source_is_restored_from_the_snapshot(cluster):
    cluster.snapshots.take(1, "run-1", [], source())
    done = send_home(cluster)
    assert (done.target_percent, done.epoch) == (0, 2)
    assert cluster.weights() == {GPU: 1, TPU: 0}
    assert cluster.records.read() is None


def test_without_a_record_a_source_that_is_gone_gets_nobody(cluster):
    # A record deleted long after the commit: the snapshot tells of GPUs that were released.
    cluster.snapshots.take(1, "run-1", [], source())
    cluster.give_endpoints(GPU, 0)
    assert send_home(cluster).target_percent == 100
    assert cluster.weights() == {GPU: 0, TPU: 100}


@pytest.mark.parametrize("text", ["{", "", '{"schema_version": 99}'], ids=["damaged", "empty", "schema-of-tomorrow"])
def test_a_record_that_cannot_be_read_does_not_keep_users_from_going_home(cluster, text):
    cluster.records.begin(record())
    cluster.snapshots.take(1, "run-1", [], source())
    cluster.damage_record(text)
    assert send_home(cluster).epoch == 2
    assert cluster.weights() == {GPU: 1, TPU: 0}
    data = cluster.client.get("configmaps", NAMESPACE, f"tpu-migration-{GPU}")["data"]
    assert data["record.json"] == text, "nobody writes over a record that he cannot read"


def test_an_unanswered_read_of_the_record_is_not_taken_for_a_lost_record(cluster):
    cluster.records.begin(record(Phase.MIGRATED))
    cluster.snapshots.take(1, "run-1", [], source())
    cluster.cut_off()
    with pytest.raises(TransientError):
        send_home(cluster)
    cluster.reconnect()
    assert cluster.weights() == {GPU: 50, TPU: 50}


def test_without_record_and_snapshot_it_says_what_a_person_must_do(cluster):
    with pytest.raises(PermanentError, match=r"neither a record nor a snapshot.*backendRefs by hand"):
        send_home(cluster)
    assert cluster.weights() == {GPU: 50, TPU: 50}


# --------------------------------------------------------------------------- the route is gone


def test_a_route_that_was_deleted_is_created_again_with_users_at_home(cluster):
    cluster.client.delete("httproutes", NAMESPACE, GPU)
    original = stripped(cluster.give_route({GPU: 1}, epoch=None))
    cluster.snapshots.take(1, "run-1", [original | {"kind": "HTTPRoute"}], source())
    cluster.records.begin(record(epoch=4))
    cluster.client.delete("httproutes", NAMESPACE, GPU)
    send_home(cluster)
    assert cluster.weights() == {GPU: 1}
    assert cluster.epoch() == 5
    assert cluster.route()["spec"]["parentRefs"][0]["name"] == "gateway"


def test_after_the_commit_a_deleted_route_comes_back_with_users_on_the_target(cluster):
    original = stripped(cluster.kube.get(HTTP_ROUTES, GPU, NAMESPACE))
    cluster.snapshots.take(1, "run-1", [original], source())
    cluster.records.begin(record(Phase.MIGRATED, source_capacity=0))
    cluster.client.delete("httproutes", NAMESPACE, GPU)
    send_home(cluster)
    assert cluster.weights() == {GPU: 0, TPU: 100}


def test_a_deleted_route_without_a_copy_of_it_is_a_persons_job(cluster):
    cluster.records.begin(record())
    cluster.client.delete("httproutes", NAMESPACE, GPU)
    with pytest.raises(PermanentError, match="HTTPRoute vllm is gone and the snapshot has none"):
        send_home(cluster)


def test_matches_tell_a_rule_again_and_not_its_place(cluster):
    cluster.records.begin(record())
    route = cluster.route()
    first = {"matches": [{"path": {"type": "PathPrefix", "value": "/a"}}], "backendRefs": [ref("a")]}
    route["spec"]["rules"].insert(0, first)
    cluster.client.update("httproutes", route)
    send_home(cluster)
    assert cluster.weights(0) == {"a": 1}
    assert cluster.weights(1) == {GPU: 1, TPU: 0}
    assert cluster.route()["spec"]["rules"][1]["matches"] == ROOT
