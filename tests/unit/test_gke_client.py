"""Node pools, told the truth about: GKE calls an operation DONE that has failed."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest
from google.api_core import exceptions
from google.auth import exceptions as auth
from google.cloud import container_v1

from sandbox.clock import VirtualClock
from sandbox.faults import Faults
from sandbox.gke.core import GkeCloud
from sandbox.gke.nodes import MemoryNodes
from sandbox.world import _ClusterManager
from tpu_migration.clients import gke
from tpu_migration.clients.gke import CALL_TIMEOUT_S, ClusterBusyError, NodePools
from tpu_migration.domain.maintenance import Exclusion, Window
from tpu_migration.domain.node_pools import PoolSpec, gcloud_line, made_again, node_pool
from tpu_migration.domain.preflight import Cluster
from tpu_migration.errors import NotHolderError, PermanentError, TransientError

PROJECT, LOCATION, CLUSTER, ZONE = "sandbox-project", "us-west4", "sandbox", "us-west4-a"


def spec(name="tpu-one", **more):
    wanted = {
        "machine_type": "ct5lp-hightpu-8t",
        "node_count": 2,
        "zone": ZONE,
        "labels": {"tpu-migration-run": "12345678"},
    }
    return PoolSpec(name, **(wanted | more))


class Google:
    """The cloud under a virtual clock, and the product's client of it."""

    def __init__(self, tmp_path, **options):
        self.clock = VirtualClock()
        self.faults = Faults(tmp_path / "faults.json")
        self.nodes = MemoryNodes()
        self.cloud = GkeCloud(self.clock, self.nodes, faults=self.faults, **options)
        self.calls = []
        self.before = lambda call: None
        self.after = lambda call: None
        client = _ClusterManager(self.cloud, self._before, lambda _, call: self.after(call))
        self.pools = NodePools(client, PROJECT, LOCATION, CLUSTER)

    def _before(self, _, call):
        self.calls.append(call)
        self.before(call)

    def run(self, seconds):
        for _ in range(int(seconds / 5)):
            self.clock.advance(5.0)
            self.cloud.tick()

    def finish(self, operation, limit_s=7200):
        for _ in range(limit_s // 5):
            found = self.pools.operation(operation)
            if found.done:
                return found
            self.run(5)
        raise AssertionError(f"{operation} is not done after {limit_s} s")


@pytest.fixture
def google(tmp_path):
    return Google(tmp_path)


def raises(error):
    def call(_):
        raise error

    return call


# ------------------------------------------------------------------------- a pool's whole life


def test_a_pool_is_made_read_and_deleted(google):
    operation = google.finish(google.pools.create(spec()))
    assert (operation.error, operation.kind) == ("", "CREATE_NODE_POOL")
    assert operation.target.endswith("/nodePools/tpu-one")
    pool = google.pools.get("tpu-one")
    assert (pool.status, pool.machine_type, pool.node_count) == ("RUNNING", "ct5lp-hightpu-8t", 2)
    assert pool.labels == {"tpu-migration-run": "12345678"}
    assert len(google.nodes.list_nodes()) == 2
    assert google.finish(google.pools.delete("tpu-one")).error == ""
    assert google.pools.get("tpu-one") is None
    assert google.nodes.list_nodes() == []


def test_a_pool_that_is_not_there_is_none_and_deleting_it_is_no_error(google):
    assert google.pools.get("tpu-one") is None
    assert google.pools.delete("tpu-one") is None


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (exceptions.PermissionDenied("Required container.nodePools.get"), PermanentError),
        (exceptions.Unauthenticated("token expired"), PermanentError),
        (auth.RefreshError("invalid_grant"), PermanentError),
        (exceptions.InvalidArgument("bad name"), PermanentError),
        (exceptions.ServiceUnavailable("try later"), TransientError),
        (exceptions.DeadlineExceeded("10 s"), TransientError),
        (exceptions.InternalServerError("oops"), TransientError),
        (exceptions.TooManyRequests("slow down"), TransientError),
        (auth.TransportError("no route to host"), TransientError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
def test_only_not_found_means_absent(google, answer, error):
    google.before = raises(answer)
    for call in (lambda: google.pools.get("tpu-one"), lambda: google.pools.delete("tpu-one")):
        with pytest.raises(error, match="node pool tpu-one") as told:
            call()
        assert isinstance(told.value, TransientError) == (error is TransientError)


def test_a_wrong_cluster_shows_before_anything_is_made(google):
    google.pools.cluster()
    client = _ClusterManager(google.cloud, google._before, lambda *_: None)
    with pytest.raises(PermanentError, match="clusters/other"):
        NodePools(client, PROJECT, LOCATION, "other").cluster()


class _Answers:
    """A ClusterManager whose cluster is what a test says."""

    def __init__(self, cluster):
        self._cluster = cluster

    def get_cluster(self, request, **_):
        return self._cluster


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ({}, ()),
        (
            {"daily_maintenance_window": {"start_time": "03:30", "duration": "PT4H0M0S"}},
            (Window(dt.datetime(2000, 1, 1, 3, 30, tzinfo=dt.UTC), dt.timedelta(hours=4)),),
        ),
        (
            {
                "recurring_window": {
                    "window": {"start_time": "2026-01-03T01:00:00Z", "end_time": "2026-01-03T07:30:00Z"},
                    "recurrence": "FREQ=WEEKLY;BYDAY=SA,SU",
                }
            },
            (Window(dt.datetime(2026, 1, 3, 1, tzinfo=dt.UTC), dt.timedelta(hours=6.5), "FREQ=WEEKLY;BYDAY=SA,SU"),),
        ),
    ],
    ids=["none", "daily", "recurring"],
)
@pytest.mark.parametrize("autopilot", [False, True])
def test_a_clusters_mode_and_maintenance_window_are_read(window, expected, autopilot):
    cluster = container_v1.Cluster(autopilot={"enabled": autopilot}, maintenance_policy={"window": window})
    assert NodePools(_Answers(cluster), PROJECT, LOCATION, CLUSTER).cluster() == Cluster(autopilot, expected)


