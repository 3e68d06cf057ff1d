"""Play every fault at the beginning of every stage (tests/simulation/fault_matrix.py), on all cores."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor

from tests.prove.fault_scenarios import quiet
from tests.prove.ledger import Ledger
from tests.simulation.fault_matrix import CELLS, broken

NAME = "fault_matrix"


def prove(ledger: Ledger) -> bool:
    """Play the cells that were not played yet; True if each ended as it was foretold."""
    figures = ledger.get(NAME) or {"cells": 0, "problems": []}
    left = CELLS[figures["cells"] :]
    with ProcessPoolExecutor(os.cpu_count(), initializer=quiet) as pool:
        for problems in pool.map(_play, left):
            figures = {"cells": figures["cells"] + 1, "problems": [*figures["problems"], *problems]}
            ledger.put(NAME, figures)
    print(f"{figures['cells']} faults by stages, {len(figures['problems'])} problems", flush=True)
    for problem in figures["problems"]:
        print(f"BROKEN: {problem}")
    return not figures["problems"]


def _play(cell: tuple[str, str]) -> list[str]:
    return broken(*cell)
