"""Pause between tries at something that does not answer: longer each time, and never in step with others."""

from __future__ import annotations

from random import Random

_FIRST_S = 0.25
_DOUBLINGS = 10  # it may fail for hours


class Backoff:
    """Draw pauses up to `longest_s` seconds: half of each is fixed, half is drawn (equal jitter).

    The same `seed` draws the same pauses, so that a run can be told apart from others and repeated.
    """

    def __init__(self, seed: str, longest_s: float) -> None:
        self._seed, self._longest_s = seed, longest_s
        self._random: Random | None = None  # most work meets no failure, and a generator is not free
        self._failures = 0

    def succeeded(self) -> None:
        """Begin with a short pause again."""
        self._failures = 0

    def pause_s(self) -> float:
        """Return how long to wait after one more failure in a row."""
        self._random = self._random or Random(self._seed)
        self._failures += 1
        whole_s = min(self._longest_s, _FIRST_S * float(2 ** min(self._failures, _DOUBLINGS)))
        return whole_s * (0.5 + 0.5 * self._random.random())
