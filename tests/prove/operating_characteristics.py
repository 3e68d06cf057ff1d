"""Judge thousands of migrations whose truth is known, beside two plain rules on the same draws.

An arm's log times are noise of their own plus a state that all requests of the moment share (an
Ornstein-Uhlenbeck process: a queue, a batch, a neighbour), so that requests near each other are slow
together. The candidate is sent the live peak for as long as the design says, the baseline the few
per cent of a probe.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from tests.prove.ledger import Ledger
from tpu_migration.domain.gate import ClientHealth, Observations, Policy, RequestResult, compared, judge
from tpu_migration.resources import policy as policy_named

NAME = "operating_characteristics"
BLOCK = 25
MARGIN, TOLERANCE = 1.20, 0.25
PEAK_RPS, PROBE_RPS = 10.0, 2.0
TTFT_S, TTFT_SIGMA, TPOT_S, TPOT_SIGMA, TOKENS = 0.30, 0.5, 0.03, 0.1, 128
STEP_S = 0.1
Z95 = 1.6449  # the standard normal's 95th percentile
HEALTHY = ClientHealth(1.0, 1.0, 1.0)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One kind of migration; `limits` bounds the share of an outcome: (least, most)."""

    ratio: float  # candidate over baseline, p95 of TTFT
    requests: int  # at the first look; at most 8,000 at the third
    shared: float  # share of the variance of log times that the requests of a moment have in common
    lasts_s: float
    limits: Mapping[str, tuple[float, float]]
    tail: bool = False  # only the tail is worse: the median is the same, and the p95 ratio times as high

    @property
    def name(self) -> str:
        state = f"{self.shared:.0%} shared for {self.lasts_s:g} s" if self.shared else "independent"
        return f"p95 TTFT x{self.ratio:g}{' by its tail' if self.tail else ''}, {self.requests} an arm, {state}"


EQUAL = {"fail": (0.0, 0.01), "pass": (0.90, 1.0)}
# (share, seconds). The point at the end, half a block long, is a claim of safety alone.
STATES = ((0.0, 1.0), (0.3, 2.0))
POINTS = (
    *(Point(1.25, 1000, *state, {"pass": (0.0, 0.05)}) for state in STATES),
    *(Point(1.25, 4000, *state, {"pass": (0.0, 0.01)}) for state in STATES),
    *(Point(1.0, n, *state, EQUAL) for n in (1000, 4000) for state in STATES),
    Point(1.25, 1000, 0.3, 10.0, {"pass": (0.0, 0.05)}),
    Point(1.25, 1000, 0.3, 2.0, {"pass": (0.0, 0.05)}, tail=True),
    Point(1.25, 4000, 0.3, 2.0, {"pass": (0.0, 0.01)}, tail=True),
)


def prove(ledger: Ledger, runs: int) -> bool:
    """Judge what was not judged yet and print how often each rule passed and failed; True if all limits hold."""
    holds = True
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for point in POINTS:
            known = ledger.get(NAME)
            figures = known.get(point.name, {"runs": 0, "outcomes": {}})
            begun = figures["runs"]
            blocks = [range(first, min(first + BLOCK, runs)) for first in range(begun, runs, BLOCK)]
            outcomes = Counter(figures["outcomes"])
            for block, told in zip(blocks, pool.map(_play, [point] * len(blocks), blocks), strict=True):
                outcomes.update(told)
                figures = {"runs": block.stop, "outcomes": dict(outcomes)}
                ledger.put(NAME, {**known, point.name: figures})
            holds &= _tell(point, figures)
    return holds


def _tell(point: Point, figures: Mapping[str, Any]) -> bool:
    """Print one point's line and return whether its limits hold."""
    runs, outcomes = figures["runs"], figures["outcomes"]
    share = {name: count / runs for name, count in outcomes.items()}
    broken = [
        f"{outcome} {share.get(f'judge {outcome}', 0.0):.1%} is not within {low:.0%} and {high:.0%}"
        for outcome, (low, high) in point.limits.items()
        if not low <= share.get(f"judge {outcome}", 0.0) <= high
    ]
    rules = "; ".join(
        f"{rule} {share.get(f'{rule} pass', 0.0):.1%} pass {share.get(f'{rule} fail', 0.0):.1%} fail"
        for rule in ("judge", "threshold", "Mann-Whitney")
    )
    print(f"{point.name} ({runs} migrations): {rules}{''.join(f'; BROKEN: {each}' for each in broken)}", flush=True)
    return not broken


