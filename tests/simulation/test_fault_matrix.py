"""A seeded sample of the faults by the stages that `make prove` plays in full."""

from __future__ import annotations

import random

import pytest

from tests.simulation.fault_matrix import CELLS, FORETOLD, STAGES, CellPlay, broken
from tests.simulation.harness import Phase
from tests.simulation.scenarios import FAULTS

SAMPLE = random.Random(20261125).sample(CELLS, 24)
# Where the reason was wrong, or a run was given up that need not have been, until the whole matrix was played.
MENDED = [("gpu-hung", "shift"), ("hang-mid-stream", "shift"), ("api-down", "decommission")]


@pytest.mark.parametrize(("fault", "stage"), sorted({*SAMPLE, *MENDED}))
def test_a_fault_at_the_beginning_of_a_stage_ends_safely_and_for_the_right_reason(fault, stage):
    assert broken(fault, stage) == []


def test_the_table_names_faults_and_stages_that_there_are_and_each_cell_once():
    assert FORETOLD.keys() <= FAULTS.keys()
    for each in FORETOLD.values():
        stages = [stage for one in each for stage in one.stages.split()]
        assert len(stages) == len(set(stages))
        assert set(stages) <= STAGES.keys() - {"restore"}


def test_sees_a_wrong_end_and_a_wrong_reason(monkeypatch):
    monkeypatch.setitem(FORETOLD, "quota", [])
    assert "foretold was migrated" in broken("quota", "provision")[0]


def test_sees_an_end_that_the_runbook_does_not_know(monkeypatch):
    monkeypatch.setattr("tests.simulation.fault_matrix.in_runbook", lambda message: False)
    (found,) = broken("quota", "provision")
    assert "docs/runbook.md has no entry for" in found


def test_sees_a_fault_that_never_strikes():
    play = CellPlay("quota", "decommission")
    play._onset = play._onset.__class__("quota", Phase.REJECTED, 0.0, None, one_replica=False)
    assert "the run never came to decommission" in play.run().problems
