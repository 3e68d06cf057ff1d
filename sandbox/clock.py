"""Tell the time, the real one or a virtual one."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What every part of the sandbox asks for the time."""

    def now(self) -> float:
        """Return seconds since the Unix epoch."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()


class VirtualClock:
    """A clock that moves only when it is told to: hours of a migration run in milliseconds."""

    def __init__(self, start: float = 1_795_305_600.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock forward by `seconds`; it never goes back."""
        if seconds < 0:
            raise ValueError(f"a clock cannot go back (asked for {seconds} s)")
        self._now += seconds
