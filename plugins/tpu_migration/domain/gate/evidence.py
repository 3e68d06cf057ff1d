"""Condense what was measured into a few kilobytes of JSON: what the report draws. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tpu_migration.domain.gate.model import ArmCost, ArmEvents, Observations, RequestResult
from tpu_migration.domain.gate.policy import Policy

_QUANTILES = 40  # steps of a distribution
_SPANS = 20  # of a look, over time
_METRICS = (("ttft_s", "ttft_ms"), ("tpot_s", "tpot_ms"), ("e2e_s", "e2e_ms"))


def distributions(results: Sequence[RequestResult]) -> dict[str, Any]:
    """Return an arm's distributions in 41 quantiles of the good answers, milliseconds."""
    table: dict[str, Any] = {"requests": len(results), "failed": sum(not r.succeeded for r in results)}
    for field, name in _METRICS:
        values = sorted(v for r in results if r.succeeded and (v := getattr(r, field)) is not None)
        if values:
            last = len(values) - 1
            table[name] = [_ms(values[round(i / _QUANTILES * last)]) for i in range(_QUANTILES + 1)]
    return table


def over_time(results: Sequence[RequestResult]) -> list[list[float | None]]:
    """Return rows of [seconds from the look's start, p50 and p95 of TTFT in ms, failed requests]."""
    end = max((r.scheduled_s for r in results), default=0.0)
    spans: list[list[RequestResult]] = [[] for _ in range(_SPANS)]
    for r in results:
        spans[min(_SPANS - 1, int(_SPANS * r.scheduled_s / end)) if end > 0 else 0].append(r)
    rows: list[list[float | None]] = []
    for index, span in enumerate(spans):
        if span:
            times = sorted(r.ttft_s for r in span if r.succeeded and r.ttft_s is not None)
            at = round((index + 0.5) * end / _SPANS, 2)
            rows.append([at, _rank(times, 0.5), _rank(times, 0.95), len(span) - len(times)])
    return rows


def look_entry(
    name: str, baseline: Sequence[RequestResult], candidate: Sequence[RequestResult], events: Mapping[str, ArmEvents]
) -> dict[str, Any]:
    """Return what one look was like over time, and what happened to the engines in it."""
    counts = {
        f"{arm} {kind}": count
        for arm, each in events.items()
        for kind in ("recompiles", "restarts", "preemptions")
        if (count := getattr(each, kind)) != 0
    }
    return {
        "look": name,
        "seconds": round(max((r.scheduled_s + (r.e2e_s or 0.0) for r in (*baseline, *candidate)), default=0.0), 1),
        "baseline": over_time(baseline),
        "candidate": over_time(candidate),
        "events": counts,
    }


def rate_entry(
    rate_rps: float, results: Sequence[RequestResult], good: int, summary: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what one rate of the search gave."""
    return {
        "rate_rps": round(rate_rps, 4),
        "requests": len(results),
        "good": good,
        "output_tokens_per_s": summary.get("output_tokens_per_s"),
        "ttft_p99_ms": _rank(sorted(r.ttft_s for r in results if r.succeeded and r.ttft_s is not None), 0.99),
    }


def client_entry(block: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the load generator itself did in one block."""
    names = (
        "loop_lag_p99_ms",
        "schedule_delay_p99_ms",
        "achieved_rate_ratio",
        "peak_streams",
        "processes",
        "void_reasons",
    )
    return {"block": block, **{name: summary.get(name) for name in names}}


def limits(policy: Policy, peak_rps: float | None) -> dict[str, Any]:
    """Return the policy's lines to draw; None where it has none."""
    need = peak_rps * policy.capacity.headroom if policy.capacity and peak_rps else None
    return {
        "quantile": policy.slo.quantile if policy.slo else None,
        "ttft_ms": policy.slo.ttft_limit_ms if policy.slo else None,
        "tpot_ms": policy.slo.tpot_limit_ms if policy.slo else None,
        "goodput": policy.goodput.minimum if policy.goodput else None,
        "need_rps": need,
        "cost_ratio": policy.cost.ratio_limit if policy.cost else None,
    }


def costs(seen: Observations) -> dict[str, Any]:
    """Return each arm's price and dollars a million conforming tokens, as far as they are known."""

    def entry(cost: ArmCost) -> dict[str, Any]:
        known = cost.tokens_per_s > 0 and math.isfinite(cost.usd_per_hour)
        million = cost.usd_per_hour / (cost.tokens_per_s * 3600) * 1e6 if known else None
        return {"usd_per_hour": cost.usd_per_hour, "tokens_per_s": cost.tokens_per_s, "usd_per_million": million}

    arms = {"baseline": seen.baseline_cost, "candidate": seen.candidate_cost}
    return {name: entry(cost) for name, cost in arms.items() if cost is not None}


def _rank(ordered: Sequence[float], q: float) -> float | None:
    return _ms(ordered[max(0, math.ceil(q * len(ordered)) - 1)]) if ordered else None


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
