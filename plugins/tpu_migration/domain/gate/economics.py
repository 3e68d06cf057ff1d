"""Check what the candidate carries and what it costs: capacity at the SLO, dollars a conforming token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tpu_migration.domain.gate.arms import arm, unusable
from tpu_migration.domain.gate.decide import at_least, at_most, finite, missing, plain, rps
from tpu_migration.domain.gate.model import ArmCost, Check, Observations, RatePoint, RequestResult
from tpu_migration.domain.gate.policy import Policy
from tpu_migration.domain.gate.sections import Capacity, Cost, Goodput
from tpu_migration.domain.gate.statistics import (
    POCOCK_ALPHA,
    Blocks,
    Interval,
    expanded_alpha,
    percentile_bounds,
    proportion,
)

_ROUNDING = 1e-3  # a rate travels through a command line, rounded


def capacity(required: Capacity, minimum: Goodput, seen: Observations, alpha: float) -> Check:
    """Require the highest rate at which every SLO holds to reach the live peak times the head-room.

    A rate holds if its goodput is proven and no lower rate is disproven.
    """
    peak, sweep = seen.peak_rps, _pooled(seen.sweep)
    if peak is None or not (math.isfinite(peak) and peak > 0):
        return missing("capacity", None, "rps", "capacity: the live peak was not given")
    need = peak * required.headroom
    usable = all(math.isfinite(p.rate_rps) and p.rate_rps > 0 and 0 <= p.good <= p.scheduled for p in sweep)
    rates = len({point.rate_rps for point in sweep}) if usable else 0
    if rates < required.min_rates:
        text = f"capacity: {rates} usable rates measured, {required.min_rates} required"
        return missing("capacity", need, "rps", text)
    low, high = 0.0, math.inf
    for point in sweep:
        good = proportion(point.good, point.scheduled, alpha)
        if good.high < minimum.minimum:
            high = math.nextafter(point.rate_rps, 0.0)  # capacity is below a rate that does not hold
            break
        if good.low >= minimum.minimum:
            low = need if abs(point.rate_rps - need) <= _ROUNDING * need else point.rate_rps
    note = f"{rates} rates, peak {peak:.4g} rps × {required.headroom:.4g}"
    return at_least("capacity", "capacity at the SLO", Interval(low, low, high), need, "rps", rps, note)


def _pooled(points: Sequence[RatePoint]) -> list[RatePoint]:
    """Add up what several looks measured at one rate; the lowest rate first."""
    sums: dict[float, RatePoint] = {}
    for p in points:
        known = sums.get(p.rate_rps, RatePoint(p.rate_rps, 0, 0))
        sums[p.rate_rps] = RatePoint(p.rate_rps, known.scheduled + p.scheduled, known.good + p.good)
    return sorted(sums.values(), key=lambda point: point.rate_rps)


def cost_ratio(allowed: Cost, seen: Observations) -> Check:
    """Hold dollars a conforming token to a multiple of the baseline's; the widest of both intervals."""
    old, new = seen.baseline_cost, seen.candidate_cost
    if old is None or new is None:
        text = "cost ratio: price and conforming tokens a second are not known for both arms"
        return missing("cost_ratio", allowed.ratio_limit, "ratio", text)
    theirs, ours = _usd_per_million(old), _usd_per_million(new)
    if theirs is None or ours is None or not math.isfinite(theirs.high):
        text = f"cost ratio: unusable figures ({old} against {new})"
        return missing("cost_ratio", allowed.ratio_limit, "ratio", text)
    interval = Interval(ours.value / theirs.value, ours.low / theirs.high, ours.high / theirs.low)
    note = f"${ours.value:.3g} over ${theirs.value:.3g} a million tokens"
    return at_most("cost_ratio", "cost ratio", interval, allowed.ratio_limit, "ratio", plain, note)


def _usd_per_million(cost: ArmCost) -> Interval | None:
    """Return $/h ÷ (tok/s × 3600) × 1e6, or None where the figures are unusable."""
    mid = cost.tokens_per_s
    low = mid if cost.tokens_per_s_low is None else cost.tokens_per_s_low
    high = mid if cost.tokens_per_s_high is None else cost.tokens_per_s_high
    priced = math.isfinite(cost.usd_per_hour) and cost.usd_per_hour > 0
    if not (priced and 0 <= low <= mid <= high < math.inf):
        return None

    def dollars(tokens_per_s: float) -> float:
        return cost.usd_per_hour / (tokens_per_s * 3600) * 1e6 if tokens_per_s > 0 else math.inf

    return Interval(dollars(mid), dollars(high), dollars(low))


def good_requests(policy: Policy, results: Sequence[RequestResult]) -> int:
    """Count the requests that met every SLO; a malformed one has not. ValueError without an SLO."""
    if policy.slo is None:
        raise ValueError(f"policy {policy.name} has no slo: nothing says what a good request is")
    sound = [result for result in results if result.malformed() is None]
    return int(arm(sound, policy.bootstrap, 0).good(policy.slo).sum())


def throughput(policy: Policy, results: Sequence[RequestResult]) -> tuple[float, float | None, float | None]:
    """Measure conforming tokens a second, with bounds, from one median answer in to the last arrival."""
    problem = unusable(results)
    if policy.slo is None or problem or len(results) < 2:
        raise ValueError(f"no throughput from these results: {problem or 'needs an slo and two requests'}")
    good = arm(results, policy.bootstrap, 0).good(policy.slo)
    arrivals = [r.scheduled_s for r in results]
    ends = np.array([r.scheduled_s + (r.e2e_s or 0.0) for r in results])
    tokens = np.where(good, np.array([float(r.output_tokens) for r in results]), 0.0)
    start, end = min(arrivals) + float(np.median([r.e2e_s or 0.0 for r in results])), max(arrivals)
    if end <= start:
        raise ValueError(f"no steady window: the last arrival is at {end:.3g} s, answers from {start:.3g} s")
    inside = (ends >= start) & (ends <= end)
    # An empty request at each edge, so that the blocks span the whole window.
    times, weights = np.append(ends[inside], [start, end]), np.append(tokens[inside], [0.0, 0.0])
    boot = policy.bootstrap
    blocks = Blocks(times, boot.blocks, boot.block_s, boot.replicates, (boot.seed, 2))
    sums = blocks.sums(weights) / (end - start)
    alpha = expanded_alpha(POCOCK_ALPHA[policy.confidence][policy.looks - 1], blocks.count)
    bounds = percentile_bounds(float(weights.sum()) / (end - start), sums, sums, alpha)
    return bounds.value, finite(bounds.low), finite(bounds.high)