def test_only_exclusions_that_stop_node_upgrades_count():
    span = {"start_time": "2026-01-03T01:00:00Z", "end_time": "2026-01-04T01:00:00Z"}
    scopes = {"none": None, "all": "NO_UPGRADES", "minor": "NO_MINOR_UPGRADES", "nodes": "NO_MINOR_OR_NODE_UPGRADES"}
    given = {
        name: span | ({"maintenance_exclusion_options": {"scope": scope}} if scope else {})
        for name, scope in scopes.items()
    }
    window = {"maintenance_exclusions": given}
    cluster = container_v1.Cluster(maintenance_policy={"window": window}, locations=["us-west4-a"])
    found = NodePools(_Answers(cluster), PROJECT, LOCATION, CLUSTER).cluster()
    day = dt.datetime(2026, 1, 3, 1, tzinfo=dt.UTC)
    assert found.exclusions == (Exclusion(day, day + dt.timedelta(days=1)),) * 3
    assert found.zones == ("us-west4-a",)


# --------------------------------------------------------------------- what operations hide


def test_an_operation_that_is_done_with_an_error_has_failed(google):
    google.faults.set("stockout", {"machine": "ct5lp"})
    operation = google.finish(google.pools.create(spec()))
    assert operation.done
    assert "does not have enough resources available" in operation.error


def test_a_failed_operation_still_leaves_the_pool_behind_and_its_message_says_why(google):
    google.faults.set("stockout", {"machine": "ct5lp"})
    google.finish(google.pools.create(spec()))
    pool = google.pools.get("tpu-one")
    assert pool.status == "ERROR"
    assert pool.message
    assert google.finish(google.pools.delete("tpu-one")).error == ""
    assert google.pools.get("tpu-one") is None


def test_a_quota_that_does_not_cover_the_chips_is_permanent_and_makes_nothing(tmp_path):
    google = Google(tmp_path, quota={"TPU_LITE_PODSLICE_V5": 8})
    with pytest.raises(PermanentError, match="Insufficient regional quota"):
        google.pools.create(spec(node_count=2))
    assert google.pools.get("tpu-one") is None


def test_a_cluster_that_is_busy_is_waited_for_and_not_given_up(google):
    google.pools.create(spec("first"))
    with pytest.raises(ClusterBusyError, match=r"create node pool second.*incompatible operation operation-"):
        google.pools.create(spec("second"))
    assert issubclass(ClusterBusyError, TransientError)
    assert google.pools.get("second") is None


def test_a_busy_cluster_refuses_the_deletion_too_and_the_pool_is_still_there(google):
    google.finish(google.pools.create(spec("first")))
    google.pools.create(spec("second"))
    with pytest.raises(ClusterBusyError):
        google.pools.delete("first")
    assert google.pools.get("first").status == "RUNNING"


def test_any_other_failed_precondition_is_permanent(google):
    google.before = raises(exceptions.FailedPrecondition("Cluster is being deleted."))
    with pytest.raises(PermanentError) as told:
        google.pools.create(spec())
    assert not isinstance(told.value, TransientError)


def test_a_pool_whose_answer_was_lost_is_found_again_by_name_and_by_operation(google):
    google.after = raises(exceptions.DeadlineExceeded("10 s"))
    with pytest.raises(TransientError):
        google.pools.create(spec())
    google.after = lambda call: None
    assert google.calls == ["create_node_pool"], "a lost answer is never repeated by itself"
    assert google.pools.get("tpu-one").status == "PROVISIONING"
    [operation] = google.pools.running_operations("tpu-one")
    assert (operation.done, operation.kind) == (False, "CREATE_NODE_POOL")


def test_a_pool_that_an_earlier_create_made_is_read_again_rather_than_refused(google):
    google.finish(google.pools.create(spec()))
    with pytest.raises(TransientError, match="Already exists"):
        google.pools.create(spec())


def test_finished_operations_and_those_of_other_pools_are_not_running_ones(google):
    google.finish(google.pools.create(spec("tpu-one")))
    google.pools.create(spec("my-tpu-one"))
    assert google.pools.running_operations("tpu-one") == []
    assert len(google.pools.running_operations("my-tpu-one")) == 1