def _play(point: Point, seeds: range) -> dict[str, int]:
    policy = policy_named("chat").without("capacity", "cost", "quality")  # which no latency decides
    assert policy.void is not None
    policy = replace(policy, void=replace(policy.void, arm_events=False))
    return Counter(outcome for seed in seeds for outcome in _judge(policy, point, seed))


def _judge(policy: Policy, point: Point, seed: int) -> list[str]:
    """Take up to three looks at one migration; the plain rules know only one."""
    rng = np.random.default_rng(
        [seed, int(point.ratio * 100), point.requests, int(point.lasts_s), point.shared > 0, point.tail]
    )
    sizes = np.linspace(point.requests, min(policy.looks * point.requests, policy.requests.cap), policy.looks)
    baseline = _arm(rng, int(sizes[-1]), PROBE_RPS, point, 1.0)
    candidate = _arm(rng, int(sizes[-1]), _written_rps(policy, point.requests), point, point.ratio)
    seen = Observations(baseline_client=HEALTHY, candidate_client=HEALTHY)
    for look, size in enumerate(sizes.astype(int), 1):
        verdict = judge(policy, baseline[:size], candidate[:size], observations=seen, look=look)
        if verdict.outcome != "inconclusive":
            break
    theirs, ours = (np.array([r.ttft_s for r in side[: point.requests]]) for side in (baseline, candidate))
    told = {"threshold": threshold(theirs, ours), "Mann-Whitney": mann_whitney(theirs, ours)}
    return [f"judge {verdict.outcome}", *(f"{rule} {'pass' if passed else 'fail'}" for rule, passed in told.items())]


def _written_rps(policy: Policy, requests: int) -> float:
    """Return how many of the peak's requests a second the design writes down: its blocks last long enough."""
    asked = replace(policy, requests=replace(policy.requests, candidate=requests))
    ((_, block),) = compared(asked, PEAK_RPS, "1a")
    return block.rate_rps / block.write_every


def _arm(rng: np.random.Generator, n: int, rate: float, point: Point, factor: float) -> list[RequestResult]:
    at = np.cumsum(rng.exponential(1 / rate, n))
    keeps = math.exp(-STEP_S / point.lasts_s)
    steps = rng.standard_normal(int(at[-1] / STEP_S) + 1) * math.sqrt(1 - keeps**2)
    steps[0] /= math.sqrt(1 - keeps**2)
    state = lfilter([1.0], [1.0, -keeps], steps)[(at / STEP_S).astype(int)]

    def times(median_s: float, sigma: float) -> Floats:
        own = rng.standard_normal(n)
        return np.asarray(
            median_s * np.exp(sigma * (math.sqrt(point.shared) * state + math.sqrt(1 - point.shared) * own))
        )

    if point.tail:
        ttft = times(TTFT_S, TTFT_SIGMA + math.log(factor) / Z95)
    else:
        ttft = factor * times(TTFT_S, TTFT_SIGMA)
    tpot = times(TPOT_S, TPOT_SIGMA)
    rows = zip(at.tolist(), ttft.tolist(), tpot.tolist(), strict=True)
    return [
        RequestResult(str(i), t, t, first, each, first + each * (TOKENS - 1), 512, TOKENS, True, None, "length")
        for i, (t, first, each) in enumerate(rows)
    ]


def threshold(theirs: Floats, ours: Floats) -> bool:
    """Pass if the measured p95 is within the margin: what a dashboard's alert does."""
    return bool(np.quantile(ours, 0.95) <= MARGIN * np.quantile(theirs, 0.95))


def mann_whitney(theirs: Floats, ours: Floats) -> bool:
    """Pass unless the shift's 98 % interval lies beyond a tolerance of 0.25 of its estimate, as Kayenta judges."""
    m, n = len(ours), len(theirs)
    half = 2.326 * math.sqrt(m * n * (m + n + 1) / 12)
    shift, low = (_difference(np.sort(theirs), ours, m * n / 2 - below) for below in (0.0, half))
    return low <= TOLERANCE * abs(shift)


def _difference(theirs: Floats, ours: Floats, rank: float) -> float:
    """Return the difference ours - theirs of a rank among all pairs, by bisection: the pairs are millions."""
    low, high = float(ours.min() - theirs[-1]), float(ours.max() - theirs[0])
    for _ in range(40):
        middle = (low + high) / 2
        pairs = int((len(theirs) - np.searchsorted(theirs, ours - middle)).sum())
        low, high = (middle, high) if pairs < rank else (low, middle)
    return high
