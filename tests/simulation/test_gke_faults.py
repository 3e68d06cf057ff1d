"""Whatever the GKE API does to a run: what the message says, and that nothing is left behind."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from google.api_core import exceptions
from google.cloud import container_v1

from sandbox.workload import NAMESPACE, WORKLOAD
from sandbox.world import CLUSTER, LOCATION, PROJECT
from tests.simulation.harness import Airflow, Calls, Killed, Phase, Scene
from tpu_migration.record import Record
from tpu_migration.records import Records
from tpu_migration.stages.base import Done, Failed

TWO = ("on-demand@us-west4-a=1200", "spot@us-west4-b")
PARENT = f"projects/{PROJECT}/locations/{LOCATION}/clusters/{CLUSTER}"


@dataclass
class Trouble(Calls):
    """Break some of the calls to the GKE API: unsent, or with their answer lost."""

    call: str = ""
    error: Exception | None = None
    times: float = 1
    lost: bool = False
    broken: int = field(default=0)

    def before(self, method: str, path: str) -> None:
        super().before(method, path)
        self._break(path, lost=False)

    def done(self, method: str, path: str) -> None:
        super().done(method, path)
        self._break(path, lost=True)

    def _break(self, path: str, *, lost: bool) -> None:
        if path == self.call and lost == self.lost and self.broken < self.times and self.error:
            self.broken += 1
            raise self.error


def made(scene: Scene) -> list[str]:
    """Name the pools that a create call was accepted for."""
    operations = scene.world.gke.state["operations"].values()
    return [each["pool"] for each in operations if each["type"] == "CREATE_NODE_POOL"]


def until_provisioned(airflow: Airflow) -> Airflow:
    for name in ("preflight", "provision"):
        airflow.ended[name] = airflow._task(name)
    return airflow


def ended_badly(scene: Scene, airflow: Airflow) -> str:
    """Return what the failed stage says; nothing is left, and nobody noticed."""
    failed = airflow.ended["provision"]
    assert isinstance(failed, Failed)
    assert scene.record.phase is Phase.FALLEN_BACK
    scene.world.advance(120.0)
    scene.assert_nothing_left()
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()
    return failed.reason


# ------------------------------------------------------------------------ what there is not


def test_a_range_of_pod_addresses_that_is_used_up_ends_it_at_once_for_every_zone_shares_it():
    # Two e2 and two H100 nodes hold 256 addresses each; two TPU nodes would take 64 each.
    scene = Scene(capacity_plan=list(TWO), world={"supply": {"pod_range": "10.0.0.0/22"}})
    airflow = scene.airflow().run()
    reason = ended_badly(scene, airflow)
    assert "IP_SPACE_EXHAUSTED_WITH_DETAILS" in reason
    assert "Not tried: spot in us-west4-b" in reason
    assert len(scene.record.attempts) == 1


def test_a_regional_quota_is_refused_before_an_operation_begins_and_spot_has_one_of_its_own():
    scene = Scene(capacity_plan=list(TWO), stop_after="gate", world={"supply": {"quota": {"TPU_LITE_PODSLICE_V5": 8}}})
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    first, second = scene.record.attempts
    assert 'resource "TPU_LITE_PODSLICE_V5"' in first.error
    assert (second.offer, second.error) == ("spot in us-west4-b", "")
    scene.assert_nothing_left()


def test_a_quota_over_all_regions_that_compute_engine_finds_later_is_told_with_its_limit():
    scene = Scene(capacity_plan=list(TWO), world={"supply": {"quota": {"GPUS_ALL_REGIONS": 4}}})
    reason = ended_badly(scene, scene.airflow().run())
    assert reason.count("Quota 'GPUS_ALL_REGIONS' exceeded.  Limit: 4.0 globally.") == 2


def test_a_reservation_that_is_used_up_gives_way_to_what_can_be_bought():
    scene = Scene(capacity_plan=["reservation:ours@us-west4-a=1200", "on-demand@us-west4-a"], stop_after="gate")
    scene.world.faults.set("stockout", {"capacity": "reservation"})
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    first, second = scene.record.attempts
    assert first.offer == "reservation ours in us-west4-a"
    assert first.error
    assert first.ended
    assert (second.offer, second.error) == ("on-demand in us-west4-a", "")
    scene.assert_nothing_left()


def test_a_stockout_whose_machines_come_late_leaves_nothing_either():
    scene = Scene(capacity_plan=["on-demand@us-west4-a"], capacity_budget_s=3600)
    scene.world.faults.set("stockout", {"appears_after_s": 120})
    airflow = scene.airflow().run()
    scene.world.advance(1800.0)
    assert "does not have enough resources" in ended_badly(scene, airflow)


# ------------------------------------------------------------------------ who else is at work


def test_an_operation_of_somebody_else_is_waited_for_in_turn():
    scene = Scene(stop_after="gate")
    config = container_v1.NodeConfig(machine_type="e2-standard-8")
    pool = container_v1.NodePool(name="others", initial_node_count=1, config=config, locations=["us-west4-a"])
    scene.world.gke.create_node_pool(container_v1.CreateNodePoolRequest(parent=PARENT, node_pool=pool))
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    assert any("Cluster is running incompatible operation" in each for each in airflow.said)
    assert len(scene.record.attempts) == 1
    assert scene.pools() == {"default-pool", "h100-pool", "others"}


def test_an_operation_that_never_lets_go_of_the_cluster_is_named_when_the_stages_time_is_over():
    scene = Scene(capacity_budget_s=900)
    scene.world.faults.set("pool-stuck", {"machine": "e2"})
    config = container_v1.NodeConfig(machine_type="e2-standard-8")
    pool = container_v1.NodePool(name="others", initial_node_count=1, config=config, locations=["us-west4-a"])
    scene.world.gke.create_node_pool(container_v1.CreateNodePoolRequest(parent=PARENT, node_pool=pool))
    airflow = scene.airflow().run()
    failed = airflow.ended["provision"]
    assert isinstance(failed, Failed)
    assert failed.reason.startswith("stage provision took more than its 1800 s")
    assert "incompatible operation" in failed.reason
    assert scene.pools() == {"default-pool", "h100-pool", "others"}
    scene.assert_nobody_noticed()


# ------------------------------------------------------------------------ an API that does not answer

ERRORS = {
    "429": exceptions.TooManyRequests("quota of read requests"),
    "503": exceptions.ServiceUnavailable("try later"),
    "500": exceptions.InternalServerError("internal"),
    "deadline": exceptions.DeadlineExceeded("10 s"),
}
CALLS = ("create_node_pool", "get_node_pool", "list_operations", "get_operation")


@pytest.mark.parametrize("lost", [False, True], ids=["unsent", "answer-lost"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", ERRORS)
def test_a_call_without_an_answer_is_repeated_only_after_reading(call, error, lost):
    scene = Scene(world={"speed": 10.0})
    trouble = Trouble(call=call, error=ERRORS[error], times=1 if call == "create_node_pool" else 3, lost=lost)
    airflow = until_provisioned(scene.airflow(calls=trouble))
    assert isinstance(airflow.ended["provision"], Done), airflow.reasons()
    assert trouble.broken >= 1
    assert any("will try again" in each for each in airflow.said)
    assert made(scene) == [scene.record.pool]
    assert [each.error for each in scene.record.attempts] == [""]


@pytest.mark.parametrize("call", ["delete_node_pool", "get_node_pool", "list_operations", "cancel_operation"])
@pytest.mark.parametrize("lost", [False, True], ids=["unsent", "answer-lost"])
def test_clearing_away_goes_on_through_calls_without_an_answer(call, lost):
    scene = Scene(capacity_budget_s=900)
    scene.world.faults.set("pool-stuck", {})
    trouble = Trouble(call=call, error=ERRORS["503"], times=2, lost=lost)
    reason = ended_badly(scene, scene.airflow(calls=trouble).run())
    assert trouble.broken >= 1
    assert "not ready after" in reason
    assert len(made(scene)) == 1


def test_creates_that_are_refused_for_hours_end_with_the_stages_time_and_leave_nothing():
    scene = Scene(capacity_budget_s=900)
    trouble = Trouble(call="create_node_pool", error=ERRORS["429"], times=float("inf"))
    reason = ended_badly(scene, scene.airflow(calls=trouble).run())
    assert reason.startswith("stage provision took more than its 1800 s")
    assert "quota of read requests" in reason
    assert 60 < trouble.broken < 400, "it keeps on trying, with growing pauses"


def test_a_permission_that_is_missing_is_told_at_once_with_the_remedy():
    scene = Scene()
    trouble = Trouble(call="create_node_pool", error=exceptions.PermissionDenied("container.clusters.update"))
    reason = ended_badly(scene, scene.airflow(calls=trouble).run())
    assert "container.clusters.update" in reason
    assert "check the connection's service account and its role on the cluster" in reason
    assert made(scene) == []


def test_an_error_of_a_create_whose_answer_was_lost_is_still_read():
    scene = Scene(capacity_plan=["on-demand@us-west4-a"])
    scene.world.faults.set("quota", {})
    trouble = Trouble(call="create_node_pool", error=ERRORS["deadline"], lost=True)
    reason = ended_badly(scene, scene.airflow(calls=trouble).run())
    assert "Quota 'TPU_LITE_PODSLICE_V5' exceeded" in reason


def test_a_stuck_create_whose_answer_was_lost_is_found_again_and_cancelled():
    scene = Scene(capacity_budget_s=900)
    scene.world.faults.set("pool-stuck", {})
    trouble = Trouble(call="create_node_pool", error=ERRORS["deadline"], lost=True)
    assert "not ready after" in ended_badly(scene, scene.airflow(calls=trouble).run())
    assert "GKE cancel_operation" in trouble.trace


# ------------------------------------------------------------------------ killed anywhere


def test_killed_at_any_call_of_whatever_kind_and_run_again_it_makes_each_pool_once():
    """Two offers, the first without quota: begin, ask, poll, fail, clear away, ask again, poll, look at the nodes.

    The world is the same after a call as before the next, and a dead process remembers nothing: to be killed after
    each call, and before the first, is to be killed everywhere.
    """
    scene = Scene(capacity_plan=list(TWO), capacity_budget_s=7200, world={"speed": 10.0})
    scene.world.faults.set("quota", {"capacity": "on-demand"})
    airflow = scene.airflow()
    airflow.ended["preflight"] = airflow._task("preflight")
    record, whole = scene.record.to_json(), Calls()
    airflow.calls = whole
    assert isinstance(airflow._task("provision"), Done)
    expected = made(scene)
    assert len(expected) == 2
    for number in range(len(whole.trace) + 1):
        again = killed_and_run_again(record, number)
        assert made(again) == expected, (number, whole.trace[max(number - 1, 0)])
        assert again.pools() == {"default-pool", "h100-pool", expected[1]}
        assert [bool(each.error) for each in again.record.attempts] == [True, False]


def killed_and_run_again(record: str, number: int) -> Scene:
    scene = Scene(capacity_plan=list(TWO), capacity_budget_s=7200, world={"speed": 10.0}, guard=False)
    scene.world.faults.set("quota", {"capacity": "on-demand"})
    Records(scene.client("admin"), NAMESPACE, WORKLOAD).begin(Record.from_json(record))
    airflow = scene.airflow(calls=Calls(kill_at=max(number, 1), after=number > 0))
    with pytest.raises(Killed):
        airflow._task("provision")
    airflow.calls = Calls()
    scene.world.advance(3.0)
    assert isinstance(airflow._task("provision"), Done), airflow.said
    return scene
