"""Play any number of drawn migrations (tests/simulation/scenarios.py), on all cores."""

from __future__ import annotations

import gc
import logging
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tests.prove.ledger import Ledger
from tests.simulation.harness import COLLECT
from tests.simulation.scenarios import draw, play

NAME = "fault_scenarios"
BLOCK = 50


def prove(ledger: Ledger, seeds: int) -> bool:
    """Play the seeds from 0 on that were not played yet; True if nothing was wrong in any."""
    figures = ledger.get(NAME)
    begun = figures.get("seeds", 0)
    ends, problems = Counter(figures.get("ends", {})), list(figures.get("problems", []))
    calls = figures.get("calls", 0)
    blocks = [range(first, min(first + BLOCK, seeds)) for first in range(begun, seeds, BLOCK)]
    with ProcessPoolExecutor(os.cpu_count(), initializer=quiet) as pool:
        for block, played in zip(blocks, pool.map(_play, blocks), strict=True):
            ends.update(played["ends"])
            problems += played["problems"]
            calls += played["calls"]
            ledger.put(NAME, {"seeds": block.stop, "ends": dict(ends), "problems": problems, "calls": calls})
            told = ", ".join(f"{count} {phase}" for phase, count in ends.most_common())
            print(f"{block.stop} of {seeds} scenarios, {len(problems)} broken; {told}", flush=True)
    for problem in problems:
        print(f"BROKEN: {problem}")
    return not problems


def quiet() -> None:
    """Keep a process that plays thousands of worlds from logging, and from collecting garbage often."""
    logging.disable(logging.CRITICAL)
    gc.set_threshold(*COLLECT)


def _play(block: range) -> dict[str, Any]:
    ended = [play(draw(seed)) for seed in block]
    return {
        "ends": Counter(each.phase or "refused" for each in ended),
        "problems": [f"{each.scenario} ended {each.phase}: {each.problems}" for each in ended if each.problems],
        "calls": sum(each.calls for each in ended),
    }
