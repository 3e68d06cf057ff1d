"""Measure what the judge takes for the most requests that a policy may give it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.bench.figure import Figure, best_cpu_s

REQUESTS = 8000
SECONDS_LIMIT, MEMORY_LIMIT_MIB = 3.0, 300.0


def judge_seconds() -> Figure:
    """Judge 2 x 8,000 requests by every check of the policy `chat`."""
    return Figure("judge_2x8000", best_cpu_s(_prepared(), 3), "s", SECONDS_LIMIT)


def judge_memory() -> Figure:
    """Measure the most memory of a process that does nothing else, imports and requests included."""
    argv = [sys.executable, "-m", "tests.bench.judge"]
    found = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return Figure("judge_2x8000_memory", float(found), "MiB", MEMORY_LIMIT_MIB)


def _prepared() -> Callable[[], None]:
    import numpy as np

    from tpu_migration.domain.gate import (
        ArmCost,
        ArmEvents,
        ClientHealth,
        Observations,
        RatePoint,
        RequestResult,
        judge,
    )
    from tpu_migration.resources import policy

    def arm(seed: int) -> list[RequestResult]:
        rng = np.random.default_rng(seed)
        at = np.cumsum(rng.exponential(0.1, REQUESTS)).tolist()
        ttft, tpot = rng.lognormal(-1.2, 0.5, REQUESTS).tolist(), rng.lognormal(-3.5, 0.1, REQUESTS).tolist()
        return [
            RequestResult(str(i), t, t, first, each, first + each * 127, 512, 128, True, None, "length")
            for i, (t, first, each) in enumerate(zip(at, ttft, tpot, strict=True))
        ]

    health, quiet = ClientHealth(1.0, 1.0, 1.0), ArmEvents(0, 0, 0)
    seen = Observations(
        health, health, quiet, quiet, 4.0,
        tuple(RatePoint(rate, 2000, 1990) for rate in (2.8, 4.0, 4.8, 6.0)),
        ArmCost(16.0, 500.0), ArmCost(9.6, 500.0),
    )  # fmt: skip
    baseline, candidate = arm(1), arm(2)

    def run() -> None:
        verdict = judge(policy("chat").without("quality"), baseline, candidate, observations=seen)
        if verdict.outcome != "pass":
            raise RuntimeError(f"an equal candidate does not pass: {verdict.sentence}")

    return run


if __name__ == "__main__":
    _prepared()()
    # Not getrusage: its maximum is that of the parent, if that was larger when this process was made.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    print(int(peak.split()[1]) / 1024)
