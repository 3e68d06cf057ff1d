"""The demo's own judgement: what a fault excuses, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.demo import EXPECTED, FAULTS, MIN_REQUESTS, Bane, _problems
from tpu_migration.domain.phases import Phase
from tpu_migration.domain.plan import Plan
from tpu_migration.record import Record, Shift, Source, StageRun

BEGAN = 1_000.0


def record(phase: Phase, shift: Shift | None = None, failed: bool = False) -> Record:
    source = Source("vllm", "vllm", 8000, "vllm", 2, "nvidia-h100-80gb", 1, "m", ("m",), "http://10.0.0.1", ())
    plan = Plan()
    stages = (StageRun("shift", "failed", 1.0, 2.0, "a breach"),) if failed else ()
    return Record(
        "vllm", "inference", "run-1", 1, phase, plan.to_dict(), plan.hash, source, 2, "vllm-tpu", "tpu-1",
        shift=shift or Shift(), stages=stages,
    )  # fmt: skip


class Stand:
    """Remembers which faults were switched on."""

    def __init__(self) -> None:
        self.on: list[str] = []

    async def fault(self, name: str) -> None:
        self.on.append(name)


def bane(name: str) -> tuple[Bane, Stand]:
    stand = Stand()
    return Bane(FAULTS.get(name), stand, lambda text: None), stand  # type: ignore[arg-type]


def users(*failures: dict[str, Any]) -> dict[str, Any]:
    return {"requests": MIN_REQUESTS, "failures": list(failures)}


def failure(sent: float, at: float) -> dict[str, Any]:
    return {"time": at, "after_s": at - sent, "kind": "cut"}


async def test_a_fault_of_the_shift_is_switched_on_once_with_the_first_weight():
    one, stand = bane("node-lost")
    for seen in (None, record(Phase.GATED), record(Phase.SHIFTING, Shift(step=0, percent=10))):
        await one.look(seen)
    assert stand.on == []
    for _ in range(2):
        await one.look(record(Phase.SHIFTING, Shift(step=0, percent=10, written=1.0)))
    assert stand.on == ["node-lost"]


async def test_a_fault_without_a_phase_is_on_before_users_come():
    one, stand = bane("stockout")
    await one.look(None)
    assert stand.on == ["stockout"]
    nothing, stand = bane("")
    await nothing.look(None)
    assert stand.on == []


def test_a_machine_that_dies_excuses_the_streams_that_it_took_along_and_no_later_ones():
    one, _ = bane("node-lost")
    one.began = BEGAN
    fell_back = record(Phase.FALLEN_BACK, failed=True)
    excused = users(failure(BEGAN - 5, BEGAN + 1), failure(BEGAN + 10, BEGAN + 100))
    assert _problems(one, fell_back, "failed", excused) == []
    (problem,) = _problems(one, fell_back, "failed", users(failure(BEGAN + 61, BEGAN + 62)))
    assert "1 of 2000 user requests failed or were cut" in problem
    (problem,) = _problems(one, fell_back, "failed", users(failure(BEGAN - 5, BEGAN - 1)))
    assert "user requests failed" in problem


def test_other_faults_excuse_nobody():
    one, _ = bane("oom")
    one.began = BEGAN
    assert _problems(one, record(Phase.FALLEN_BACK, failed=True), "failed", users(failure(BEGAN, BEGAN + 1)))


def test_a_run_that_never_met_its_fault_proves_nothing():
    one, _ = bane("gitops")
    problems = _problems(one, record(Phase.FALLEN_BACK, failed=True), "failed", users())
    assert problems == ["the run never came to shifting, where fault gitops was to begin"]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_fault_has_an_end_at_which_a_run_may_rest(name):
    assert EXPECTED[name] in (Phase.MIGRATED, Phase.FALLEN_BACK)
