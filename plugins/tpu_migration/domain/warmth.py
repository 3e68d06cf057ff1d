"""Decide when an engine is warm: which shapes it must have met, and whether two windows of them agree. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TOLERANCE = 0.05
# tpu_inference/runner/utils.py: the least sizes, which double up to the flags' limits.
_LEAST_TOKENS, _LEAST_REQUESTS = 16, 8
_MOST_TOKENS, _MOST_REQUESTS = 8192, 256  # where the log does not tell the sizes
# A TPU without FP8 and speculative decoding may keep a request twice as long as the GPU that was measured.
_SLOWER = 2.0
_FULL_STEPS = 2
_LONG_PROMPT = 4  # times the largest bucket: a longer one is cut into the same chunks


@dataclass(frozen=True)
class Mark:
    """What one engine had done when it was looked at; `stalls` are tokens that took over a second, None if not told."""

    programs: int
    seconds: float
    cache_hits: int
    stalls: float | None = None
    started: float | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Mark:
        """Read what `to_dict` made of it."""
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values for the record."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}


def compiled_between(before: Mark | None, after: Mark) -> int | None:
    """Return how many programs were compiled in between; None if it cannot be told.

    An engine that is new or was restarted, or a log that was rotated, begins its count anew.
    """
    if before is None or after.programs < before.programs or after.started != before.started:
        return None
    return after.programs - before.programs


def stalled_between(before: Mark, after: Mark) -> int | None:
    """Return how many tokens took over a second in between; None if the server does not tell."""
    if before.stalls is None or after.stalls is None:
        return None
    return round(after.stalls - before.stalls)


@dataclass(frozen=True)
class WarmUp:
    """What it took to get warm, as the record keeps it; counts are over all replicas, None where not known."""

    shapes: str
    lengths: str  # where the shapes' lengths are known from
    token_buckets: tuple[int, ...] = ()
    batch_buckets: tuple[int, ...] = ()
    passes: int = 0
    settled: bool = False  # the last two windows agree
    change: str = ""  # between them
    compiled_at_start: int = 0
    compiled_by_requests: int | None = None
    compile_s: float = 0.0
    cache_hits: int = 0
    stalls: int | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WarmUp:
        """Read what `to_dict` and JSON made of it; TypeError or KeyError on a foreign shape."""
        return cls(**{**data, **{key: tuple(data[key]) for key in ("token_buckets", "batch_buckets")}})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values for the record."""
        return asdict(self)


def padding_findings(warm_up: WarmUp, token_buckets: Sequence[int], batch_buckets: Sequence[int]) -> list[str]:
    """Say where an engine pads its steps to other sizes than it was warmed for; a log that does not tell is none."""
    pairs = (("tokens", warm_up.token_buckets, token_buckets), ("requests", warm_up.batch_buckets, batch_buckets))
    return [
        f"steps are padded to {', '.join(map(str, now))} {what}, and were to {', '.join(map(str, then))} when it was "
        "warmed up: users may meet shapes that nothing has driven"
        for what, then, now in pairs
        if then and now and tuple(then) != tuple(now)
    ]


# ------------------------------------------------------------------------------------ windows


@dataclass(frozen=True)
class Change:
    """How a latency changed from one window to the next, told by the shape whose change is the median of all."""

    what: str
    shape: str
    before_s: float
    after_s: float

    @property
    def size(self) -> float:
        """The change as a ratio's logarithm: the same up and down."""
        return abs(math.log(self.after_s / self.before_s))

    @property
    def agrees(self) -> bool:
        """Tell whether the two windows are within the tolerance."""
        return self.size <= math.log1p(TOLERANCE)

    def __str__(self) -> str:
        percent = 100 * (self.after_s / self.before_s - 1)
        before, after = self.before_s * 1000, self.after_s * 1000
        return f"p50 {self.what} {before:.3g} ms, then {after:.3g} ms ({percent:+.1f} %, at {self.shape})"


def typical_change(what: str, before: Mapping[str, float], after: Mapping[str, float]) -> Change | None:
    """Compare two windows: shape → its median latency in seconds; None without a shape that both measured.

    Shapes differ by orders of magnitude, and each has few requests. The median of the shapes' changes is
    moved neither by the longest shape nor by one that met a hiccup.
    """
    shared = [shape for shape in before if shape in after and before[shape] > 0 and after[shape] > 0]
    changes = sorted(
        (Change(what, shape, before[shape], after[shape]) for shape in shared),
        key=lambda change: (change.after_s / change.before_s, change.shape),
    )
    return changes[(len(changes) - 1) // 2] if changes else None


# ------------------------------------------------------------------------------------- shapes


@dataclass(frozen=True)
class Traffic:
    """What users send: ranges of prompt lengths (tokens), requests a second, and seconds that one stays."""

    prompts: tuple[tuple[int, int], ...]
    rate_rps: float
    stay_s: float

    def together(self, replicas: int) -> float:
        """Return how many requests a replica holds at a time, by Little's law, on a TPU that may be slower."""
        return self.rate_rps * self.stay_s * _SLOWER / replicas


def shapes(
    traffic: Traffic, replicas: int, token_buckets: Sequence[int] = (), batch_buckets: Sequence[int] = ()
) -> list[tuple[int, int]]:
    """Return the shapes to drive, (prompt tokens, requests at once): every bucket of lengths times every batch.

    The buckets are those that the engine says it pads to; else powers of two, as it makes them by default. Its
    programs are made for the padded tokens and requests of a step. Once the prompts of a shape fill several of
    the largest steps, longer ones make the same steps, and are left out at that width.
    """
    tokens = tuple(token_buckets) or tuple(_doubled(_LEAST_TOKENS, _MOST_TOKENS))
    batches = tuple(batch_buckets) or tuple(_doubled(_LEAST_REQUESTS, _MOST_REQUESTS))
    lengths = _lengths(traffic.prompts, tokens)
    found = []
    for width in _widths(traffic.together(replicas), batches):
        full = next((i for i, length in enumerate(lengths) if length * width >= _FULL_STEPS * tokens[-1]), len(lengths))
        found += [(length, width) for length in (lengths if width == 1 else lengths[: full + 1])]
    longest = max(high for _, high in traffic.prompts)
    if longest > tokens[-1]:
        found.append((min(longest, _LONG_PROMPT * tokens[-1]), 1))
    return found


def _widths(together: float, batches: Sequence[int]) -> list[int]:
    """Return how many requests to send at once: one, and as many as fill each batch that users may reach."""
    reached = batches[: sum(size < together for size in batches) + 1]
    return [1, *(reached[1:] or reached)]  # one request is padded to the smallest batch


def written(shapes: Iterable[tuple[int, int]]) -> str:
    """Write shapes as `tpu-migration bench --shapes` reads them."""
    return ",".join(f"{tokens}x{width}" for tokens, width in shapes)


def _doubled(least: int, most: int) -> Iterable[int]:
    while least <= most:
        yield least
        least *= 2


def _lengths(prompts: Sequence[tuple[int, int]], buckets: Sequence[int]) -> list[int]:
    """Return a prompt length for each bucket that some prompt falls into.

    A prompt beyond the largest bucket is cut into chunks, and what is left of it may fall into any. The middle
    of a bucket, so that what a tokenizer adds or drops moves no prompt into another one.
    """
    found, below = [], 0
    beyond = any(high > buckets[-1] for _, high in prompts)
    for size in buckets:
        if beyond or any(low <= size and high > below for low, high in prompts):
            found.append((below + size + 1) // 2)
        below = size
    return found
