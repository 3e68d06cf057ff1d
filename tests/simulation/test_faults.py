"""A migration under each fault of the sandbox, as the table has it by default: it ends as the table says."""

from __future__ import annotations

import pytest

from sandbox.faults import Fault, describe
from sandbox.workload import WORKLOAD
from tests.simulation.harness import Phase, Scene


@pytest.mark.parametrize("fault", describe(), ids=lambda fault: fault.name)
def test_under_each_fault_the_run_ends_as_foretold_and_nobody_is_hurt_but_by_the_fault(fault: Fault):
    scene = Scene()
    world = scene.world
    began: list[float] = []

    def strike() -> None:
        world.faults.set(fault.name)
        began.append(world.clock.now())

    if fault.begins is None:
        strike()
    else:
        assert fault.begins is Phase.SHIFTING
        scene.when(lambda: scene.weights().get(f"{WORKLOAD}-tpu", 0) > 0, strike)
    airflow = scene.airflow().run()
    assert began, "the run never came to where the fault was to begin"
    assert scene.record.phase is fault.ends, airflow.reasons()
    assert airflow.green is (fault.ends is Phase.MIGRATED)
    # The table says for how long a fault may hurt users by itself.
    until = began[0] + fault.hurts_s
    assert [each for each in world.traffic.violations if not (fault.hurts_s and each.at <= until)] == []
