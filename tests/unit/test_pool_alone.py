"""One node pool by itself, as the operators make and remove it: under a virtual clock, on the sandbox's GKE API."""

from __future__ import annotations

import json

import pytest
from google.api_core import exceptions

from sandbox.clock import VirtualClock
from sandbox.faults import FaultSet
from sandbox.gke.core import GkeCloud
from sandbox.gke.nodes import MemoryNodes
from sandbox.world import _ClusterManager
from tpu_migration.clients.gke import Definition, NodePools
from tpu_migration.errors import PermanentError
from tpu_migration.stages.base import Done, Failed, Waiting
from tpu_migration.stages.pool_alone import CLEARING_S, MakePool, RemovePool, State

BODY = {
    "name": "tpus",
    "initial_node_count": 2,
    "config": {"machine_type": "ct5lp-hightpu-8t"},
    "locations": ["us-west4-a"],
}
LIMIT_S = 3600.0


class Killed(BaseException):
    """The process ends here."""


class Google:
    """The cloud under a virtual clock; every call is counted, and `before` and `after` may break it."""

    def __init__(self, **options):
        self.clock, self.faults, self.calls = VirtualClock(), FaultSet(), []
        self.cloud = GkeCloud(self.clock, MemoryNodes(), faults=self.faults, **options)
        self.before = self.after = lambda call, number: None
        self._client = _ClusterManager(self.cloud, lambda *_: None, lambda *_: None)
        self.pools = NodePools(self, "sandbox-project", "us-west4", "sandbox")

    def __getattr__(self, name):
        def call(**request):
            self.calls.append(name)
            number = len(self.calls)
            self.before(name, number)
            try:
                return getattr(self._client, name)(**request)
            finally:  # a refusal is an answer, too
                self.after(name, number)

        return call

    def pass_(self, seconds):
        self.clock.advance(seconds)
        self.cloud.tick()

    def make(self, body=None, state=None, **more):
        deadline = more.pop("deadline", self.clock.now() + LIMIT_S)
        return MakePool(self.pools, Definition.read(body or BODY), deadline, state, clock=self.clock, **more)

    def remove(self, name="tpus"):
        return RemovePool(self.pools, name, self.clock.now() + LIMIT_S, clock=self.clock)

    def drive(self, work, said=None):
        for _ in range(5000):
            outcome = work.step()
            if not isinstance(outcome, Waiting):
                return outcome
            if said is not None:
                said.append(outcome.why)
            self.pass_(outcome.seconds)
        raise AssertionError(f"it never ends: {outcome}")

    @property
    def names(self):
        return set(self.cloud.state["pools"])


@pytest.fixture
def google():
    return Google()


def once(google, error, *, call, after=False):
    """Let the first such call fail: before it reaches GKE, or after GKE has done it."""
    failed = []

    def fail(name, _):
        if name == call and not failed:
            failed.append(name)
            raise error

    setattr(google, "after" if after else "before", fail)


def test_a_pool_is_made_and_deleted_and_doing_either_again_changes_nothing(google):
    done = google.drive(google.make())
    assert isinstance(done, Done)
    assert done.result["self_link"].endswith("/clusters/sandbox/nodePools/tpus")
    assert google.drive(google.make()) == done
    assert google.calls.count("create_node_pool") == 1
    assert google.drive(google.remove()) == Done({})
    assert google.drive(google.remove()) == Done({})
    assert google.calls.count("delete_node_pool") == 1
    assert google.names == set()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"config": {"machine_type": "ct5lp-hightpu-4t"}},
            "is ct5lp-hightpu-8t, not ct5lp-hightpu-4t",
        ),
        ({"locations": ["us-west4-b"]}, "its zone is us-west4-a, not us-west4-b"),
        ({"config": {"machine_type": "ct5lp-hightpu-8t", "spot": True}}, "its capacity is on-demand, not spot"),
        (
            {"placement_policy": {"type": "COMPACT", "tpu_topology": "4x4"}},
            "its TPU topology is none, not 4x4",
        ),
    ],
)
def test_a_pool_of_another_shape_is_refused_with_the_difference_and_left_alone(google, change, told):
    google.drive(google.make())
    failed = google.drive(google.make({**BODY, **change}))
    assert isinstance(failed, Failed)
    assert failed.kind == "permanent"
    assert told in failed.reason
    assert google.names == {"tpus"}