def test_a_cancelled_operation_leaves_something_that_must_be_deleted(google):
    google.faults.set("pool-stuck", {"machine": "ct5lp"})
    name = google.pools.create(spec())
    google.run(300)
    assert not google.pools.operation(name).done
    google.pools.cancel(name)
    assert google.finish(name).error
    assert google.pools.get("tpu-one") is not None


def test_an_operation_that_nobody_knows_is_an_error(google):
    with pytest.raises(PermanentError, match="read operation operation-0"):
        google.pools.operation("operation-0")


def test_no_call_retries_by_itself_and_each_has_a_timeout(google):
    asked = []

    class Client:
        def __getattr__(self, name):
            def call(*, request, retry, timeout):
                asked.append((name, retry, timeout))
                raise exceptions.ServiceUnavailable("try later")

            return call

    pools = NodePools(Client(), PROJECT, LOCATION, CLUSTER)
    for act in (
        lambda: pools.get("a"),
        lambda: pools.create(spec()),
        lambda: pools.delete("a"),
        lambda: pools.operation("o"),
        lambda: pools.running_operations("a"),
        lambda: pools.cancel("o"),
        pools.cluster,
    ):
        with pytest.raises(TransientError):
            act()
    assert len(asked) == 7
    assert {(retry, timeout) for _, retry, timeout in asked} == {(None, CALL_TIMEOUT_S)}


def test_a_fence_stops_every_change_and_no_read(google):
    google.finish(google.pools.create(spec()))

    def forbid():
        raise NotHolderError("superseded")

    pools = google.pools.fenced(forbid)
    google.calls.clear()
    for change in (lambda: pools.create(spec("second")), lambda: pools.delete("tpu-one"), lambda: pools.cancel("o")):
        with pytest.raises(NotHolderError):
            change()
    assert google.calls == []
    assert pools.get("tpu-one").status == "RUNNING"
    assert pools.running_operations("tpu-one") == []


# ----------------------------------------------------------------------------- the message


def message(**more):
    return container_v1.NodePool(node_pool(spec(**more)))


def test_a_single_host_pool_carries_no_placement_policy_for_gke_refuses_it():
    assert "placement_policy" not in node_pool(spec())
    assert "placement_policy" not in message()


def test_spot_is_asked_for_only_where_it_is_wanted():
    assert message(spot=True).config.spot is True
    assert message().config.spot is False


def test_a_spot_pool_s_nodes_say_that_they_are_spot(google):
    google.finish(google.pools.create(spec(spot=True)))
    assert {n["metadata"]["labels"].get("cloud.google.com/gke-spot") for n in google.nodes.list_nodes()} == {"true"}


def test_a_reservation_is_named_and_nothing_else_is_consumed():
    affinity = message(reservation="tpu-2026").config.reservation_affinity
    assert affinity.consume_reservation_type.name == "SPECIFIC_RESERVATION"
    assert affinity.key == "compute.googleapis.com/reservation-name"
    assert list(affinity.values) == ["tpu-2026"]
    assert "reservation_affinity" not in message().config


def test_a_reservation_needs_no_quota(tmp_path):
    google = Google(tmp_path, quota={"TPU_LITE_PODSLICE_V5": 0})
    with pytest.raises(PermanentError, match="quota"):
        google.pools.create(spec())
    assert google.finish(google.pools.create(spec(reservation="tpu-2026"))).error == ""


def test_pods_a_node_are_bounded_for_the_default_runs_out_of_addresses():
    assert message().max_pods_constraint.max_pods_per_node == 32
    assert list(message().locations) == [ZONE]
    assert message().config.workload_metadata_config.mode.name == "GKE_METADATA"


def test_a_pool_that_is_given_up_can_be_asked_for_again_as_it_was():
    made = container_v1.NodePool(
        name="h100", initial_node_count=1, locations=["us-central1-a", "us-central1-b"],
        autoscaling={"enabled": True, "min_node_count": 1, "max_node_count": 4},
        max_pods_constraint={"max_pods_per_node": 64},
        config={
            "machine_type": "a3-highgpu-1g", "service_account": "gpu@my-project.iam.gserviceaccount.com",
            "accelerators": [{"accelerator_type": "nvidia-h100-80gb", "accelerator_count": 1}],
            "taints": [{"key": "team", "value": "llm", "effect": "NO_SCHEDULE"}],
        },
    )  # fmt: skip
    spec = made_again(gke._pool(made), 2)
    again = gke._pool(container_v1.NodePool(node_pool(replace(spec, zone="us-central1-a"))))
    assert replace(again, zones=gke._pool(made).zones, node_count=1, labels={}) == gke._pool(made)
    line = gcloud_line(spec, "my-project", "us-central1", "inference")
    for words in (
        "--node-locations=us-central1-a,us-central1-b", "--num-nodes=2", "--node-taints=team=llm:NoSchedule",
        "--enable-autoscaling --min-nodes=2 --max-nodes=4", "--max-pods-per-node=64",
        "--accelerator=type=nvidia-h100-80gb,count=1",
    ):  # fmt: skip
        assert words in line
