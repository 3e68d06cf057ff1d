"""Say what would have to be different for the verdict to be another one. Pure, from the verdict's own numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_AT_LEAST = ("goodput", "capacity")  # every other check holds a value below its limit
_WORTH_SAYING = 100  # times as many requests; beyond that the value lies on the limit itself
_NEAREST = 3


def what_would_change(verdict: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each check that stands against a pass; of a pass, for those nearest to their limits."""
    checks = list(verdict["checks"])
    if verdict["outcome"] == "pass":
        measured = [(room, check) for check in checks if (room := _room(check)) is not None]
        nearest = sorted(measured, key=lambda pair: pair[0])[:_NEAREST]
        return [f"{check['name']} would stop passing if it got worse by {100 * room:.0f} %" for room, check in nearest]
    return [_needs(check) for check in checks if check["outcome"] != "pass"]


def _bounds(check: Mapping[str, Any]) -> tuple[float | None, float | None]:
    low, high = check.get("interval") or (None, None)
    return low, high


def _room(check: Mapping[str, Any]) -> float | None:
    """Return by which share the deciding bound may get worse before it meets its limit."""
    limit, (low, high) = check["limit"], _bounds(check)
    if check["name"] == "capacity" and high is None:
        return None  # no rate was too high: where it ends is not known
    bound = low if check["name"] in _AT_LEAST else high
    if bound is None or not limit or bound <= 0:
        return None
    return float(1 - limit / bound if check["name"] in _AT_LEAST else limit / bound - 1)


def _needs(check: Mapping[str, Any]) -> str:
    name, limit, value, (low, high) = check["name"], check["limit"], check["value"], _bounds(check)
    least = name in _AT_LEAST
    if check["outcome"] == "void":
        return f"{name} needs a measurement that is not disturbed"
    if value is None or limit is None or (low is None and high is None):
        return f"{name} needs evidence that is missing"
    side = "at least" if least else "at most"
    if check["outcome"] == "fail":
        return f"{name} needs {side} {limit:.4g} {check['unit']}, measured {value:.4g}"
    worst = low if least else high
    better = value > limit if least else value < limit
    if better and worst is not None:
        times = ((worst - value) / (limit - value)) ** 2
        if times <= _WORTH_SAYING:
            return (
                f"{name} is on the good side ({value:.4g}, {side} {limit:.4g}), but not surely: about {times:.1f} "
                "times as many requests would decide it, if it stays as it is"
            )
    if better:
        return f"{name} is on the good side ({value:.4g}, {side} {limit:.4g}), but has no bound yet: more requests"
    return f"{name} needs {side} {limit:.4g} {check['unit']}, measured {value:.4g}, though that is not sure either"
