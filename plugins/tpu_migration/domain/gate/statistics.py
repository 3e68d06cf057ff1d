"""Bound proportions, quantiles and ratios from one side; pure, seeded, safe with infinities.

Everything here is monotone: a worse observation never moves a bound to the better side. The judge's
promise that a worse candidate never gets a better outcome rests on it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv, ndtr, stdtrit  # scipy.stats takes a second to import

Floats = NDArray[np.float64]
Counts = NDArray[np.int32]

# Pocock's nominal one-sided level for each of K equally spaced looks, so that the overall error stays
# at 1 - confidence: Jennison and Turnbull, Group Sequential Methods, table 2.1 (constants 1.875, 1.992
# at 0.05; 1.527, 1.650 at 0.10). tests/unit/test_gate_statistics.py recomputes them.
POCOCK_ALPHA: dict[float, tuple[float, float, float]] = {
    0.95: (0.05, 0.030367, 0.023175),
    0.90: (0.10, 0.063388, 0.049423),
}


class Interval(NamedTuple):
    """A point estimate between two one-sided bounds, each at the same alpha."""

    value: float
    low: float
    high: float


UNKNOWN = Interval(math.nan, -math.inf, math.inf)


def proportion(successes: int, trials: int, alpha: float) -> Interval:
    """Bound a proportion exactly from both sides (Clopper and Pearson 1934), each side at `alpha`."""
    if trials <= 0:
        return UNKNOWN
    low = 0.0 if successes == 0 else float(betaincinv(successes, trials - successes + 1, alpha))
    high = 1.0 if successes == trials else float(betaincinv(successes + 1, trials - successes, 1 - alpha))
    return Interval(successes / trials, low, high)


def requests_to_claim(proportion_limit: float, alpha: float) -> int:
    """Return how many requests without one violation prove a violation rate below the limit.

    299 for 1 % at alpha 0.05, 459 at 0.01: (1 - limit)^n <= alpha.
    """
    return math.ceil(math.log(alpha) / math.log1p(-proportion_limit))


def quantile_index(n: int, q: float) -> int:
    """Return the zero-based rank of the q-quantile: the smallest value with q of the sample at or below.

    No interpolation: between a number and the infinity of a failed request there is nothing.
    """
    return max(0, math.ceil(round(q * n, 9)) - 1)


def order_statistic_bounds(ordered: Floats, q: float, alpha: float) -> Interval:
    """Bound the q-quantile of any distribution by order statistics of the sorted sample.

    The upper bound is the smallest X(j) with P(Bin(n, q) <= j - 1) >= 1 - alpha, infinite if the
    sample is too small for one; the lower is the largest X(l) with P(Bin(n, q) <= l - 1) <= alpha.
    David and Nagaraja, Order Statistics, 7.1.
    """
    n = len(ordered)
    if n == 0:
        return UNKNOWN
    below = bdtr(np.arange(n, dtype=np.float64), n, q)  # below[i] = P(Bin(n, q) <= i)
    j = int(np.searchsorted(below, 1 - alpha))
    high = float(ordered[j]) if j < n else math.inf
    last = int(np.searchsorted(below, alpha, side="right")) - 1
    low = float(ordered[last]) if last >= 0 else 0.0
    return Interval(float(ordered[quantile_index(n, q)]), low, high)


@lru_cache(maxsize=16)
def _draws(count: int, replicates: int, seed: tuple[int, int]) -> Counts:
    """Return how often each replicate draws each block, replicates x count; shared, so read-only."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    draws: Counts = rng.multinomial(count, np.full(count, 1 / count), size=replicates).astype(np.int32)
    draws.setflags(write=False)
    return draws


class Blocks:
    """Resample an arm by blocks of time, since neighbouring requests share queues, batches and stalls.

    The run is cut into `most` spans of equal length, or fewer, so that none is shorter than `least_s`;
    each replicate draws as many blocks with replacement. Block bootstrap: Kuensch 1989. The same draws
    serve every metric of the arm. The cut follows from the times alone, never from what was measured:
    a cut that did could move a bound to the better side for a worse answer.
    """

    def __init__(self, times_s: Floats, most: int, least_s: float, replicates: int, seed: tuple[int, int]) -> None:
        start, end = (float(times_s.min()), float(times_s.max())) if len(times_s) else (0.0, 0.0)
        self.count = count = max(1, min(most, int((end - start) / least_s)))
        width = (end - start) / count
        if width > 0:
            self.of = np.minimum(((times_s - start) / width).astype(np.int64), count - 1)
        else:
            self.of = np.zeros(len(times_s), dtype=np.int64)
        self.filled = len(np.unique(self.of))
        self.draws = _draws(count, replicates, seed)

    def quantiles(self, values: Floats, members: NDArray[np.bool_], q: float) -> Floats:
        """Return the q-quantile of each replicate over the member requests; NaN where it drew none."""
        chosen, blocks = values[members], self.of[members]
        order = np.argsort(-chosen, kind="stable")
        descending, blocks = chosen[order], blocks[order]
        # top[k, b]: how many of the k largest values are in block b; a row more than there are values.
        top = np.zeros((len(descending) + 1, self.count), dtype=np.int32)
        np.cumsum(blocks[:, None] == np.arange(self.count), axis=0, out=top[1:])
        totals = self.draws @ top[-1]
        # A value is the quantile as soon as more than `above` of the replicate's requests are at or over it.
        above = totals - np.ceil(np.round(q * totals, 9)).astype(np.int64)
        # Bisect for the least such k, for all replicates at once: what is over k only grows with k.
        low, high = np.zeros(len(totals), dtype=np.int64), np.full(len(totals), len(descending), dtype=np.int64)
        for _ in range(len(descending).bit_length()):
            middle = (low + high) // 2
            enough = np.einsum("rb,rb->r", self.draws, top[middle]) > above
            high = np.where(enough, middle, high)
            low = np.where(enough, low, np.minimum(middle + 1, high))
        return np.where(totals > 0, descending[high - 1], np.nan) if len(descending) else np.full(len(totals), np.nan)

    def sums(self, values: Floats) -> Floats:
        """Return the sum of the values in each replicate."""
        per_block = np.bincount(self.of, weights=values, minlength=self.count)
        return np.asarray(self.draws @ per_block, dtype=np.float64)


def expanded_alpha(alpha: float, blocks: int) -> float:
    """Return the tail of the replicates to cut for a bound at `alpha` from so few blocks.

    The plain percentile interval is too narrow for a small number of units; reading it at
    Phi(-sqrt(n/(n-1)) t(alpha, n-1)) mends that (Hesterberg 2015, "What Teachers Should Know About
    the Bootstrap", 4.3). With fewer than two blocks nothing can be said.
    """
    if blocks < 2:
        return 0.0
    t = -float(stdtrit(blocks - 1, alpha))
    return float(ndtr(-math.sqrt(blocks / (blocks - 1)) * t))


def percentile_bounds(value: float, lows: Floats, highs: Floats, alpha: float) -> Interval:
    """Read two one-sided bounds off replicates; `lows` and `highs` differ in what undefined means.

    There is none where the tail is thinner than one replicate: four blocks or fewer at 95 %, or a clock
    that stepped and left all requests in two of them.
    """
    if alpha * len(lows) < 1:
        return Interval(value, -math.inf, math.inf)
    low = np.sort(lows)[max(0, math.floor(alpha * len(lows)) - 1)]
    high = np.sort(highs)[min(len(highs) - 1, math.ceil((1 - alpha) * len(highs)))]
    return Interval(value, float(low), float(high))
