"""Turn an arm's requests into arrays that the checks read; a failed request is infinitely slow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tpu_migration.domain.gate.model import RequestResult
from tpu_migration.domain.gate.sections import Bootstrap, Slo
from tpu_migration.domain.gate.statistics import Blocks, Floats

Metric = Literal["ttft", "tpot", "e2e"]


@dataclass(frozen=True)
class Arm:
    """One arm's evidence: values in ms; NaN where the metric is undefined for a good answer."""

    n: int
    failed: int
    ok: NDArray[np.bool_]
    values_ms: dict[Metric, Floats]
    blocks: Blocks

    def members(self, metric: Metric) -> NDArray[np.bool_]:
        """Return which requests the metric is defined for; failures always count."""
        return ~np.isnan(self.values_ms[metric])

    def ordered(self, metric: Metric) -> Floats:
        """Return the defined values in ascending order, failures last."""
        return np.sort(self.values_ms[metric][self.members(metric)])

    def good(self, slo: Slo) -> NDArray[np.bool_]:
        """Return which requests met every SLO; one without a TPOT (a single token) has met that one."""
        ttft, tpot = self.values_ms["ttft"], self.values_ms["tpot"]
        return self.ok & (ttft <= slo.ttft_limit_ms) & (np.isnan(tpot) | (tpot <= slo.tpot_limit_ms))


def arm(results: Sequence[RequestResult], bootstrap: Bootstrap, stream: int) -> Arm:
    """Collect an arm's evidence from well-formed results; `stream` keeps the two arms' draws apart."""
    times = np.array([r.scheduled_s for r in results], dtype=np.float64)
    return Arm(
        n=len(results),
        failed=sum(not r.succeeded for r in results),
        ok=np.array([r.succeeded for r in results], dtype=np.bool_),
        values_ms={
            "ttft": _values_ms([(r.succeeded, r.ttft_s) for r in results]),
            "tpot": _values_ms([(r.succeeded, r.tpot_s if r.output_tokens > 1 else None) for r in results]),
            "e2e": _values_ms([(r.succeeded, r.e2e_s) for r in results]),
        },
        blocks=Blocks(times, bootstrap.blocks, bootstrap.block_s, bootstrap.replicates, (bootstrap.seed, stream)),
    )


def _values_ms(pairs: list[tuple[bool, float | None]]) -> Floats:
    return np.array(
        [math.inf if not ok else math.nan if value is None else value * 1000 for ok, value in pairs],
        dtype=np.float64,
    )


def unusable(results: Sequence[RequestResult]) -> str | None:
    """Say why these results are no evidence at all: a malformed record, or one that is counted twice."""
    for result in results:
        problem = result.malformed()
        if problem:
            return f"request {result.id}: {problem}"
    ids = Counter(result.id for result in results)
    twice = [name for name, count in ids.items() if count > 1]
    return f"request {twice[0]} is there {ids[twice[0]]} times" if twice else None
