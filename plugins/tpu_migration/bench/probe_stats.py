"""Count what the prober saw, an arm at a time; ages come from a monotonic clock that is injected."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tpu_migration.bench.summary import quantile

_TPOTS_KEPT = 32
_LEAST_TPOT_S = 0.001


@dataclass(frozen=True)
class Probe:
    """One finished probe; `truncated` means that the answer began and was cut."""

    ok: bool
    truncated: bool = False
    error: str | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    seconds: float = 0.0
    long: bool = False


class ArmStats:
    """The counters of one arm, cumulative since the start; truncated probes are among the failed."""

    def __init__(self, clock: Callable[[], float], window_s: float) -> None:
        self._clock = clock
        self._window_s = window_s
        self._recent: deque[tuple[float, float]] = deque()
        self._tpots_s: deque[float] = deque(maxlen=_TPOTS_KEPT)
        self._in_flight: dict[int, float] = {}
        self._started = 0
        self._ok = self._failed = self._truncated = self._consecutive = 0
        self._long = {"started": 0, "ok": 0, "failed": 0}
        self._long_seconds: float | None = None
        self._last_ok: float | None = None
        self._last_failure: float | None = None
        self._last_error: str | None = None

    def begin(self, *, long: bool = False) -> int:
        """Note that a probe was sent; returns the number to finish it with."""
        self._started += 1
        self._in_flight[self._started] = self._clock()
        self._long["started"] += long
        return self._started

    def finish(self, number: int, probe: Probe) -> None:
        """Note how a probe ended."""
        now = self._clock()
        del self._in_flight[number]
        if probe.ok:
            self._ok += 1
            self._consecutive = 0
            self._last_ok = now
            if probe.tpot_s is not None:
                # A proxy that gathers chunks makes it 0; that must not ask for an endless answer.
                self._tpots_s.append(max(probe.tpot_s, _LEAST_TPOT_S))
        else:
            self._failed += 1
            self._truncated += probe.truncated
            self._consecutive += 1
            self._last_failure, self._last_error = now, probe.error
        if probe.long:
            self._long["ok" if probe.ok else "failed"] += 1
            self._long_seconds = probe.seconds
        ttft_s = probe.ttft_s if probe.ok and probe.ttft_s is not None else math.inf
        self._recent.append((now, ttft_s))
        self._trim(now)

    def tpot_s(self) -> float | None:
        """Return the median time a token of the recent answers, or None before there is one."""
        return quantile(self._tpots_s, 0.5)

    def snapshot(self) -> dict[str, Any]:
        """Return the counters as JSON values; an arm that never answered has `last_ok_s_ago` null.

        `ttft_p99_s` counts a failure as infinite, which is null; `recent` tells that from silence.
        """
        now = self._clock()
        self._trim(now)
        p99 = quantile([ttft for _, ttft in self._recent], 0.99)
        failed = sum(math.isinf(ttft) for _, ttft in self._recent)
        oldest = min(self._in_flight.values(), default=None)
        return {
            "ok": self._ok,
            "failed": self._failed,
            "truncated": self._truncated,
            "consecutive_failures": self._consecutive,
            "last_ok_s_ago": _ago(now, self._last_ok),
            "last_failure_s_ago": _ago(now, self._last_failure),
            "last_error": self._last_error,
            "ttft_p99_s": round(p99, 6) if p99 is not None and math.isfinite(p99) else None,
            "recent": {"window_s": self._window_s, "ok": len(self._recent) - failed, "failed": failed},
            "in_flight": len(self._in_flight),
            "oldest_in_flight_s": _ago(now, oldest),
            "long": {**self._long, "last_seconds": self._long_seconds},
        }

    def _trim(self, now: float) -> None:
        while self._recent and now - self._recent[0][0] > self._window_s:
            self._recent.popleft()


def _ago(now: float, then: float | None) -> float | None:
    return None if then is None else round(now - then, 3)
