"""Define the sections of a gate policy; each says itself what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, fields

BASELINES = ("probe", "active", "recorded")
LENGTHS = ("live", "fixed")


@dataclass(frozen=True)
class Requests:
    """How many requests to send at the first look and at most, and the fewest that may pass."""

    baseline: int = 2000  # at the first look, of the baseline
    candidate: int = 2000  # at the first look, of the candidate
    cap: int = 8000  # at most, over all looks
    baseline_min: int = 60  # fewer do not pass
    candidate_min: int = 300  # fewer do not pass

    def problems(self) -> list[str]:
        found = []
        if not 1 <= self.baseline_min <= self.baseline <= self.cap:
            found.append("requests: needs 1 <= baseline_min <= baseline <= cap")
        if not 1 <= self.candidate_min <= self.candidate <= self.cap:
            found.append("requests: needs 1 <= candidate_min <= candidate <= cap")
        return found

    def at(self, looks: int) -> list[str]:
        """Return what keeps so many looks from being taken whole."""
        if looks * max(self.baseline, self.candidate) > self.cap:
            return [f"requests.cap: must allow {looks} looks of {max(self.baseline, self.candidate)} requests"]
        return []


@dataclass(frozen=True)
class Load:
    """Where the baseline comes from, which shares of the live peak the candidate carries, how long requests are.

    The first share is the one that is compared with the baseline.
    """

    baseline: str = "probe"  # probe, active or recorded
    shares: tuple[float, ...] = (1.0, 0.7, 1.2)  # of the live peak
    lengths: str = "live"  # the source's own histograms; fixed: the plan's tokens

    def problems(self) -> list[str]:
        found = []
        if self.baseline not in BASELINES:
            found.append(f"load.baseline: must be one of {', '.join(BASELINES)}")
        if self.lengths not in LENGTHS:
            found.append(f"load.lengths: must be one of {', '.join(LENGTHS)}")
        if not self.shares or len(set(self.shares)) < len(self.shares) or not all(0 < s <= 10 for s in self.shares):
            found.append("load.shares: needs different shares of the peak, above 0 and at most 10")
        return found


@dataclass(frozen=True)
class Bootstrap:
    """Resampling by blocks of time: how often, at most how many blocks, how short at least, from which seed.

    A block must outlast what its requests share (a queue, a batch, a stall) by far, or the interval is too narrow.
    """

    replicates: int = 2000  # resamples
    blocks: int = 20  # at most so many
    block_s: float = 20.0  # each at least so long
    seed: int = 2026  # of the draws

    def problems(self) -> list[str]:
        found = []
        if not 200 <= self.replicates <= 10_000:
            found.append("bootstrap.replicates: must be within 200 and 10000")
        if not 10 <= self.blocks <= 200:
            found.append("bootstrap.blocks: must be within 10 and 200")
        if not 0 < self.block_s <= 600:
            found.append("bootstrap.block_s: must be above 0 and at most 600")
        if self.seed < 0:
            found.append("bootstrap.seed: must not be negative")
        return found


@dataclass(frozen=True)
class Slo:
    """Absolute limits at a quantile; also what a request must meet to count as good."""

    ttft_limit_ms: float  # time to the first token
    tpot_limit_ms: float  # time of each further token
    quantile: float = 0.99  # at which the limits hold

    def problems(self) -> list[str]:
        found = _positive("slo", ttft_limit_ms=self.ttft_limit_ms, tpot_limit_ms=self.tpot_limit_ms)
        return found + _fraction("slo", quantile=self.quantile)


@dataclass(frozen=True)
class Ratio:
    """Non-inferiority margins: candidate over baseline at a quantile; null leaves one out.

    Both sides are raised to the floor first: below it no user feels a difference.
    """

    ttft_limit: float | None = None  # of the time to the first token
    tpot_limit: float | None = None  # of the time of each further token
    e2e_limit: float | None = None  # of the whole answer's time
    quantile: float = 0.95  # at which they are compared
    ttft_floor_ms: float = 0.0  # shorter times count as this
    tpot_floor_ms: float = 0.0  # shorter times count as this
    e2e_floor_ms: float = 0.0  # shorter times count as this

    def problems(self) -> list[str]:
        limits = {name: getattr(self, name) for name in ("ttft_limit", "tpot_limit", "e2e_limit")}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        found = _positive("ratio", **given) + _fraction("ratio", quantile=self.quantile)
        if not given:
            found.append("ratio: sets no limit; give one or set ratio to null")
        if min(self.ttft_floor_ms, self.tpot_floor_ms, self.e2e_floor_ms) < 0:
            found.append("ratio: a floor must not be negative")
        return found


@dataclass(frozen=True)
class Capacity:
    """The rate at which every SLO still holds must be at least the live peak times the head-room."""

    headroom: float = 1.2  # share of the peak that must hold; one of `load.shares`
    min_rates: int = 4  # rates to measure at least

    def problems(self) -> list[str]:
        found = _positive("capacity", headroom=self.headroom)
        return found if self.min_rates >= 1 else [*found, "capacity.min_rates: must be at least 1"]


@dataclass(frozen=True)
class Goodput:
    """The share of scheduled requests that must meet every SLO."""

    minimum: float = 0.95  # of all scheduled requests

    def problems(self) -> list[str]:
        return _fraction("goodput", minimum=self.minimum)


@dataclass(frozen=True)
class Errors:
    """The share of requests that may fail."""

    limit: float = 0.01  # of all scheduled requests

    def problems(self) -> list[str]:
        return _fraction("errors", limit=self.limit)


@dataclass(frozen=True)
class Cost:
    """Dollars a conforming token, candidate over baseline."""

    ratio_limit: float = 0.90  # the target's dollars over the source's

    def problems(self) -> list[str]:
        return _positive("cost", ratio_limit=self.ratio_limit)


@dataclass(frozen=True)
class Quality:
    """How far the candidate's answers may be from the baseline's, and how many prompts tell.

    Each look draws `prompts` new ones and compares up to `tokens` positions of each answer; `top` tokens are
    compared at a position (vLLM gives 20 at most unless told otherwise).
    """

    kl_mean_limit: float = 0.01  # mean KL divergence, in nats
    kl_tail_limit: float = 0.1  # KL divergence at `kl_quantile`, in nats
    kl_quantile: float = 0.99  # at which `kl_tail_limit` holds
    top1_agreement: float = 0.97  # positions with the same likeliest token
    length_limit: float = 0.10  # change of the answers' mean length
    task_margin: float = 0.05  # of the user's tasks that may be lost
    prompts: int = 64  # questions a look
    tokens: int = 256  # positions compared of each answer
    top: int = 5  # tokens compared at a position

    @property
    def prompts_min(self) -> int:
        """The fewest prompts that may pass: some may fail to be compared."""
        return max(1, self.prompts * 9 // 10)

    def problems(self) -> list[str]:
        limits = {name: getattr(self, name) for name in ("kl_mean_limit", "kl_tail_limit")}
        shares = {
            name: getattr(self, name) for name in ("kl_quantile", "top1_agreement", "length_limit", "task_margin")
        }
        found = _positive("quality", **limits) + _fraction("quality", **shares)
        if not 8 <= self.prompts <= 512:
            found.append("quality.prompts: must be within 8 and 512")
        if not 8 <= self.tokens <= 512:
            found.append("quality.tokens: must be within 8 and 512; prompt and answer together stay below 1,024")
        if not 1 <= self.top <= 20:
            found.append("quality.top: must be within 1 and 20")
        return found


@dataclass(frozen=True)
class Void:
    """When a measurement says nothing about the server; null leaves one out."""

    loop_lag_p99_ms: float | None = 5.0  # of the load generator's event loop
    schedule_delay_p99_ms: float | None = 20.0  # how late requests were sent; 1 % of the TTFT limit
    achieved_rate_min: float | None = 0.98  # of the rate that was asked for
    arm_events: bool = True  # a recompile, restart or preemption in the window

    def problems(self) -> list[str]:
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "arm_events"}
        return _positive("void", **{name: value for name, value in given.items() if value is not None})


def _positive(section: str, **values: float) -> list[str]:
    return [f"{section}.{name}: must be above 0" for name, value in values.items() if not value > 0]


def _fraction(section: str, **values: float) -> list[str]:
    return [
        f"{section}.{name}: must be between 0 and 1, not {value}" for name, value in values.items() if not 0 < value < 1
    ]
