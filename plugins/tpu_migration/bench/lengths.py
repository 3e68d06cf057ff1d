"""Draw prompt and output lengths, arrivals and prompts; everything follows from the seed."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# One event loop follows 11,000 chunks a second on an idle core; half of that leaves room for what else runs there.
_TOKENS_PER_S = 5000.0
_MOST_LOOPS = 8

# Short everyday words: with a leading space, each is one token in the vocabularies of current models.
_VOCABULARY = """
apple bank bird blue boat bread bridge cake car chair cloud coat coin cold corn cow cup dark desk dish
dog door dust eight farm fast fire fish flag floor flour forest frog game garden gate glass gold grass
green hat hill honey horse ice iron island jar key king lake lamp leaf lemon lion map market milk mirror
moon mouse music nest night nose ocean orange paper peach pen pepper piano pink pipe pocket queen rain
red rice ring river road roof rope rose salt sand seed sheep ship shirt shoe silver six snow soap song
spoon star stone storm street sugar summer table tea ten tiger tower train tree valley violin wall window
winter wolf wood yellow
"""
_WORDS = tuple(_VOCABULARY.split())


class LengthError(ValueError):
    """Report a length distribution that cannot be read; the message shows the forms there are."""


@dataclass(frozen=True)
class Lengths:
    """A distribution of token counts: histogram bins (low, high, weight), or a log-normal."""

    text: str
    bins: tuple[tuple[int, int, float], ...] = ()
    mean: float = 0.0
    sigma: float = 0.0
    cap: int = 0

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """Read `256`, `uniform:LOW:HIGH`, `lognormal:MEAN:SIGMA:CAP` or `bins:LOW-HIGH=WEIGHT,…`.

        `bins` is what vLLM's own length histograms give. Raises LengthError.
        """
        kind, _, rest = text.partition(":")
        try:
            if not rest:
                return cls(text, bins=_checked([(int(kind), int(kind), 1.0)]))
            if kind == "uniform":
                low, high = rest.split(":")
                return cls(text, bins=_checked([(int(low), int(high), 1.0)]))
            if kind == "bins":
                return cls(text, bins=_checked([_bin(part) for part in rest.split(",")]))
            if kind == "lognormal":
                mean, sigma, cap = rest.split(":")
                if float(mean) >= 1 and 0 < float(sigma) <= 3 and int(cap) >= float(mean):
                    return cls(text, mean=float(mean), sigma=float(sigma), cap=int(cap))
        except ValueError:
            pass  # said below, with the forms
        raise LengthError(
            f"{text!r} is no length: write 256, uniform:64:512, lognormal:256:0.6:2048 (mean, sigma, cap)"
            " or bins:1-64=3,65-128=5 (tokens=weight)"
        )

    @classmethod
    def of_histogram(cls, buckets: Mapping[float, float], longest: int) -> Lengths | None:
        """Make the distribution that a cumulative histogram tells, no length above `longest`; None of an empty one.

        Within a bucket every length is as likely; what lies beyond the last bound is as long as allowed.
        """
        bins, low, before = [], 1, 0.0
        for bound, total in sorted(buckets.items()):
            high = longest if bound == math.inf else min(longest, int(bound))
            if total > before and bound >= 1:
                bins.append(f"{min(low, high)}-{high}={total - before:g}")
            low, before = min(longest, high + 1), max(before, total)
        return cls.parse(f"bins:{','.join(bins)}") if bins else None

    def average(self) -> float:
        """Return the mean length, for a log-normal that of the uncapped one."""
        if not self.bins:
            return self.mean
        weights = sum(weight for _, _, weight in self.bins)
        return sum((low + high) / 2 * weight for low, high, weight in self.bins) / weights

    def draw(self, rng: random.Random) -> int:
        """Draw one length, at least 1."""
        if self.bins:
            low, high, _ = rng.choices(self.bins, weights=[weight for _, _, weight in self.bins])[0]
            return rng.randint(low, high)
        # mean of a log-normal = exp(mu + sigma^2 / 2)
        value = rng.lognormvariate(math.log(self.mean) - self.sigma**2 / 2, self.sigma)
        return min(self.cap, max(1, round(value)))


def _bin(part: str) -> tuple[int, int, float]:
    span, _, weight = part.partition("=")
    low, _, high = span.partition("-")
    return int(low), int(high or low), float(weight or "1")


def _checked(bins: list[tuple[int, int, float]]) -> tuple[tuple[int, int, float], ...]:
    for low, high, weight in bins:
        if not (1 <= low <= high <= 1_000_000 and 0 <= weight < math.inf):
            raise ValueError
    if not sum(weight for _, _, weight in bins) > 0:
        raise ValueError
    return tuple(bins)


@dataclass(frozen=True, slots=True)
class Planned:
    """One request to send: when, and how long."""

    index: int
    at_s: float
    prompt_tokens: int
    output_tokens: int


def schedule(count: int, rate_rps: float, seed: int, prompt: Lengths, output: Lengths) -> list[Planned]:
    """Draw `count` Poisson arrivals at `rate_rps`; a rate of 0 puts them all at 0, for a closed loop."""
    arrivals, sizes = random.Random(f"arrivals {seed}"), random.Random(f"lengths {seed}")
    at_s = 0.0
    planned = []
    for index in range(count):
        planned.append(Planned(index, at_s, prompt.draw(sizes), output.draw(sizes)))
        at_s += arrivals.expovariate(rate_rps) if rate_rps > 0 else 0.0
    return planned


def loops_for(rate_rps: float, output: Lengths) -> int:
    """Return how many event loops, each on a core of its own, so many tokens a second need."""
    return max(1, min(_MOST_LOOPS, math.ceil(rate_rps * output.average() / _TOKENS_PER_S)))


def fingerprint(planned: Sequence[Planned]) -> str:
    """Return a hash of the schedule: equal on both arms, or they were not given the same work."""
    text = "".join(f"{p.index} {p.at_s:.6f} {p.prompt_tokens} {p.output_tokens}\n" for p in planned)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompt_text(seed: int, index: int, tokens: int) -> str:
    """Write a prompt of about so many tokens; no two share a prefix, lest the prefix cache answer for it.

    The same seed gives the same prompts: never send a seed twice to one server and call it a measurement.
    """
    rng = random.Random(f"prompt {seed} {index}")
    return " ".join(rng.choices(_WORDS, k=tokens))
