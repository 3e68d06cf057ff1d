"""Turn an interval and a limit into a Check whose sentence carries its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

from tpu_migration.domain.gate.model import Check, Outcome
from tpu_migration.domain.gate.statistics import Interval

Format = Callable[[float], str]


def at_most(name: str, title: str, interval: Interval, limit: float, unit: str, show: Format, note: str) -> Check:
    """Pass if the upper bound is within the limit, fail if the lower is beyond it, else cannot decide."""
    value, low, high = interval
    if high <= limit:
        outcome: Outcome = "pass"
        text = f"{title} {show(value)} ≤ limit {show(limit)} (bound {show(high)}, {note})"
    elif low > limit:
        outcome = "fail"
        text = f"{title} {show(value)} > limit {show(limit)} (at least {show(low)}, {note})"
    else:
        outcome = "inconclusive"
        between = f"between {show(low)} and {show(high)}"
        text = f"{title} {show(value)}: limit {show(limit)} lies {between} ({note})"
    return _check(name, outcome, interval, limit, unit, text)


def at_least(name: str, title: str, interval: Interval, limit: float, unit: str, show: Format, note: str) -> Check:
    """Pass if the lower bound reaches the limit, fail if the upper is below it, else cannot decide."""
    value, low, high = interval
    if low >= limit:
        outcome: Outcome = "pass"
        text = f"{title} {show(value)} ≥ required {show(limit)} (bound {show(low)}, {note})"
    elif high < limit:
        outcome = "fail"
        text = f"{title} {show(value)} < required {show(limit)} (at most {show(high)}, {note})"
    else:
        outcome = "inconclusive"
        between = f"between {show(low)} and {show(high)}"
        text = f"{title} {show(value)}: required {show(limit)} lies {between} ({note})"
    return _check(name, outcome, interval, limit, unit, text)


def missing(name: str, limit: float | None, unit: str, sentence: str) -> Check:
    """Return a check whose data is not there: it never passes."""
    return Check(name, "inconclusive", None, (None, None), limit, unit, sentence)


def ms(value: float) -> str:
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def plain(value: float) -> str:
    return f"{value:.3g}"


def share(value: float) -> str:
    return f"{100 * value:.2f} %"


def rps(value: float) -> str:
    return f"{value:.4g} rps"


def per_cent(q: float) -> str:
    return f"{100 * q:g}"


def finite(value: float) -> float | None:
    """Return the number, or None where strict JSON has none for it."""
    return value if math.isfinite(value) else None


def _check(name: str, outcome: Outcome, interval: Interval, limit: float, unit: str, sentence: str) -> Check:
    ends = (finite(interval.low), finite(interval.high))
    return Check(name, outcome, finite(interval.value), ends, limit, unit, sentence)
