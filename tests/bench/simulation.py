"""Measure what a whole migration takes in virtual time."""

from __future__ import annotations

import gc
import logging

from tests.bench.figure import Figure, best_cpu_s
from tests.simulation.harness import COLLECT, Airflow, Scene
from tests.simulation.scenarios import SMALLEST

LIMIT_S, RUNS = 0.1, 30


def virtual_migration() -> Figure:
    """Run the smallest whole migration, preflight to the end of the H100 pool, guards and users included."""
    logging.disable(logging.CRITICAL)
    worlds = [Scene(**SMALLEST) for _ in range(RUNS)]
    ended: list[Airflow] = []
    before = gc.get_threshold()
    gc.set_threshold(*COLLECT)
    value = best_cpu_s(lambda: ended.append(worlds.pop().airflow().run()), RUNS)
    gc.set_threshold(*before)
    logging.disable(logging.NOTSET)
    if not all(each.green for each in ended):
        raise RuntimeError(f"a migration did not end well: {ended[-1].reasons()}")
    return Figure("virtual_migration", value, "s", LIMIT_S)