def test_what_the_body_leaves_to_gke_is_no_difference(google):
    google.drive(google.make())
    body = {"name": "tpus", "config": {"machine_type": "ct5lp-hightpu-8t"}}
    assert isinstance(google.drive(google.make(body)), Done)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"name": "tpus", "machine": "x"}, 'no field named "machine"'),
        ({"config": {}}, "names no node pool"),
        ("tpus", "no node pool of the GKE API"),
    ],
)
def test_a_body_that_is_no_node_pool_is_refused_by_what_is_wrong_with_it(body, told):
    with pytest.raises(PermanentError, match=told):
        Definition.read(body)


def test_a_body_in_either_spelling_is_the_same_and_survives_plain_values():
    camel = {"name": "tpus", "initialNodeCount": 2, "config": {"machineType": "ct5lp-hightpu-8t"}}
    camel["locations"] = ["us-west4-a"]
    first, second = Definition.read(BODY), Definition.read(camel)
    assert first == second == Definition.read(json.loads(json.dumps(first.to_dict())))


@pytest.mark.parametrize("fault", ["quota", "late-stockout"])
def test_an_operation_that_is_done_with_an_error_is_a_failure_and_nothing_is_left(google, fault):
    google.faults.set(fault, {})
    failed = google.drive(google.make())
    assert isinstance(failed, Failed)
    assert failed.kind == "capacity"
    assert failed.reason.endswith("; nothing of it is left")
    google.pass_(300.0)
    assert google.names == set()


def test_what_a_failed_create_left_stays_where_that_is_asked_for(google):
    google.faults.set("quota", {})
    failed = google.drive(google.make(clear=False))
    assert isinstance(failed, Failed)
    assert "TPU_LITE_PODSLICE_V5" in failed.reason
    assert google.names == {"tpus"}


def test_a_create_that_does_not_end_in_time_is_cancelled_and_cleared_away(google):
    google.faults.set("pool-stuck", {})
    began = google.clock.now()
    failed = google.drive(google.make(deadline=began + 600.0))
    assert isinstance(failed, Failed)
    assert "its time is over: node pool tpus is provisioning" in failed.reason
    assert google.clock.now() - began < 600.0 + CLEARING_S
    assert google.names == set()


def test_an_adopted_pool_is_never_cleared_away(google):
    google.faults.set("stockout", {})
    google.pools.create(Definition.read(BODY))  # somebody else's
    failed = google.drive(google.make(deadline=google.clock.now() + 60.0))
    assert isinstance(failed, Failed)
    assert "cancel_operation" not in google.calls
    assert google.names == {"tpus"}


def test_a_pool_that_is_just_being_deleted_is_waited_for_and_made_anew(google):
    google.drive(google.make())
    google.pools.delete("tpus")
    said = []
    assert isinstance(google.drive(google.make(), said), Done)
    assert "is being deleted" in said[0]
    assert google.calls.count("create_node_pool") == 2


def test_while_another_operation_holds_the_cluster_it_waits_for_its_turn(google):
    google.pools.create(Definition.read({**BODY, "name": "others"}))
    said = []
    assert isinstance(google.drive(google.make(), said), Done)
    assert "incompatible operation" in said[0]
    assert google.names == {"others", "tpus"}


