"""Cut a worker off at its first calls, and let it go on once its successor has ended the task and the next one works.

Whatever it had read by then, it may not take the lease from that next task: the run would fall back for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sandbox.workload import NAMESPACE, WORKLOAD
from tests.simulation.crash_points import PLAN, GivingWay
from tests.simulation.harness import Airflow, Calls, Killed, Phase, Scene
from tests.simulation.together import Together
from tests.simulation.witness import Witness
from tpu_migration.clients.kubernetes import LEASES
from tpu_migration.lease import DURATION_S, Found
from tpu_migration.names import record_name
from tpu_migration.stages import STAGES
from tpu_migration.stages.base import FORWARD, Done, Failed, Outcome
from tpu_migration.stages.run import LEADS_TO, StageRun

TASKS = [
    "provision",
    "deploy",
    "warm_up",
    "gate",
    "shift",
    "decommission",
]  # preflight takes the lease after its checks
READS = {"before it has read anything": 1, "between the lease and the record": 2, "before it takes the lease": 3}


class CutOff(Calls):
    """Hold a worker at one of its calls in a task; `meanwhile` ends when it may go on."""

    def __init__(self, scene: Scene, task: str, call: int, meanwhile: Callable[[Airflow], None]) -> None:
        super().__init__()
        self.airflow = scene.airflow(calls=self)
        self._task, self._left, self._meanwhile = task, call, meanwhile

    def before(self, method: str, path: str) -> None:
        super().before(method, path)
        if self.airflow.current and self.airflow.current.stage.name == self._task:
            self._left -= 1
            if self._left == 0:
                self._meanwhile(self.airflow)


class Round:
    """A first worker that is cut off in one task, and a second one that takes the run to its end meanwhile.

    The first goes on when `until`, by default whichever task is next, has had the lease for so many calls.
    """

    def __init__(
        self, task: str, call: int, *, until: str = "", calls: int = 0, marked: bool = False, **plan: Any
    ) -> None:
        self.scene = Scene(**{**PLAN, **plan})
        self.witness = Witness(self.scene.world)
        self.second: Airflow | None = None
        self._task, self._until, self._calls, self._marked = task, until, calls, marked
        self.first = CutOff(self.scene, task, call, self._meanwhile).airflow
        self.together = Together(self.scene.world)
        self.first.wait = self.together.sleep
        self.together.start(self.first.run)
        self.together.run()

    def _meanwhile(self, first: Airflow) -> None:
        first.joined = True
        calls = GivingWay(self.together)
        self.second = self.scene.again(first, calls)
        self.second.wait = self.together.sleep
        if self._marked:
            self.second.ended[self._task] = Failed("a person marked the task as failed")
        ended = self.together.start(self.second.run)
        begun: list[int] = []

        def works() -> bool:
            if not begun and self._task != (holder := self._holder()) and holder == (self._until or holder):
                begun.append(calls.count)
            return ended() or (bool(begun) and calls.count - begun[0] >= self._calls)

        before = self._holder()
        self.together.wait(lambda: ended() or self._holder() != before)
        self.together.wait(works)

    def _holder(self) -> str:
        """The task that has the lease."""
        found = Found.of(self.scene.world.client.get(LEASES.plural, NAMESPACE, record_name(WORKLOAD)))
        return found.holder.task if found.holder else ""

    @property
    def outcome(self) -> Outcome:
        return self.first.ended[self._task]

    def assert_the_run_went_on(self, phase: Phase) -> None:
        self.scene.world.advance(10.0)
        assert self.second is not None
        assert self.scene.record.phase is phase, self.second.reasons()
        assert self.second.green is (phase in (Phase.MIGRATED, Phase.PROVEN))
        assert self._holder() == "", "the lease is given back"
        assert self.scene.problems_at_rest() == []
        assert self.witness.broken == []
        self.scene.assert_nobody_noticed()


@pytest.mark.parametrize("calls", [0, 7])
@pytest.mark.parametrize("call", READS.values(), ids=READS)
@pytest.mark.parametrize("task", TASKS)
def test_a_worker_that_was_cut_off_until_the_next_task_works_leaves_that_its_lease(task, call, calls):
    played = Round(task, call, calls=calls)
    assert isinstance(played.outcome, Done), played.outcome
    played.assert_the_run_went_on(Phase.MIGRATED)


@pytest.mark.parametrize("call", READS.values(), ids=READS)
@pytest.mark.parametrize("task", ["deploy", "gate"])
def test_one_whose_task_failed_meanwhile_leaves_the_lease_to_the_teardown_and_the_reason_as_it_was(task, call):
    played = Round(task, call, until="restore", marked=True)
    assert isinstance(played.outcome, Failed)
    played.assert_the_run_went_on(Phase.FALLEN_BACK)
    assert task not in {each.stage for each in played.scene.record.stages if each.state == "failed"}


@pytest.mark.parametrize("call", READS.values(), ids=READS)
def test_a_keeper_that_was_cut_off_leaves_the_lease_to_the_end_of_a_proof_of_concept(call):
    played = Round("shift", call, until="restore", stop_after="gate")
    played.assert_the_run_went_on(Phase.PROVEN)


def test_every_task_of_a_run_has_its_place_in_the_order_of_the_lease():
    assert [*LEADS_TO, "restore"] == list(STAGES)
    assert list(LEADS_TO.values()) == sorted(LEADS_TO.values(), key=FORWARD.index)


def test_a_worker_that_takes_whatever_lease_it_finds_is_seen_to_break_the_run(monkeypatch):
    monkeypatch.setattr(StageRun, "_begin", lambda self: self.context.lease.acquire())
    assert Round("warm_up", 1).scene.record.phase is Phase.FALLEN_BACK
    assert Round("shift", 1, until="restore", stop_after="gate").scene.record.phase is not Phase.PROVEN


def test_a_task_that_is_run_again_has_the_lease_once_a_later_one_is_surely_dead():
    scene = Scene(**PLAN)
    killed = scene.airflow(calls=Calls())
    killed.ended["gate"] = Failed("a person marked the task as failed")

    class DiesOnceItHasTheLease(Calls):
        def done(self, method: str, path: str) -> None:
            if killed.current and killed.current.stage.name == "restore" and method == "PUT" and "leases" in path:
                raise Killed

    killed.calls = DiesOnceItHasTheLease()
    with pytest.raises(Killed):
        killed.run()
    again = scene.again(killed)
    del again.ended["gate"]
    before = scene.world.clock.now()
    again.run()
    assert any("restore of this run had the lease last" in each for each in again.said)
    assert scene.record.phase is Phase.MIGRATED, again.reasons()
    assert scene.world.clock.now() - before > DURATION_S
    scene.assert_nobody_noticed()


def test_an_earlier_task_that_is_run_again_beside_a_later_one_is_done_and_hinders_nobody():
    scene = Scene(**PLAN)
    together = Together(scene.world)
    airflow = scene.airflow()
    airflow.wait = together.sleep
    repeated: list[Outcome] = []

    def clear() -> None:
        again = scene.again(airflow)
        again.wait = together.sleep
        repeated.append(again._task("provision"))

    scene.when(lambda: bool(airflow.current and airflow.current.stage.name == "gate"), lambda: together.start(clear))
    together.start(airflow.run)
    together.run()
    assert isinstance(repeated[0], Done)
    assert airflow.green, airflow.reasons()
    scene.assert_nobody_noticed()
