"""Tell the time; injected, so that tests run hours of a migration in milliseconds."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What the stages, the lease and the guard ask for the time."""

    def now(self) -> float:
        """Return seconds since the Unix epoch, for what is written down."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never jump, for durations and deadlines."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def micro_time(unix_s: float) -> str:
    """Write a Kubernetes MicroTime; without its six digits a Lease is refused with 422."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def iso(unix_s: float) -> str:
    """Write a time as people read it, in UTC, to the second."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
