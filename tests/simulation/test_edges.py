"""Trust no edge of the DAG: tasks marked, cleared, skipped, repeated, out of order; DAGs paused, runs deleted.

Stages are called here as Airflow would call them after such a hand: no weight moves without its proof, at every instant
each backend with weight has ready endpoints, and what is left can be ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.simulation.crash_points import BOUND_S, PLAN
from tests.simulation.harness import FORWARD, Airflow, Calls, Killed, Phase, Scene
from tests.simulation.witness import Witness
from tpu_migration.domain.phases import AFTER_COMMIT, ENDED
from tpu_migration.guard import IDLE_LIMIT_S
from tpu_migration.stages.base import Done, Failed, Outcome

ALL = [*FORWARD, "restore"]
MARKED: dict[str, Outcome | None] = {
    "success": Done(),
    "failed": Failed("a person marked the task as failed"),
    "cleared": None,
}


class Hands:
    """A scene whose tasks people lay hands on."""

    def __init__(self, **plan: Any) -> None:
        self.scene = Scene(**{**PLAN, **plan})
        self.witness = Witness(self.scene.world)
        self.airflow = self.scene.airflow(calls=Calls())

    @property
    def phase(self) -> Phase | None:
        return self.witness.record.phase if self.witness.record else None

    def call(self, *names: str) -> Outcome:
        """Run tasks, whatever the DAG's edges say, each to its end; return how the last one ended."""
        for name in names:
            self.airflow.ended[name] = self.airflow._task(name)
        return self.airflow.ended[names[-1]]

    def up_to(self, name: str) -> None:
        """Run the migration until a task has ended."""
        self.call(*ALL[: ALL.index(name) + 1])

    def killed_amid(self, name: str) -> None:
        """Run the migration, and kill its worker in the middle of a task."""
        self.airflow.calls.kill_at = _middle(name)
        with pytest.raises(Killed):
            self.airflow.run()
        assert self.airflow.current is not None
        assert self.airflow.current.stage.name == name
        self.airflow = self.scene.again(self.airflow, Calls())

    def goes_on(self) -> None:
        """Let Airflow run what has not run; where it stopped after the commit, clear what its message says."""
        self.airflow.run()
        if self.phase in (Phase.COMMITTED, Phase.DECOMMISSIONING):
            self.assert_safe()  # users stay on the target, and the TPU stays
            for each in ("decommission", "restore"):
                self.airflow.ended.pop(each, None)
            assert self.airflow.run().green, self.airflow.reasons()

    def assert_safe(self) -> None:
        self.scene.world.advance(15.0)
        assert self.witness.broken == []
        self.scene.assert_nobody_noticed()

    def assert_ended_well(self) -> None:
        self.assert_safe()
        assert self.scene.problems_at_rest() == []
        assert self.phase in (None, *ENDED)


_MIDDLES: dict[str, int] = {}


def _middle(name: str) -> int:
    """Return the call in the middle of a task's calls."""
    if not _MIDDLES:
        hands = Hands()
        for each in ALL:
            before = hands.airflow.calls.count
            hands.call(each)
            _MIDDLES[each] = (before + hands.airflow.calls.count) // 2 + 1
    return _MIDDLES[name]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mark", MARKED)
def test_a_task_marked_or_cleared_while_it_runs_moves_nobody_without_proof(name, mark):
    hands = Hands()
    hands.killed_amid(name)
    if (outcome := MARKED[mark]) is not None:
        hands.airflow.ended[name] = outcome
    hands.goes_on()
    hands.assert_ended_well()
    if mark == "cleared":
        assert hands.phase is Phase.MIGRATED, hands.airflow.reasons()


@pytest.mark.parametrize("called", ALL)
@pytest.mark.parametrize("ended", [None, *ALL])
def test_any_task_after_any_other_is_done_already_or_refused_and_the_run_ends_well(ended, called):
    """Skipped predecessors, the same task twice, tasks out of order and after the end: all pairs."""
    hands = Hands()
    if ended:
        hands.up_to(ended)
    percent, phase = hands.witness.written_percent, hands.phase
    outcome = hands.call(called)
    position = ALL.index(ended) if ended else -1
    if called != "restore":
        if ALL.index(called) <= position:
            assert isinstance(outcome, Done), outcome
            assert (hands.phase, hands.witness.written_percent) == (phase, percent)
        elif ALL.index(called) > position + 1:
            assert isinstance(outcome, Failed)
            assert "the record says" in outcome.reason or "has no record" in outcome.reason
            assert (hands.phase, hands.witness.written_percent) == (phase, percent)
    hands.goes_on()
    hands.assert_ended_well()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("end", [Phase.MIGRATED, Phase.FALLEN_BACK])
@pytest.mark.parametrize("downstream", [False, True], ids=["alone", "with-downstream"])
def test_a_task_cleared_after_the_end_changes_nothing(name, end, downstream):
    hands = Hands()
    if end is Phase.FALLEN_BACK:
        hands.killed_amid("shift")
        hands.airflow.ended["shift"] = Failed("a person marked the task as failed")
    hands.airflow.run()
    assert hands.phase is end
    percent = hands.witness.written_percent
    for each in ALL[ALL.index(name) :] if downstream else [name]:
        outcome = hands.call(each)
        if isinstance(outcome, Failed):
            break
    if downstream:
        hands.call("restore")
    assert hands.phase is end
    assert hands.witness.written_percent == percent
    assert isinstance(hands.call("restore"), Done if end is Phase.MIGRATED else Failed)
    hands.assert_ended_well()


def _between(hands: Hands, name: str) -> None:
    hands.up_to(name)


def _amid(hands: Hands, name: str) -> None:
    hands.killed_amid(name)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("when", [_between, _amid], ids=["paused-after", "deleted-amid"])
def test_a_dag_that_is_paused_or_a_run_that_is_deleted_is_ended_by_the_guard_and_the_next_run(
    name: str, when: Callable[[Hands, str], None]
):
    hands = Hands()
    when(hands, name)
    hands.scene.world.advance(BOUND_S + 5.0)
    assert hands.phase not in (Phase.SHIFTING, Phase.SOAKING)
    hands.scene.world.advance(IDLE_LIMIT_S, tick_s=5.0)
    hands.assert_safe()
    left = hands.phase
    assert left in (None, Phase.FALLING_BACK, *AFTER_COMMIT)
    second = hands.scene.airflow("run-2").run()
    hands.assert_safe()
    if left in AFTER_COMMIT:
        assert not second.green
        assert hands.phase is left
        return
    assert second.green, second.reasons()
    hands.assert_ended_well()


def test_a_gate_marked_as_success_before_it_judged_moves_nobody():
    hands = Hands()
    hands.up_to("warm_up")
    hands.airflow.ended["gate"] = Done()
    hands.airflow.run()
    failed = hands.airflow.ended["shift"]
    assert isinstance(failed, Failed)
    assert "the record says warm" in failed.reason
    assert hands.phase is Phase.FALLEN_BACK
    hands.assert_ended_well()


def test_the_clearing_of_a_dag_with_another_plan_is_refused():
    hands = Hands()
    hands.up_to("gate")
    other: Airflow = hands.scene.airflow(steps=[100])
    other.ended, other.attempt = dict(hands.airflow.ended), hands.airflow.attempt
    other.run()
    assert "parameters changed in mid-run" in other.reasons()
    hands.assert_ended_well()
