"""Sum up a run: quantiles, throughput, the client's own health, and whether all that is void."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tpu_migration.domain.gate import RequestResult

_TICK_S = 0.01


class LoopLag:
    """Measure how late the event loop runs its timers; a client that lags blames the server for it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._late_s = array("d")
        self._due = self._loop.time() + _TICK_S
        self._timer = self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        self._late_s.append(now - self._due)
        self._due = now + _TICK_S
        self._timer = self._loop.call_at(self._due, self._tick)

    def stop(self) -> float | None:
        """Stop measuring and return the p99 in ms, or None if not one tick was seen."""
        self._timer.cancel()
        late = quantile(self._late_s, 0.99)
        return None if late is None else late * 1000


@dataclass(frozen=True)
class Limits:
    """When the client's own behaviour voids a run."""

    loop_lag_ms: float
    schedule_delay_ms: float
    achieved_rate: float


def quantile(values: Iterable[float], q: float) -> float | None:
    """Return the smallest value with q of the values at or below it, or None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(round(q * len(ordered), 9)) - 1)] if ordered else None


def summarize(
    results: Sequence[RequestResult],
    *,
    open_loop: bool,
    loop_lag_p99_ms: float | None,
    interrupted: bool,
    planned: int,
    limits: Limits,
) -> dict[str, Any]:
    """Return the figures of a run; failures count as infinitely slow, which JSON writes as null."""
    failed = [r for r in results if not r.ok]
    delays = [r.sent_s - r.scheduled_s for r in results]
    delay = quantile(delays, 0.99) if open_loop else None
    achieved = _achieved(results) if open_loop else None
    summary: dict[str, Any] = {
        "requests": len(results),
        "planned": planned,
        "ok": len(results) - len(failed),
        "failed": len(failed),
        "truncated": sum((r.error or "").startswith("truncated") for r in failed),
        "errors": dict(Counter((r.error or "").partition(":")[0] for r in failed).most_common(8)),
        "prompt_tokens_mean": _mean([r.prompt_tokens for r in results if r.prompt_tokens is not None]),
        "output_tokens_mean": _mean([r.output_tokens for r in results if r.ok]),
        "output_tokens_per_s": _throughput(results),
        "loop_lag_p99_ms": _rounded(loop_lag_p99_ms),
        "schedule_delay_p99_ms": None if delay is None else _rounded(delay * 1000),
        "achieved_rate_ratio": _rounded(achieved),
    }
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        values = [getattr(r, metric) if r.ok else math.inf for r in results]
        defined = [value for value in values if value is not None]
        for name, q in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99)):
            summary[f"{metric[:-2]}_{name}_s"] = _rounded(quantile(defined, q))
    sent = [r.ttft_s - (r.sent_s - r.scheduled_s) for r in results if r.ok and r.ttft_s is not None]
    summary["ttft_from_send_p99_s"] = _rounded(quantile(sent, 0.99))
    reasons = _void_reasons(loop_lag_p99_ms, delay, achieved, open_loop, limits)
    if interrupted:
        reasons.append(f"interrupted after {len(results)} of {planned} requests")
    elif not results:
        reasons.append("not one request was planned")
    return {**summary, "void": bool(reasons), "void_reasons": reasons}


def _void_reasons(
    lag_ms: float | None, delay_s: float | None, achieved: float | None, open_loop: bool, limits: Limits
) -> list[str]:
    reasons = []
    if lag_ms is None:
        reasons.append("loop lag was not measured")
    elif lag_ms > limits.loop_lag_ms:
        reasons.append(f"loop lag p99 {lag_ms:.1f} ms > {limits.loop_lag_ms:g} ms")
    if open_loop and delay_s is not None and delay_s * 1000 > limits.schedule_delay_ms:
        reasons.append(f"schedule delay p99 {delay_s * 1000:.1f} ms > {limits.schedule_delay_ms:g} ms")
    if open_loop and achieved is not None and achieved < limits.achieved_rate:
        reasons.append(f"achieved rate {100 * achieved:.1f} % < {100 * limits.achieved_rate:g} % of the schedule")
    return reasons


def _achieved(results: Sequence[RequestResult]) -> float | None:
    """Return the rate sent over the rate scheduled: the schedule's own span, not the nominal rate's noise."""
    if not results:
        return None
    scheduled = max(r.scheduled_s for r in results) - min(r.scheduled_s for r in results)
    sent = max(r.sent_s for r in results) - min(r.sent_s for r in results)
    return min(1.0, scheduled / sent) if sent > 0 else 1.0


def _throughput(results: Sequence[RequestResult]) -> float | None:
    """Return output tokens a second that finished between one median answer in and the last arrival."""
    ends = [(r.scheduled_s + r.e2e_s, r.output_tokens) for r in results if r.ok and r.e2e_s is not None]
    if not ends:
        return None
    median = quantile([r.e2e_s for r in results if r.ok and r.e2e_s is not None], 0.5) or 0.0
    start = min(r.scheduled_s for r in results) + median
    end = max(r.scheduled_s for r in results)
    if end <= start:
        return None
    return _rounded(sum(tokens for at, tokens in ends if start <= at <= end) / (end - start))


def _mean(values: Sequence[int]) -> float | None:
    return _rounded(sum(values) / len(values)) if values else None


def _rounded(value: float | None) -> float | None:
    return round(value, 6) if value is not None and math.isfinite(value) else None
