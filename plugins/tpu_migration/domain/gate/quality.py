"""Judge whether the candidate gives the baseline's answers: distributions, lengths, tasks, request features.

Missing evidence never passes; a limit is never stricter than twice the noise floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tpu_migration.domain.gate.decide import at_most, missing, per_cent, plain, share
from tpu_migration.domain.gate.model import Check, Outcome
from tpu_migration.domain.gate.parity import HONOURED, FeatureParity, Parity, TaskParity
from tpu_migration.domain.gate.sections import Quality
from tpu_migration.domain.gate.statistics import (
    Blocks,
    Floats,
    Interval,
    expanded_alpha,
    percentile_bounds,
    proportion,
)

_NOISE_FACTOR = 2.0
_REPLICATES, _SEED = 1000, (2026, 7)


def checks(quality: Quality, parity: Parity | None, alpha: float, needed: Sequence[str] = ()) -> list[Check]:
    """Return the checks on quality; evidence that is missing never passes.

    `needed` are the request features without which the users' clients break.
    """
    if parity is None:
        return [missing("quality", None, "prompts", "quality: no answers were compared")]
    made = [*_distributions(quality, parity, alpha), _lengths(quality, parity, alpha)]
    if parity.tasks:
        made.append(_tasks(quality, parity.tasks, alpha))
    return [*made, _features(parity.features, needed)]


def _distributions(quality: Quality, parity: Parity, alpha: float) -> list[Check]:
    prompts, note = parity.prompts, f"{len(parity.prompts)} prompts"
    if len(prompts) < quality.prompts_min:
        text = f"quality: {len(prompts)} prompts were compared of at least {quality.prompts_min}"
        return [missing("quality", quality.prompts_min, "prompts", text)]
    made = []
    if any(each.kl for each in prompts):
        noise = [value for each in prompts for value in each.noise_kl]
        mean_limit = max(quality.kl_mean_limit, _NOISE_FACTOR * float(np.mean(noise)) if noise else 0.0)
        mean = _ratio([sum(each.kl) for each in prompts], [len(each.kl) for each in prompts], alpha)
        made.append(at_most("quality_kl_mean", "mean KL", mean, mean_limit, "nats", plain, note))
        q = quality.kl_quantile
        worst = max(quality.kl_tail_limit, _NOISE_FACTOR * float(np.quantile(noise, q)) if noise else 0.0)
        beyond = [sum(value > worst for value in each.kl) for each in prompts]
        tail = _share(beyond, [len(each.kl) for each in prompts], alpha)
        title = f"positions with KL above {worst:.3g}"
        made.append(at_most(f"quality_kl_p{per_cent(q)}", title, tail, round(1 - q, 9), "share", share, note))
    elif parity.distributions:
        made.append(missing("quality_kl_mean", quality.kl_mean_limit, "nats", "quality: no distribution was compared"))
    noise_agree = [value for each in prompts for value in each.noise_agree]
    floor = _NOISE_FACTOR * (1 - float(np.mean(noise_agree))) if noise_agree else 0.0
    misses, positions = [each.agree.count(False) for each in prompts], [len(each.agree) for each in prompts]
    differing = _share(misses, positions, alpha)
    limit = max(1 - quality.top1_agreement, floor)
    reduced = f"; reduced evidence: {', '.join(parity.reduced)}" if parity.reduced else ""
    made.append(
        at_most(
            "quality_top1", "positions with another likeliest token", differing, limit, "share", share, note + reduced
        )
    )
    return made


def _lengths(quality: Quality, parity: Parity, alpha: float) -> Check:
    theirs = [each.baseline_tokens for each in parity.prompts]
    ours = [each.candidate_tokens for each in parity.prompts]
    allowed, name, title = quality.length_limit, "quality_output_length", "change of the answers' length"
    if not sum(theirs):
        return missing(name, allowed, "share", f"{title}: the baseline gave no answer")
    ratio = _ratio(ours, theirs, alpha)
    # The distance from 1 may lie on either side.
    far = max(abs(ratio.low - 1), abs(ratio.high - 1))
    near = 0.0 if ratio.low <= 1 <= ratio.high else min(abs(ratio.low - 1), abs(ratio.high - 1))
    note = f"{sum(ours)} over {sum(theirs)} tokens"
    return at_most(name, title, Interval(abs(ratio.value - 1), near, far), allowed, "share", share, note)


def _tasks(quality: Quality, tasks: Sequence[TaskParity], alpha: float) -> Check:
    """Allow a loss of right answers up to the margin; paired, so that hard tasks do not count twice."""
    lost = [each.baseline and not each.candidate for each in tasks]
    won = [each.candidate and not each.baseline for each in tasks]
    n = len(tasks)
    paired = _ratio([int(a) - int(b) for a, b in zip(lost, won, strict=True)], [1] * n, alpha)
    exact = proportion(sum(lost), n, alpha)  # resampling sees nothing where no task was lost
    interval = Interval(paired.value, paired.low, max(paired.high, exact.high - sum(won) / n))
    right = f"right: baseline {sum(t.baseline for t in tasks)}, candidate {sum(t.candidate for t in tasks)} of {n}"
    return at_most("quality_tasks", "tasks lost", interval, quality.task_margin, "share", share, right)


def _features(features: Sequence[FeatureParity], needed: Sequence[str]) -> Check:
    lost = [each for each in features if each.lost]
    broken = [each for each in lost if each.id in needed]
    unseen = sorted(set(needed) - {each.id for each in features if each.baseline == HONOURED})
    outcome: Outcome = "fail" if broken else "inconclusive" if unseen else "pass"
    told = ", ".join(f"{each.id} ({each.candidate})" for each in (broken or lost))
    if broken:
        text = f"clients need {told}: the baseline honours it, the candidate does not"
    elif unseen:
        text = f"clients need {', '.join(unseen)}, which the baseline did not show to honour"
    elif lost:
        text = f"clients that use these lose them: {told}"
    else:
        text = f"{len(features)} request features behave alike"
    return Check("quality_features", outcome, len(broken or lost), (None, None), 0, "features", text)


def _ratio(numerators: Sequence[float], denominators: Sequence[float], alpha: float) -> Interval:
    """Bound a ratio of sums over prompts, each of which is drawn whole: its positions are not independent."""
    above, below = np.array(numerators, dtype=np.float64), np.array(denominators, dtype=np.float64)
    if not len(below) or below.sum() <= 0:
        return Interval(math.nan, -math.inf, math.inf)
    drawn = Blocks(np.arange(len(below), dtype=np.float64), len(below), 0.5, _REPLICATES, _SEED)
    sums, totals = drawn.sums(above), drawn.sums(below)
    ratios: Floats = np.divide(sums, totals, out=np.full(len(sums), np.nan), where=totals > 0)
    undefined = np.isnan(ratios)
    return percentile_bounds(
        float(above.sum() / below.sum()),
        np.where(undefined, -math.inf, ratios),
        np.where(undefined, math.inf, ratios),
        expanded_alpha(alpha, len(below)),
    )


def _share(hits: Sequence[int], totals: Sequence[int], alpha: float) -> Interval:
    """Bound a share of positions by the wider of two: prompts drawn whole, and the exact binomial bound."""
    drawn, exact = _ratio(hits, totals, alpha), proportion(sum(hits), sum(totals), alpha)
    return Interval(exact.value, min(drawn.low, exact.low), max(drawn.high, exact.high))
