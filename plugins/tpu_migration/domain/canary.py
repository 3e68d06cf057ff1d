"""Sum up a canary: several looks and what has changed around them become one outcome and one sentence. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tpu_migration.domain.gate import ArmEvents, Check
from tpu_migration.domain.trend import DAY_S, towards

PASS, WARN, FAIL, UNDECIDED = "pass", "warn", "fail", "undecided"
MOST_LOOKS = 3
KEPT_UNITS = ("ms", "share", "nats")  # of figures in the history
_UNDECIDED_LIMIT = 3  # canaries in a row: who cannot see for so long must say so
_PRICE_TOLERANCE = 0.01
_SETTLED = {FAIL: 2, PASS: 1}  # a failure must be seen twice, minutes apart: a hiccup of the Gateway is none


@dataclass(frozen=True)
class Look:
    """One look at what serves users: pass, fail or undecided, and why."""

    outcome: str
    sentence: str


@dataclass(frozen=True)
class Price:
    """What the machines cost an hour, and a million output tokens at the rate that was proven; None: not known."""

    usd_per_hour: float | None
    usd_per_million: float | None


def settled(looks: Sequence[Look]) -> bool:
    """Tell whether the looks decide: one that passes, two that fail, or as many as are taken at most."""
    counts = {kind: sum(look.outcome == kind for look in looks) for kind in _SETTLED}
    return len(looks) >= MOST_LOOKS or any(counts[kind] >= least for kind, least in _SETTLED.items())


def concluded(looks: Sequence[Look], findings: Sequence[str]) -> tuple[str, str]:
    """Return the outcome of settled looks, and its sentence."""
    failed = [look for look in looks if look.outcome == FAIL]
    passed = [look for look in looks if look.outcome == PASS]
    if len(failed) >= _SETTLED[FAIL]:
        return FAIL, f"failed {len(failed)} times, minutes apart: {failed[-1].sentence}"
    if not passed:
        return UNDECIDED, looks[-1].sentence
    if failed:
        return WARN, f"failed once and passed minutes later: {failed[0].sentence}"
    if findings:
        return WARN, f"all within the limits, but {'; '.join(findings)}"
    return PASS, passed[-1].sentence


def blind_for(outcomes: Sequence[str]) -> int:
    """Return how many canaries in a row decided nothing, once they are too many; else 0."""
    row = 0
    for outcome in reversed(outcomes):
        if outcome != UNDECIDED:
            break
        row += 1
    return row if row >= _UNDECIDED_LIMIT else 0


def engine_findings(events: ArmEvents, when: str) -> list[str]:
    """Say what happened to engines since the last look; what was not observed is no finding."""
    found = []
    if events.recompiles:
        found.append(
            f"{events.recompiles} programs were compiled {when}: shapes that the warm-up did not know, and users "
            "waited for each"
        )
    if events.restarts:
        found.append(f"engines restarted, or were replaced, {events.restarts} times {when}")
    return found


def price_findings(
    now: Price, then: Price, source_usd_per_million: float | None, ratio_limit: float | None
) -> list[str]:
    """Say how the price has moved since the pass, and whether it still is worth the migration."""
    found = []
    if now.usd_per_hour and then.usd_per_hour and abs(now.usd_per_hour / then.usd_per_hour - 1) > _PRICE_TOLERANCE:
        tokens = (
            f" (${now.usd_per_million:.3g} a million tokens at the proven rate, ${then.usd_per_million:.3g} then)"
            if now.usd_per_million and then.usd_per_million
            else ""
        )
        found.append(f"it costs ${now.usd_per_hour:.2f} an hour, ${then.usd_per_hour:.2f} at the pass{tokens}")
    if ratio_limit and source_usd_per_million and now.usd_per_million:
        ratio = now.usd_per_million / source_usd_per_million
        if ratio > ratio_limit:
            found.append(f"a token costs {ratio:.2f} of what it costs on the source, {ratio_limit:g} was the limit")
    return found


def trend_findings(series: Mapping[str, Sequence[tuple[float, float]]], checks: Sequence[Check]) -> list[str]:
    """Say which upper limits would be reached within days if it went on like this.

    `series` are earlier and present values (Unix seconds, in the check's unit) by the check's name.
    """
    found = []
    for check in checks:
        if check.limit is None or check.unit not in KEPT_UNITS or check.name == "goodput":
            continue
        trend = towards(series.get(check.name, ()), check.limit)
        if trend:
            found.append(
                f"{check.name} rises by {trend.per_day:.3g} {check.unit} a day over {trend.points} canaries, and "
                f"reaches its limit of {check.limit:.4g} {check.unit} in about {trend.reaches_in_s / DAY_S:.1f} days"
            )
    return found
