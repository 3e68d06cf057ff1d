"""What was once broken, and found by reading or by breaking things on purpose."""

from __future__ import annotations

import pytest
from cluster import GPU, NAMESPACE, TPU, Cluster, once, record, source

from tpu_migration.clients.kubernetes import HTTP_ROUTES, SECRETS, Kubernetes
from tpu_migration.clients.transport import Response
from tpu_migration.errors import NotHolderError, TransientError
from tpu_migration.judge_cli import EXIT_CODES
from tpu_migration.lease import RENEW_EVERY_S, Holder, Lease
from tpu_migration.record import RecordError
from tpu_migration.restore import restore
from tpu_migration.snapshot import Snapshots
from tpu_migration.stages.objects import stripped


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.give_route({GPU: 50, TPU: 50})
    made.give_endpoints(GPU, 2)
    made.give_endpoints(TPU, 2)
    return made


def send_home(cluster: Cluster):
    return restore(cluster.kube, NAMESPACE, GPU, actor="ada", reason="odd", clock=cluster.clock)


def lease(cluster: Cluster, attempt: int) -> Lease:
    return Lease(cluster.kube, NAMESPACE, GPU, Holder("run-1", "shift", attempt), cluster.clock)


def test_without_a_record_nobody_is_sent_to_a_source_that_does_not_serve(cluster):
    cluster.snapshots.take(1, "run-1", [], source())
    cluster.give_endpoints(GPU, 0)
    assert send_home(cluster).target_percent == 100


def test_a_route_that_somebody_else_makes_again_first_is_restored_all_the_same(cluster):
    original = stripped(cluster.kube.get(HTTP_ROUTES, GPU, NAMESPACE))
    cluster.snapshots.take(1, "run-1", [original], source())
    cluster.records.begin(record())
    cluster.client.delete("httproutes", NAMESPACE, GPU)
    cluster.before = once(lambda: cluster.give_route({GPU: 50, TPU: 50}), "POST", "httproutes")
    send_home(cluster)
    assert cluster.weights() == {GPU: 1, TPU: 0}


def test_a_replaced_worker_stops_before_its_next_renewal_would_tell(cluster):
    older, newer = lease(cluster, 1), lease(cluster, 2)
    older.acquire()
    newer.acquire()
    cluster.clock.advance(RENEW_EVERY_S - 1)
    older.renew_if_due()
    with pytest.raises(NotHolderError, match=r"held by run-1\|shift\|2"):
        older.check()
    newer.check()


def test_an_older_try_never_takes_the_lease_back(cluster):
    lease(cluster, 2).acquire()
    older = lease(cluster, 1)
    with pytest.raises(NotHolderError, match="try 2 of shift holds the lease"):
        older.acquire()
    assert older.replaced


def test_a_damaged_snapshot_is_told_in_a_sentence(cluster):
    name = Snapshots(cluster.kube, NAMESPACE, GPU).name(1)
    cluster.snapshots.take(1, "run-1", [], source())
    secret = cluster.client.get("secrets", NAMESPACE, name)
    cluster.client.delete("secrets", NAMESPACE, name)
    metadata = {key: secret["metadata"][key] for key in ("name", "namespace", "labels")}
    cluster.client.create("secrets", {**secret, "metadata": metadata, "data": {"snapshot.json.gz": "bm8gZ3ppcA=="}})
    with pytest.raises(RecordError, match="backendRefs by hand"):
        send_home(cluster)


def test_an_answer_that_was_cut_short_is_transient():
    kube = Kubernetes(lambda *_, **__: Response(200, b'{"kind":'))
    with pytest.raises(TransientError, match="is no JSON"):
        kube.get(SECRETS, "a", NAMESPACE)


@pytest.mark.parametrize("content", [b"x", b"\xff\xfe\x00"])
def test_judging_what_is_no_result_is_no_verdict(tmp_path, content):
    from tpu_migration.cli import main

    file = tmp_path / "a"
    file.write_bytes(content)
    for policy in ("chat", "nope"):
        assert main(["judge", "--policy", policy, str(file), str(file)]) not in EXIT_CODES.values()
