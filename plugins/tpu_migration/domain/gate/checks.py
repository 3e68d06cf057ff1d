"""Check latencies, goodput and errors of a candidate, absolutely and against the baseline."""

from __future__ import annotations

import math

import numpy as np

from tpu_migration.domain.gate.arms import Arm, Metric
from tpu_migration.domain.gate.decide import at_least, at_most, missing, ms, per_cent, plain, share
from tpu_migration.domain.gate.model import Check
from tpu_migration.domain.gate.sections import Errors, Goodput, Ratio, Slo
from tpu_migration.domain.gate.statistics import (
    Interval,
    expanded_alpha,
    order_statistic_bounds,
    percentile_bounds,
    proportion,
    requests_to_claim,
)


def latency(slo: Slo, metric: Metric, candidate: Arm, alpha: float) -> Check:
    """Hold a quantile of the candidate to its absolute limit.

    The wider of two bounds: order statistics (exact, but blind to requests that stall together) and
    blocks of time (which see that, but know nothing beyond the largest value).
    """
    q = slo.quantile
    limit = slo.ttft_limit_ms if metric == "ttft" else slo.tpot_limit_ms
    ordered = candidate.ordered(metric)
    exact = order_statistic_bounds(ordered, q, alpha)
    replicates = candidate.blocks.quantiles(candidate.values_ms[metric], candidate.members(metric), q)
    undefined = np.isnan(replicates)
    blocks = percentile_bounds(
        exact.value,
        np.where(undefined, 0.0, replicates),
        np.where(undefined, math.inf, replicates),
        expanded_alpha(alpha, candidate.blocks.filled),
    )
    interval = Interval(exact.value, max(0.0, min(exact.low, blocks.low)), max(exact.high, blocks.high))
    note = f"n={len(ordered)}"
    needed = requests_to_claim(1 - q, alpha)
    if len(ordered) < needed:
        note += f", deciding needs {needed}"
    name, title = f"{metric}_p{per_cent(q)}", f"p{per_cent(q)} {metric.upper()}"
    return at_most(name, title, interval, limit, "ms", ms, note)


def latency_ratio(ratio: Ratio, metric: Metric, baseline: Arm, candidate: Arm, alpha: float) -> Check:
    """Hold a quantile of the candidate to a multiple of the baseline's: non-inferiority by blocks of time."""
    q = ratio.quantile
    limit, floor = getattr(ratio, f"{metric}_limit"), getattr(ratio, f"{metric}_floor_ms")
    name, title = f"{metric}_p{per_cent(q)}_ratio", f"p{per_cent(q)} {metric.upper()} ratio"
    theirs, ours = baseline.ordered(metric), candidate.ordered(metric)
    old, new = order_statistic_bounds(theirs, q, alpha), order_statistic_bounds(ours, q, alpha)
    note = f"n={len(ours)}/{len(theirs)}"
    if not math.isfinite(old.value) or max(old.value, floor) <= 0:
        return missing(name, limit, "ratio", f"{title}: the baseline's p{per_cent(q)} is not measurable ({note})")
    old_q, new_q = (
        np.maximum(side.blocks.quantiles(side.values_ms[metric], side.members(metric), q), floor)
        for side in (baseline, candidate)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = new_q / old_q
    # A replicate whose baseline failed says nothing in the candidate's favour.
    undefined = ~np.isfinite(old_q) | np.isnan(ratios)
    bounds = percentile_bounds(
        max(new.value, floor) / max(old.value, floor),
        np.where(undefined, 0.0, ratios),
        np.where(undefined, math.inf, ratios),
        expanded_alpha(alpha, min(baseline.blocks.filled, candidate.blocks.filled)),
    )
    # Resampling cannot see beyond the largest value: without an exact bound on a side there is none here.
    interval = Interval(
        bounds.value,
        max(0.0, bounds.low) if math.isfinite(old.high) else 0.0,
        bounds.high if math.isfinite(new.high) else math.inf,
    )
    note = f"{ms(new.value)} over {ms(old.value)}, {note}"
    if floor:
        note += f", floor {ms(floor)}"
    return at_most(name, title, interval, limit, "ratio", plain, note)


def goodput(required: Goodput, slo: Slo, candidate: Arm, alpha: float) -> Check:
    """Require a share of the scheduled requests to meet every SLO, by an exact binomial bound."""
    good = int(candidate.good(slo).sum())
    interval = proportion(good, candidate.n, alpha)
    note = f"{good} of {candidate.n} met every SLO"
    return at_least("goodput", "goodput", interval, required.minimum, "share", share, note)


def errors(allowed: Errors, candidate: Arm, alpha: float) -> Check:
    """Allow a share of failed requests, by an exact binomial bound."""
    interval = proportion(candidate.failed, candidate.n, alpha)
    note = f"{candidate.failed} of {candidate.n} failed"
    needed = requests_to_claim(allowed.limit, alpha)
    if candidate.n < needed:
        note += f", deciding needs {needed} requests"
    return at_most("errors", "error rate", interval, allowed.limit, "share", share, note)
