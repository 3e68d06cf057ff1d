"""Play every crash point of every story (tests/simulation/crash_points.py) with each fate, on all cores."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tests.prove.fault_scenarios import quiet
from tests.prove.ledger import Ledger
from tests.simulation.crash_points import BOUND_S, STORIES, Fate, Point, different, play, points

NAME = "crash_points"
BLOCK = 50


def prove(ledger: Ledger) -> bool:
    """Play what was not played yet; True if users were safe in all of it, within the bound."""
    quiet()
    known: set[bytes] = set()
    holds = True
    with ProcessPoolExecutor(os.cpu_count(), initializer=quiet) as pool:
        for story in STORIES.values():
            found = points(story)
            whole, worlds = [point for point, _ in found], different(found, known)
            figures = {"calls": len(whole) // 2, "points": len(whole), "different_worlds": len(worlds)}
            for fate in Fate:
                # What a duplicate meets depends on the memory of the first worker, too: no two points are equal.
                holds &= _prove(ledger, pool, story.name, fate, whole if fate is Fate.JOINED else worlds, figures)
    return holds


def _prove(
    ledger: Ledger, pool: ProcessPoolExecutor, story: str, fate: Fate, chosen: list[Point], figures: dict[str, Any]
) -> bool:
    known = ledger.get(NAME)
    name = f"{story}, {fate}"
    mine = {**known.get(name, {"played": 0, "problems": []}), **figures}
    blocks = [chosen[first : first + BLOCK] for first in range(mine["played"], len(chosen), BLOCK)]
    for block, (problems, safe_after_s) in zip(
        blocks, pool.map(_play, [story] * len(blocks), [fate] * len(blocks), blocks), strict=True
    ):
        mine["played"] += len(block)
        mine["problems"] = [*mine["problems"], *problems]
        if safe_after_s:
            mine["safe_after_s_worst"] = max(safe_after_s, mine.get("safe_after_s_worst", 0.0))
        ledger.put(NAME, {**known, name: mine})
    worst = mine.get("safe_after_s_worst")
    within = f", users safe after {worst:.0f} s at most (bound {BOUND_S:.0f})" if worst else ""
    print(
        f"{name}: {mine['points']} points at {mine['calls']} calls, {mine['different_worlds']} different worlds, "
        f"{mine['played']} played, {len(mine['problems'])} broken{within}",
        flush=True,
    )
    for problem in mine["problems"]:
        print(f"BROKEN: {problem}")
    return not mine["problems"]


def _play(story: str, fate: Fate, block: list[Point]) -> tuple[list[str], float | None]:
    problems, safe = [], []
    for point in block:
        played = play(STORIES[story], fate, point)
        safe += [played.safe_after_s] if played.safe_after_s else []
        if played.problems:
            when = "after" if point.after else "before"
            problems.append(f"{story}, {fate}, {when} call {point.call}: {played.problems}")
    return problems, max(safe, default=None)
