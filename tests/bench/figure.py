"""What is measured, and what was claimed of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured figure; `limit` is what it must stay below, None where nothing is claimed."""

    name: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def holds(self) -> bool:
        """Tell whether the claim holds."""
        return self.limit is None or self.value < self.limit


def best_cpu_s(run: Callable[[], object], times: int) -> float:
    """Return the least CPU time of this process that one of several runs took, in seconds.

    On an idle machine that is the time on the clock; on a busy one it still is what the code takes.
    """
    taken = []
    for _ in range(times):
        began = time.process_time()
        run()
        taken.append(time.process_time() - began)
    return round(min(taken), 3)
