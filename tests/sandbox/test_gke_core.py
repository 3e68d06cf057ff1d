"""GKE's node pools and operations, in virtual time."""

from __future__ import annotations

import json

import pytest
from google.api_core import exceptions
from google.cloud import container_v1 as gke

from sandbox.clock import VirtualClock
from sandbox.faults import Faults
from sandbox.gke.core import GkeCloud
from sandbox.gke.nodes import MemoryNodes

CLUSTER = "projects/p/locations/us-west4/clusters/c"
POOL = f"{CLUSTER}/nodePools/tpu"
_DONE = gke.Operation.Status.DONE


class World:
    def __init__(self, tmp_path, **options):
        self.clock = VirtualClock()
        self.nodes = MemoryNodes()
        self.faults = Faults(tmp_path / "faults.json")
        self.options = {"project": "p", "cluster": "c", "faults": self.faults, **options}
        self.cloud = GkeCloud(self.clock, self.nodes, **self.options)

    def create(self, name="tpu", machine="ct5lp-hightpu-8t", count=1, **fields):
        config = gke.NodeConfig(machine_type=machine, **fields.pop("config", {}))
        pool = gke.NodePool(name=name, config=config, initial_node_count=count, **fields)
        return self.cloud.create_node_pool(gke.CreateNodePoolRequest(parent=CLUSTER, node_pool=pool))

    def delete(self, name="tpu"):
        return self.cloud.delete_node_pool(gke.DeleteNodePoolRequest(name=f"{CLUSTER}/nodePools/{name}"))

    def resize(self, count, name="tpu"):
        request = gke.SetNodePoolSizeRequest(name=f"{CLUSTER}/nodePools/{name}", node_count=count)
        return self.cloud.set_node_pool_size(request)

    def pool(self, name="tpu"):
        return self.cloud.get_node_pool(gke.GetNodePoolRequest(name=f"{CLUSTER}/nodePools/{name}"))

    def operation(self, operation):
        name = f"projects/p/locations/us-west4/operations/{operation.name}"
        return self.cloud.get_operation(gke.GetOperationRequest(name=name))

    def cancel(self, operation):
        name = f"projects/p/locations/us-west4/operations/{operation.name}"
        self.cloud.cancel_operation(gke.CancelOperationRequest(name=name))

    def run(self, seconds, step=1.0):
        for _ in range(int(seconds / step)):
            self.clock.advance(step)
            self.cloud.tick()

    def ready(self):
        return [n for n in self.nodes.list_nodes() if n["status"]["conditions"][0]["status"] == "True"]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_tpu_pool_is_up_after_two_minutes_with_a_node_as_gke_labels_it(world):
    operation = world.create(config={"labels": {"team": "llm"}})
    assert operation.status.name == "PENDING"
    world.run(10)
    assert world.operation(operation).status.name == "RUNNING"
    assert world.pool().status.name == "PROVISIONING"
    assert world.nodes.list_nodes() == []
    world.run(85)
    (node,) = world.nodes.list_nodes()
    assert world.ready() == []
    assert {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"} in node["spec"]["taints"]
    world.run(30)
    assert world.operation(operation).status == _DONE
    assert not world.operation(operation).error.code
    assert world.pool().status.name == "RUNNING"
    (node,) = world.ready()
    labels = node["metadata"]["labels"]
    assert labels["cloud.google.com/gke-nodepool"] == "tpu"
    assert labels["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
    assert labels["cloud.google.com/gke-tpu-topology"] == "2x4"
    assert labels["topology.kubernetes.io/zone"] == "us-west4-a"
    assert labels["node.kubernetes.io/instance-type"] == "ct5lp-hightpu-8t"
    assert labels["team"] == "llm"
    assert "cloud.google.com/gke-spot" not in labels
    assert node["spec"]["taints"] == [{"key": "google.com/tpu", "value": "present", "effect": "NoSchedule"}]
    assert node["status"]["allocatable"]["google.com/tpu"] == "8"


@pytest.mark.parametrize(
    ("machine", "label", "gpus"),
    [
        ("a3-highgpu-1g", "nvidia-h100-80gb", "1"),
        ("a3-highgpu-8g", "nvidia-h100-80gb", "8"),
        ("g2-standard-12", "nvidia-l4", "1"),
    ],
)
def test_gpu_nodes_offer_their_gpus_behind_the_taint(world, machine, label, gpus):
    world.create("gpu", machine, config={"spot": True})
    world.run(130)
    (node,) = world.ready()
    assert node["metadata"]["labels"]["cloud.google.com/gke-accelerator"] == label
    assert node["metadata"]["labels"]["cloud.google.com/gke-spot"] == "true"
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == gpus
    assert {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"} in node["spec"]["taints"]


def test_a_cpu_pool_that_was_always_there_has_untainted_ready_nodes(world):
    config = gke.NodeConfig(machine_type="e2-standard-8")
    world.cloud.add_running_pool(gke.NodePool(name="default-pool", config=config, initial_node_count=2))
    assert len(world.ready()) == 2
    assert all("taints" not in node["spec"] for node in world.ready())
    assert world.pool("default-pool").status.name == "RUNNING"


def test_an_operation_tells_how_many_of_its_nodes_are_done(world):
    operation = world.create(count=2)

    def progress():
        metrics = {each.name: each.int_value for each in world.operation(operation).progress.metrics}
        return metrics["NODES_DONE"], metrics["NODES_TOTAL"]

    assert progress() == (0, 2)
    world.run(115)
    assert (world.operation(operation).status.name, progress()) == ("RUNNING", (2, 2))


def test_delete_cordons_then_removes_the_nodes_then_the_pool(world):
    world.create()
    world.run(130)
    operation = world.delete()
    world.run(10)
    assert world.pool().status.name == "STOPPING"
    assert world.nodes.list_nodes()[0]["spec"]["unschedulable"] is True
    world.run(55)
    assert world.operation(operation).status == _DONE
    assert world.nodes.list_nodes() == []
    with pytest.raises(exceptions.NotFound, match="nodePools/tpu"):
        world.pool()


def test_the_cluster_lock_refuses_a_second_operation_and_names_the_first(world):
    first = world.create()
    world.run(5)
    with pytest.raises(exceptions.FailedPrecondition) as refused:
        world.delete()
    assert refused.value.message == f"Cluster is running incompatible operation {first.name}."


def test_the_same_name_twice_already_exists_even_when_the_first_failed(world):
    world.faults.set("quota")
    world.create()
    world.run(130)
    with pytest.raises(exceptions.AlreadyExists):
        world.create()


def test_a_stockout_holds_the_lock_for_35_minutes_then_is_done_with_an_error_and_leaves_the_pool(world):
    world.faults.set("stockout")
    operation = world.create()
    world.run(2000, step=10)
    assert world.operation(operation).status.name == "RUNNING"
    with pytest.raises(exceptions.FailedPrecondition):
        world.delete()
    world.run(110, step=10)
    done = world.operation(operation)
    assert done.status == _DONE
    assert "ZONE_RESOURCE_POOL_EXHAUSTED" in done.error.message
    assert done.nodepool_conditions[0].code.name == "GCE_STOCKOUT"
    assert world.pool().status.name == "ERROR"
    assert world.nodes.list_nodes() == []
    world.delete()
    world.run(65)
    with pytest.raises(exceptions.NotFound):
        world.pool()


def test_a_stockout_that_ends_while_gke_retries_lets_the_pool_come_up(world):
    world.faults.set("stockout")
    operation = world.create()
    world.run(600, step=10)
    world.faults.clear("stockout")
    world.run(90, step=10)
    assert world.operation(operation).status.name == "RUNNING"
    world.run(40, step=10)
    assert world.operation(operation).status == _DONE
    assert len(world.ready()) == 1


def test_nodes_whose_pod_addresses_are_used_up_fail_the_operation_and_fewer_pods_a_node_fit(tmp_path):
    world = World(tmp_path, pod_range="10.4.0.0/22")
    world.create("wide", "e2-standard-8", count=3)  # 110 pods: 256 addresses a node
    world.run(130)
    operation = world.create(count=2, max_pods_constraint={"max_pods_per_node": 110})
    world.run(130)
    done = world.operation(operation)
    assert (done.status, world.pool().status.name) == (_DONE, "ERROR")
    assert done.error.message.startswith("Google Compute Engine: [IP_SPACE_EXHAUSTED_WITH_DETAILS]: Instance 'gke-c-")
    assert "projects/p/regions/us-west4/subnetworks/default" in done.error.message
    assert "IP range '10.4.0.0/22'" in done.error.message
    world.delete()
    world.run(65)
    world.create(count=2, max_pods_constraint={"max_pods_per_node": 32})
    world.run(130)
    assert world.pool().status.name == "RUNNING"


def test_a_late_stockout_fails_at_the_usual_time_and_the_machines_turn_up_afterwards(world):
    world.faults.set("late-stockout", {"appears_after_s": 300})
    operation = world.create()
    world.run(125)
    assert "They will be created asynchronously" in world.operation(operation).error.message
    assert world.pool().status.name == "ERROR"
    world.run(310)
    assert world.pool().status.name == "RUNNING"
    assert len(world.ready()) == 1, "failed is not absent: this node is billed"


def test_a_pool_deleted_after_a_late_stockout_does_not_come_back(world):
    world.faults.set("late-stockout")
    world.create()
    world.run(125)
    world.delete()
    world.run(400)
    assert world.nodes.list_nodes() == []


def test_a_stuck_create_never_ends_until_it_is_cancelled(world):
    world.faults.set("pool-stuck")
    operation = world.create()
    world.run(7200, step=60)
    assert world.operation(operation).status.name == "RUNNING"
    world.cancel(operation)
    assert world.operation(operation).status.name == "ABORTING"
    world.run(30)
    assert world.operation(operation).status == _DONE
    assert world.operation(operation).error.code == 1
    assert world.pool().status.name == "ERROR"


def test_cancelling_what_is_done_is_refused(world):
    operation = world.create()
    world.run(130)
    with pytest.raises(exceptions.FailedPrecondition, match="already done"):
        world.cancel(operation)


def test_a_quota_fault_is_an_error_inside_a_done_operation(world):
    world.faults.set("quota", {"metric": "GPUS_ALL_REGIONS"})
    operation = world.create()
    world.run(130)
    done = world.operation(operation)
    assert "Quota 'GPUS_ALL_REGIONS' exceeded.  Limit: 0.0 globally." in done.error.message
    assert done.nodepool_conditions[0].code.name == "GCE_QUOTA_EXCEEDED"


def test_a_stockout_masks_the_missing_quota(world):
    world.faults.set("quota")
    world.faults.set("stockout")
    operation = world.create()
    world.run(2200, step=10)
    assert "ZONE_RESOURCE_POOL_EXHAUSTED" in world.operation(operation).error.message


def test_a_regional_quota_refuses_at_once_and_counts_chips(tmp_path):
    world = World(tmp_path, quota={"TPU_LITE_PODSLICE_V5": 12})
    world.create("one")
    world.run(130)
    with pytest.raises(exceptions.PermissionDenied, match=r"requires '8\.0' and is short '4\.0'"):
        world.create("two")
    world.create("spot", config={"spot": True})


def test_stock_is_counted_by_zone_and_capacity(tmp_path):
    world = World(tmp_path, stock={"us-west4-a/ct5lp-hightpu-8t": 1, "us-west4-b/ct5lp-hightpu-8t:spot": 0})
    for name, zone, spot in (("a", "us-west4-a", False), ("b", "us-west4-b", False)):
        world.create(name, locations=[zone], config={"spot": spot})
        world.run(130)
        assert world.pool(name).status.name == "RUNNING"
    for name, zone, spot in (("a2", "us-west4-a", False), ("b2", "us-west4-b", True)):
        world.create(name, locations=[zone], config={"spot": spot})
        world.run(2200, step=20)
        assert world.pool(name).status.name == "ERROR"


def reserved(name="r1"):
    affinity = gke.ReservationAffinity(
        consume_reservation_type=gke.ReservationAffinity.Type.SPECIFIC_RESERVATION,
        key="compute.googleapis.com/reservation-name",
        values=[name],
    )
    return {"reservation_affinity": affinity}


def test_a_reservation_has_a_stock_of_its_own_and_needs_no_quota(tmp_path):
    machine = "us-west4-a/ct5lp-hightpu-8t"
    world = World(tmp_path, stock={machine: 0, f"{machine}:reservation": 1}, quota={"TPU_LITE_PODSLICE_V5": 0})
    world.faults.set("stockout")
    world.faults.set("quota")
    world.create("mine", config=reserved())
    world.run(130)
    assert world.pool("mine").status.name == "RUNNING"
    operation = world.create("more", config=reserved())
    world.run(2200, step=20)
    assert "ZONE_RESOURCE_POOL_EXHAUSTED" in world.operation(operation).error.message


def test_a_stockout_of_reserved_machines_must_be_meant(world):
    world.faults.set("stockout", {"capacity": "reservation"})
    operation = world.create("mine", config=reserved())
    world.run(2200, step=20)
    assert world.operation(operation).error.code


def test_quota_of_all_regions_counts_tpu_chips_and_is_found_in_the_course_of_the_operation(tmp_path):
    world = World(tmp_path, quota={"GPUS_ALL_REGIONS": 9})
    world.create("gpu", machine="a3-highgpu-1g", count=2)
    world.run(130)
    operation = world.create()
    world.run(130)
    assert "Quota 'GPUS_ALL_REGIONS' exceeded.  Limit: 9.0 globally." in world.operation(operation).error.message


def test_spot_chips_have_a_quota_of_their_own(tmp_path):
    world = World(tmp_path, quota={"PREEMPTIBLE_TPU_LITE_PODSLICE_V5": 0})
    with pytest.raises(exceptions.PermissionDenied, match="PREEMPTIBLE_TPU_LITE_PODSLICE_V5"):
        world.create(config={"spot": True})


def test_a_multi_host_slice_that_is_not_to_be_had_fails_as_a_whole(tmp_path):
    world = World(tmp_path, stock={"us-west4-a/ct5lp-hightpu-4t": 3})
    policy = {"type_": "COMPACT", "tpu_topology": "4x4"}
    operation = world.create(machine="ct5lp-hightpu-4t", count=4, placement_policy=policy)
    world.run(2200, step=20)
    assert "Atomic resize failed with [GCE_STOCKOUT]" in world.operation(operation).error.message
    assert world.nodes.list_nodes() == []


def test_settings_of_a_pool_take_a_short_operation_under_the_lock(world):
    world.create()
    world.run(130)
    bounds = gke.NodePoolAutoscaling(enabled=True, min_node_count=0, max_node_count=3)
    operation = world.cloud.set_node_pool_autoscaling(gke.SetNodePoolAutoscalingRequest(name=POOL, autoscaling=bounds))
    with pytest.raises(exceptions.FailedPrecondition, match="incompatible operation"):
        world.resize(2)
    world.run(10)
    assert world.operation(operation).status == _DONE
    assert world.pool().autoscaling.max_node_count == 3
    management = gke.NodeManagement(auto_repair=True)
    world.cloud.set_node_pool_management(gke.SetNodePoolManagementRequest(name=POOL, management=management))
    world.run(10)
    assert world.pool().management.auto_repair
    assert world.pool().autoscaling.enabled
    wrong = gke.NodePoolAutoscaling(enabled=True, min_node_count=2, max_node_count=1)
    with pytest.raises(exceptions.InvalidArgument, match="min_node_count"):
        world.cloud.set_node_pool_autoscaling(gke.SetNodePoolAutoscalingRequest(name=POOL, autoscaling=wrong))


def test_a_resize_adds_and_removes_nodes(world):
    world.create()
    world.run(130)
    kept = world.ready()[0]["metadata"]["name"]
    world.resize(2)
    world.run(130)
    assert len(world.ready()) == 2
    world.resize(1)
    world.run(40)
    assert [node["metadata"]["name"] for node in world.ready()] == [kept]
    assert world.pool().initial_node_count == 1


def test_a_resize_that_finds_no_machines_keeps_the_nodes_it_had(world):
    world.create()
    world.run(130)
    world.faults.set("stockout")
    operation = world.resize(2)
    world.run(2200, step=10)
    assert world.operation(operation).error.code
    assert world.pool().status.name == "RUNNING_WITH_ERROR"
    assert len(world.ready()) == 1


@pytest.mark.parametrize(
    ("machine", "fields", "count", "reason"),
    [
        ("ct5lp-hightpu-8t", {"placement_policy": {"type_": "COMPACT"}}, 1, "single-host"),
        ("ct5lp-hightpu-8t", {"placement_policy": {"tpu_topology": "2x4"}}, 1, "single-host"),
        ("ct5lp-hightpu-8t", {"placement_policy": {"type_": "COMPACT", "tpu_topology": "4x4"}}, 2, "topology '4x4'"),
        ("ct5lp-hightpu-4t", {"placement_policy": {"type_": "COMPACT", "tpu_topology": "4x4"}}, 3, "all of its 4"),
        ("ct9-imaginary", {}, 1, "does not exist in zone"),
        ("ct5lp-hightpu-8t", {"locations": ["europe-west4-a"]}, 1, "not a valid zone"),
        ("ct5lp-hightpu-8t", {"config": {"flex_start": True}}, 1, "flex-start"),
        ("ct5lp-hightpu-8t", {"config": {"flex_start": True, "max_run_duration": "691200s"}}, 0, "at most 7 days"),
        ("e2-standard-8", {"placement_policy": {"tpu_topology": "2x4"}}, 1, "not supported"),
        ("a3-highgpu-1g", {"autoscaling": {"enabled": True, "min_node_count": 2, "max_node_count": 1}}, 1, "min_node"),
    ],
)
def test_pools_that_gke_refuses_are_refused(world, machine, fields, count, reason):
    with pytest.raises(exceptions.InvalidArgument, match=reason):
        world.create(machine=machine, count=count, **fields)
    assert (
        world.cloud.list_operations(gke.ListOperationsRequest(parent="projects/p/locations/us-west4")).operations == []
    )


def test_a_multi_host_slice_comes_up_whole(world):
    policy = {"type_": "COMPACT", "tpu_topology": "4x4"}
    world.create(machine="ct5lp-hightpu-4t", count=4, placement_policy=policy)
    world.run(130)
    assert len(world.ready()) == 4
    assert world.ready()[0]["metadata"]["labels"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    with pytest.raises(exceptions.InvalidArgument, match="multi-host"):
        world.resize(2)


def test_legacy_fields_name_the_same_pool(world):
    world.create()
    request = gke.GetNodePoolRequest(project_id="p", zone="us-west4", cluster_id="c", node_pool_id="tpu")
    assert world.cloud.get_node_pool(request).name == "tpu"
    with pytest.raises(exceptions.NotFound, match="clusters/other"):
        world.cloud.get_cluster(gke.GetClusterRequest(name="projects/p/locations/us-west4/clusters/other"))
    with pytest.raises(exceptions.InvalidArgument):
        world.cloud.get_cluster(gke.GetClusterRequest(name="nonsense"))


def test_speed_divides_what_the_cloud_does(tmp_path):
    world = World(tmp_path, speed=20)
    world.create()
    world.run(6.5, step=0.25)
    assert len(world.ready()) == 1
    assert world.pool().status.name == "RUNNING"


def test_the_state_survives_a_restart_in_the_middle_of_a_create(world):
    operation = world.create()
    world.run(95)
    state = json.loads(json.dumps(world.cloud.state))
    world.nodes = MemoryNodes()
    world.cloud = GkeCloud(world.clock, world.nodes, **world.options, state=state)
    assert len(world.nodes.list_nodes()) == 1
    world.run(30)
    assert world.operation(operation).status == _DONE
    assert len(world.ready()) == 1


def test_jumping_from_event_to_event_gives_the_same_as_small_steps(world):
    operation = world.create()
    for _ in range(20):
        due = world.cloud.next_due()
        if due is None:
            break
        world.clock.advance(max(due - world.clock.now(), 0))
        world.cloud.tick()
    assert world.cloud.next_due() is None
    assert world.operation(operation).status == _DONE
    assert len(world.ready()) == 1