@pytest.mark.parametrize("after", [False, True], ids=["unsent", "answer-lost"])
@pytest.mark.parametrize(
    "error",
    [
        exceptions.TooManyRequests("429"),
        exceptions.ServiceUnavailable("503"),
        exceptions.DeadlineExceeded("10 s"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("call", ["create_node_pool", "get_node_pool", "list_operations", "get_operation"])
def test_a_call_without_an_answer_is_resolved_by_reading(google, call, error, after):
    once(google, error, call=call, after=after)
    said = []
    assert isinstance(google.drive(google.make(), said), Done)
    assert any("will try again" in each for each in said)
    assert [each["type"] for each in google.cloud.state["operations"].values()] == ["CREATE_NODE_POOL"]


def test_an_error_of_an_operation_whose_answer_was_lost_is_still_told(google):
    google.faults.set("quota", {})
    once(google, exceptions.DeadlineExceeded("10 s"), call="create_node_pool", after=True)
    failed = google.drive(google.make())
    assert isinstance(failed, Failed)
    assert "TPU_LITE_PODSLICE_V5" in failed.reason
    assert google.names == set()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_call_and_run_again_it_makes_exactly_one_pool(after):
    whole = Google()
    whole.drive(whole.make(poll_s=20.0))
    for number in range(1, len(whole.calls) + 1):
        google = Google()

        def kill(call, at, number=number):
            if at == number:
                raise Killed(call)

        setattr(google, "after" if after else "before", kill)
        with pytest.raises(Killed):
            google.drive(google.make(poll_s=20.0))
        assert isinstance(google.drive(google.make(poll_s=20.0)), Done), whole.calls[number - 1]
        made = [each["type"] for each in google.cloud.state["operations"].values()]
        assert made == ["CREATE_NODE_POOL"], whole.calls[number - 1]
        assert google.names == {"tpus"}


def test_a_restarted_triggerer_goes_on_from_plain_values(google):
    google.faults.set("quota", {})
    work = google.make()
    assert isinstance(work.step(), Waiting)
    state = json.loads(json.dumps(work.plain_state()))
    assert state["ours"]
    assert state["operation"].startswith("operation-")
    failed = google.drive(google.make(state=State(**state)))
    assert isinstance(failed, Failed)
    assert google.names == set()


def test_a_task_that_is_killed_cancels_its_operation_and_makes_nothing_more(google):
    google.faults.set("stockout", {})
    work = google.make()
    work.step()
    work.stop(60.0, sleep=google.pass_)
    assert "cancel_operation" in google.calls
    assert isinstance(work.step(), Failed)
    google.pass_(600.0)
    assert google.names == set()


def test_a_task_that_is_killed_leaves_an_adopted_pool_alone(google):
    google.pools.create(Definition.read(BODY))
    work = google.make()
    work.step()
    work.stop(sleep=google.pass_)
    assert "cancel_operation" not in google.calls
    google.pass_(600.0)
    assert google.cloud.state["pools"]["tpus"]["status"] == "RUNNING"


def test_a_pool_that_is_still_being_made_is_cancelled_before_it_is_deleted(google):
    google.faults.set("stockout", {})
    google.pools.create(Definition.read(BODY))
    began = google.clock.now()
    assert google.drive(google.remove()) == Done({})
    assert google.clock.now() - began < 300.0
    assert google.names == set()


def test_a_deletion_that_does_not_end_in_time_is_told(google):
    google.drive(google.make())
    google.faults.set("pool-stuck", {"operation": "DELETE_NODE_POOL"})
    failed = google.drive(google.remove())
    assert isinstance(failed, Failed)
    assert failed.reason.startswith("node pool tpus is still there, and its time is over")


def test_a_refusal_that_nothing_mends_ends_it_at_once(google):
    once(google, exceptions.PermissionDenied("Required container.clusters.update"), call="create_node_pool")
    failed = google.drive(google.make())
    assert isinstance(failed, Failed)
    assert failed.kind == "permanent"
    assert "container.clusters.update" in failed.reason


@pytest.mark.parametrize(
    ("machine", "ends"), [("ct5lp-hightpu-8t", Done), ("ct5lp-hightpu-4t", Failed)], ids=["same-shape", "another-shape"]
)
def test_a_pool_that_somebody_makes_between_the_look_and_the_call_is_read_and_judged_by_its_shape(
    google, machine, ends
):
    raced = []

    def race(call, _):
        if call == "create_node_pool" and not raced:
            raced.append(call)
            google.pools.create(Definition.read({**BODY, "config": {"machine_type": machine}}))

    google.before = race
    said = []
    outcome = google.drive(google.make(), said)
    assert isinstance(outcome, ends)
    assert "Already exists" in said[0]
    assert google.names == {"tpus"}
    assert [each["type"] for each in google.cloud.state["operations"].values()] == ["CREATE_NODE_POOL"]


def test_a_stuck_create_whose_answer_was_lost_is_found_again_and_cancelled(google):
    google.faults.set("pool-stuck", {})
    once(google, exceptions.DeadlineExceeded("10 s"), call="create_node_pool", after=True)
    failed = google.drive(google.make(deadline=google.clock.now() + 600.0))
    assert isinstance(failed, Failed)
    assert google.calls.count("cancel_operation") == 1
    assert google.names == set()
