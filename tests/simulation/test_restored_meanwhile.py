"""A person restores, or another does, at any call of a teardown: it ends the run as it would have, and says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sandbox.workload import NAMESPACE, WORKLOAD
from tests.simulation.crash_points import PLAN
from tests.simulation.harness import Airflow, Calls, Phase, Scene
from tests.simulation.witness import Witness
from tpu_migration.record import Record
from tpu_migration.records import Records
from tpu_migration.restore import restore
from tpu_migration.stages.base import Done, Failed

STRIDE = 7  # every seventh call of a long teardown, and both sides of it


class Meddled(Calls):
    """Let others act at one call of the teardown, before or after the server has done it."""

    def __init__(self, act: Callable[[], object], call: int, after: bool) -> None:
        super().__init__()
        self.airflow: Airflow | None = None
        self.calls = 0  # of the teardown
        self._act, self._at, self._after = act, call, after

    def _ours(self) -> bool:
        current = self.airflow.current if self.airflow else None
        return current is not None and current.stage.name == "restore"

    def before(self, method: str, path: str) -> None:
        super().before(method, path)
        self.calls += self._ours()
        if self.calls == self._at and self._ours() and not self._after:
            self._act()

    def done(self, method: str, path: str) -> None:
        if self.calls == self._at and self._ours() and self._after:
            self._act()


def played(call: int, after: bool, failed: str = "", **plan) -> tuple[Scene, Airflow, Meddled, Witness]:
    scene = Scene(**{**PLAN, **plan})
    witness = Witness(scene.world)
    kube = scene.client("admin")

    def by_hand() -> None:
        restore(kube, NAMESPACE, WORKLOAD, actor="a person", reason="to be sure", clock=scene.world.clock)

    airflow = scene.airflow(calls=(calls := Meddled(by_hand, call, after)))
    calls.airflow = airflow
    if failed:
        airflow.ended[failed] = Failed("a person marked the task as failed")
    airflow.run()
    return scene, airflow, calls, witness


def of_the_teardown(record: Record):
    return next(each for each in record.stages if each.stage == "restore")


@pytest.mark.parametrize("failed", ["deploy", "decommission"])
def test_a_fall_back_ends_with_nothing_left_though_somebody_raises_the_epoch_at_any_of_its_calls(failed):
    """Of a decommission that failed nothing falls back: users stay on the TPU, and it is red."""
    _, _, calls, _ = played(0, after=False, failed=failed)
    broken = []
    for call in range(1, calls.calls + 1, STRIDE if calls.calls > 20 else 1):
        for after in (False, True):
            scene, airflow, _, witness = played(call, after, failed)
            ended, record = airflow.ended["restore"], scene.record
            told = of_the_teardown(record)
            if (
                not isinstance(ended, Failed)
                or ended.kind == "superseded"
                or (told.state, told.detail) != ("failed", ended.reason)
                or record.phase is not (Phase.COMMITTED if failed == "decommission" else Phase.FALLEN_BACK)
                or (failed == "deploy" and (scene.problems_at_rest() or witness.broken))
                or scene.world.traffic.violations
            ):
                broken.append((call, after, ended, record.phase, told, scene.problems_at_rest(), witness.broken))
    assert not broken, "\n".join(map(str, broken))


@pytest.mark.parametrize("plan", [{}, {"stop_after": "gate"}], ids=["migrated", "proof of concept"])
def test_a_run_that_ended_well_stays_green_though_somebody_raises_the_epoch_as_it_says_so(plan):
    _, _, calls, _ = played(0, after=False, **plan)
    last = range(max(1, calls.calls - 8), calls.calls + 1)
    for call in last:
        for after in (False, True):
            scene, airflow, _, _ = played(call, after, **plan)
            if scene.record.phase is Phase.FALLEN_BACK:
                assert plan, "a proof of concept that somebody restores has fallen back: that is so"
                continue
            assert isinstance(airflow.ended["restore"], Done), (call, after, airflow.reasons())
            assert of_the_teardown(scene.record).state == "done"
            assert scene.record.phase is (Phase.PROVEN if plan else Phase.MIGRATED)
            assert scene.problems_at_rest() == []
            scene.assert_nobody_noticed()


def test_a_teardown_whose_run_was_ended_by_the_next_one_keeps_still_and_says_who_has_the_workload():
    scene = Scene(**PLAN)
    airflow = scene.airflow()
    airflow.ended["deploy"] = Failed("a person marked the task as failed")
    airflow.run()
    teardown = airflow.current
    assert teardown is not None
    records = Records(scene.client("admin"), NAMESPACE, WORKLOAD)
    records.force(lambda record: Record.from_json(record.to_json().replace('"run-1"', '"run-2"')))
    before = scene.record
    ended = teardown.step()
    assert ended == Failed(f"run run-2 has {WORKLOAD} now, and ended what this run had left", "superseded")
    assert scene.record == before
