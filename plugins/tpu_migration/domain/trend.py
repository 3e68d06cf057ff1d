"""Tell from a series whether it moves towards a limit, and when it gets there. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

DAY_S = 86_400.0
_LEAST_POINTS = 5  # four in order may be chance (1 in 24), five are at 1 in 120
_MOST_POINTS = 20
_Z_ONE_SIDED = 1.645  # 95 %
_HORIZON_S = 7 * DAY_S  # a week to do something about it
_FAR_AS_SEEN = 2.0  # a line is not drawn further than twice the time that it rests on


@dataclass(frozen=True)
class Trend:
    """How fast a series moves, in its unit a day, and in how many seconds it reaches the limit."""

    per_day: float
    reaches_in_s: float
    points: int


def towards(points: Sequence[tuple[float, float]], limit: float) -> Trend | None:
    """Return the trend of (Unix seconds, value) towards an upper limit, None if there is none within a week.

    The slope is Theil's and Sen's median of all pairs, which one outlier does not move; that it is no chance is
    Mann's and Kendall's test at 95 %, one-sided. A value that is over the limit already is no trend.
    """
    seen = [(at, value) for at, value in sorted(points)[-_MOST_POINTS:] if math.isfinite(value)]
    if len(seen) < _LEAST_POINTS or seen[-1][1] >= limit:
        return None
    pairs = [(a, b) for a, b in itertools.combinations(seen, 2) if b[0] > a[0]]
    if not pairs or not _rises(pairs, len(seen)):
        return None
    slope = median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs)
    if slope <= 0:
        return None
    level = median(value - slope * at for at, value in seen)
    now = seen[-1][0]
    left_s = max(0.0, (limit - level) / slope - now)
    if left_s > min(_HORIZON_S, _FAR_AS_SEEN * (now - seen[0][0])):
        return None
    return Trend(slope * DAY_S, left_s, len(seen))


def _rises(pairs: Sequence[tuple[tuple[float, float], tuple[float, float]]], count: int) -> bool:
    ups = sum((b[1] > a[1]) - (b[1] < a[1]) for a, b in pairs)
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return (ups - 1) / deviation > _Z_ONE_SIDED
