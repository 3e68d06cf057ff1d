"""Judge what is seen while users move: has the split followed, and is anybody hurt?

Pure: samples in, a breach or none out. Hard breaches count at once, soft ones after `soft_k`
samples in a row. No data is a breach after its grace; too little traffic only holds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from typing import Literal

_Z = 3.29  # two-sided 99.9 %: one false alarm in a thousand looks, and it only delays a step
_EDGE = 0.005  # at 0 and 100 % a request that was under way must not look like a split
_WINDOW_S = 10.0
_LATENCY_WINDOW_S = 30.0
PROBES_WINDOW_S = 60.0
_LONG_FAILED = 3
MIN_JUDGED = 10  # requests on the target before anything is said of it, good or bad
_Z_ONE_SIDED = 1.64  # 95 %: a share is too large when its lower bound is


@dataclass(frozen=True)
class PodSample:
    """One vLLM server's counters (cumulative) and gauges at one moment."""

    first_tokens: float
    running: float
    waiting: float
    aborted: float  # by the server, or ended by an error of its own
    finished: float
    started_at: float | None
    ttft_buckets: Mapping[float, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ArmSample:
    """One side at one moment. `own` counts this product's own requests to it, begun so far and under way."""

    ready: int
    pods: Mapping[str, PodSample | None]  # None: it did not answer
    own: float = 0.0
    own_in_flight: float = 0.0
    leaving: frozenset[str] = frozenset()  # of `pods`: those that end, as when an HPA takes what is not needed

    @property
    def in_flight(self) -> float | None:
        """Users' requests running or waiting; None if any pod did not answer."""
        if any(pod is None for pod in self.pods.values()):
            return None
        everybody = sum(pod.running + pod.waiting for pod in self.pods.values() if pod)
        return max(0.0, everybody - self.own_in_flight)


@dataclass(frozen=True)
class ProbeSample:
    """What the prober has seen through the Gateway's own address: on the users' route, and on the target's.

    Counts are since the prober began: `failed` on the users' route, `target_failed` on the target's own, `long_ok` and
    `long_failed` of the answers on the users' route that outlive a load balancer's timeout, about one a minute.
    """

    failed: int
    consecutive_failures: int
    last_ok_s_ago: float | None
    last_error: str = ""
    target_failed: int = 0
    target_last_error: str = ""
    long_ok: int = 0
    long_failed: int = 0


@dataclass(frozen=True)
class Sample:
    """Everything one look sees. `at` is monotonic seconds."""

    at: float
    source: ArmSample
    target: ArmSample
    probe: ProbeSample | None
    dead_sources: Mapping[str, str] = field(default_factory=dict)  # pod → why a real completion failed


@dataclass(frozen=True)
class Limits:
    """When a look becomes a breach."""

    ttft_limit_s: float
    slow_share: float = 0.05
    aborted_share: float = 0.05
    soft_k: int = 5
    missing_grace_s: float = 15.0
    probe_grace_s: float = 20.0
    failed_probes: int = 4  # within a minute; where one in a thousand fails by chance, about once a year of soaking


@dataclass(frozen=True)
class Split:
    """How requests were seen to divide over a window."""

    source: float
    target: float

    @property
    def total(self) -> float:
        return self.source + self.target

    def follows(self, percent: int, min_requests: int = 30) -> bool:
        """Tell whether the split fits the weight within a 99.9 % Wilson interval."""
        if self.total < min_requests or (percent > 0 and not self.target):
            return False  # no request on the target is no evidence that any can get there
        share = min(max(percent / 100, _EDGE), 1 - _EDGE)
        low, high = _wilson(self.target, self.total)
        return low <= share <= high

    @staticmethod
    def enough(percent: int, min_requests: int = 30) -> int:
        """Return how many requests must have come before none on the target means anything (95 %)."""
        return max(min_requests, math.ceil(300 / percent)) if percent else min_requests

    def __str__(self) -> str:
        share = 100 * self.target / self.total if self.total else 0.0
        return f"{self.target:.0f} of {self.total:.0f} requests ({share:.0f} %) reached the target"


def _wilson(hits: float, total: float, z: float = _Z) -> tuple[float, float]:
    """Return the Wilson score interval (Wilson 1927)."""
    share = hits / total
    z2 = z * z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    return centre - half, centre + half


class Watch:
    """Remember recent samples and say when something is wrong. Lost in a crash, and begun anew."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._samples: deque[Sample] = deque(maxlen=600)
        self._soft: dict[str, int] = {}
        self._silent_since: dict[str, float] = {}
        self._started: dict[str, float | None] = {}  # target replica → when its process began
        self._step: Sample | None = None  # the first sample of the step

    def begin_step(self) -> None:
        """Judge the target from here on: a new share has been written."""
        self._step = None
        self._soft = {}

    def judged(self) -> float:
        """Return how many requests on the target were judged since the step began."""
        if self._step is None or not self._samples:
            return 0.0
        return _starts(self._step.target, self._samples[-1].target)

    def add(self, sample: Sample, *, target_has_users: bool, source_replicas: int) -> str | None:
        """Take a sample and return the breach it shows, or None."""
        self._samples.append(sample)
        self._step = self._step or sample
        return (
            self._hard(sample, target_has_users, source_replicas)
            or self._missing(sample)
            or self._soft_breach(sample, target_has_users)
        )

    def failed_probes(self, way: Literal["failed", "target_failed"]) -> int:
        """Return how many probes failed over the last minute."""
        return failed_lately((each.at, getattr(each.probe, way)) for each in reversed(self._samples) if each.probe)

    def target_rps(self) -> float:
        """Return how many requests a second began on the target over the last ten seconds; 0 if nobody can tell."""
        newest = self._samples[-1] if self._samples else None
        recent = [each for each in self._samples if newest and newest.at - each.at <= _WINDOW_S]
        if newest is None or newest.at <= recent[0].at:
            return 0.0
        return _starts(recent[0].target, newest.target) / (newest.at - recent[0].at)

    def split(self, since: float, enough: int = 30) -> Split:
        """Return how requests divided since a moment: over the last ten seconds, or as long as `enough` take.

        A quiet workload needs more time for as many requests; the prober's own see to it that
        there always are some.
        """
        split = Split(0, 0)
        newest = self._samples[-1] if self._samples else None
        for oldest in reversed(self._samples):
            if newest is None or oldest.at < since:
                break
            if newest.at - oldest.at > _WINDOW_S and split.total >= enough:
                break
            split = Split(_starts(oldest.source, newest.source), _starts(oldest.target, newest.target))
        return split

    def _hard(self, sample: Sample, target_has_users: bool, source_replicas: int) -> str | None:
        if target_has_users and sample.target.ready == 0:
            return "the target has users and no ready endpoint"
        if sample.source.ready < source_replicas:
            return (
                f"the source has {sample.source.ready} ready endpoints of {source_replicas}: "
                "it could not take everybody back"
            )
        for dead, why in sample.dead_sources.items():
            return f"source replica {dead} is Ready but gives no completion: {why}"
        if sample.probe and sample.probe.consecutive_failures >= 2:
            return (
                f"{sample.probe.consecutive_failures} probes in a row failed at the Gateway's own address: "
                f"{sample.probe.last_error or 'no answer'}"
            )
        if failing := self._failing_probes(sample, target_has_users):
            return failing
        for name, pod in sample.target.pods.items():
            if pod and self._started.setdefault(name, pod.started_at) != pod.started_at:
                return f"target replica {name} restarted while it had users"
        return None

    def _failing_probes(self, sample: Sample, target_has_users: bool) -> str | None:
        """Some requests fail, and the next goes through: no two in a row need fail while one of five does."""
        if sample.probe is None:
            return None
        ways = [("the Gateway's own address", self.failed_probes("failed"), sample.probe.last_error)]
        if target_has_users:
            ways.append(("the target", self.failed_probes("target_failed"), sample.probe.target_last_error))
        for way, failed, error in ways:
            if failed >= self._limits.failed_probes:
                return f"{failed} probes of {way} failed within {PROBES_WINDOW_S:.0f} s: {error or 'no answer'}"
        first = next(each.probe for each in self._samples if each.probe)
        if first.long_ok and sample.probe.long_failed - first.long_failed >= _LONG_FAILED:
            cut = sample.probe.long_failed - first.long_failed
            return f"{cut} long answers failed at the Gateway's own address, where they had come through before"
        return None

    def _missing(self, sample: Sample) -> str | None:
        silent = {f"target replica {name}" for name, pod in sample.target.pods.items() if pod is None}
        staying = sample.source.pods.keys() - sample.source.leaving
        silent |= {f"source replica {name}" for name in staying if sample.source.pods[name] is None}
        if sample.probe is None or (sample.probe.last_ok_s_ago or 0) > self._limits.probe_grace_s:
            silent.add("the prober")
        self._silent_since = {what: self._silent_since.get(what, sample.at) for what in silent}
        for what, since in sorted(self._silent_since.items()):
            grace = self._limits.probe_grace_s if what == "the prober" else self._limits.missing_grace_s
            if sample.at - since > grace:
                return f"{what} has given no data for {sample.at - since:.0f} s"
        return None

    def _soft_breach(self, sample: Sample, target_has_users: bool) -> str | None:
        found = self._soft_findings(sample) if target_has_users else {}
        self._soft = {what: self._soft.get(what, 0) + 1 for what in found}
        for what, times in self._soft.items():
            if times >= self._limits.soft_k:
                return f"{found[what]} ({times} looks in a row)"
        return None

    def _soft_findings(self, sample: Sample) -> dict[str, str]:
        """Look at the last half minute, and, where the target gets little, at all since the step began."""
        begin = sample.at - _LATENCY_WINDOW_S
        recent = next(each for each in self._samples if each.at >= begin or each is sample)
        return {**self._slow_or_aborted(self._step or recent, sample), **self._slow_or_aborted(recent, sample)}

    def _slow_or_aborted(self, since: Sample, sample: Sample) -> dict[str, str]:
        found = {}
        limit_s, allowed = self._limits.ttft_limit_s, self._limits.slow_share
        total, slow = _slow(since.target, sample.target, limit_s)
        if _too_many(slow, total, allowed):
            found["ttft"] = (
                f"{slow:.0f} of {total:.0f} requests on the target waited more than {limit_s * 1000:.0f} ms for "
                f"their first token, more than {allowed:.0%}"
            )
        aborted, finished = _aborted(since.target, sample.target)
        theirs, of = _aborted(since.source, sample.source)
        usual = theirs / of if of else 0.0
        if _too_many(aborted, finished, self._limits.aborted_share + usual):
            found["aborted"] = (
                f"{aborted:.0f} of {finished:.0f} streams on the target were aborted ({aborted / finished:.0%}, "
                f"on the source {usual:.0%})"
            )
        return found


def failed_lately(counts: Iterable[tuple[float, int]]) -> int:
    """Return how many probes failed over the last minute.

    `counts` are moments in seconds, the newest first, with what the prober had counted by then; one that was replaced
    counts from 0 again.
    """
    newest_first = iter(counts)
    newest = next(newest_first, None)
    if newest is None:
        return 0
    recent = takewhile(lambda each: newest[0] - each[0] <= PROBES_WINDOW_S, newest_first)
    seen = [newest[1], *(count for _, count in recent)]
    return sum(after if after < before else after - before for after, before in pairwise(seen))


def _too_many(bad: float, total: float, allowed: float) -> bool:
    """Tell whether a share is beyond what is allowed by more than chance would have it."""
    return total >= MIN_JUDGED and total >= bad > 0 and _wilson(bad, total, _Z_ONE_SIDED)[0] > allowed


def _starts(before: ArmSample, after: ArmSample) -> float:
    """Count requests that got their first token in between, this product's own left out."""
    total = 0.0
    for name, pod in after.pods.items():
        earlier = before.pods.get(name)
        if pod and earlier:
            total += max(0.0, pod.first_tokens - earlier.first_tokens)
    return max(0.0, total - (after.own - before.own))


def begun_between(before: ArmSample, after: ArmSample) -> float:
    """Count the users' requests that got their first token between two looks."""
    return _starts(before, after)


def _slow(before: ArmSample, after: ArmSample, limit_s: float) -> tuple[float, float]:
    """Count requests and those slower than the first histogram bound at or above the limit."""
    total = slow = 0.0
    for name, pod in after.pods.items():
        earlier = before.pods.get(name)
        if not pod or not earlier:
            continue
        bound = min((each for each in pod.ttft_buckets if each >= limit_s), default=math.inf)
        count = pod.first_tokens - earlier.first_tokens
        quick = pod.ttft_buckets.get(bound, pod.first_tokens) - earlier.ttft_buckets.get(bound, earlier.first_tokens)
        total += count
        slow += max(0.0, count - quick)
    return total, slow


def _aborted(before: ArmSample, after: ArmSample) -> tuple[float, float]:
    aborted = finished = 0.0
    for name, pod in after.pods.items():
        earlier = before.pods.get(name)
        if pod and earlier:
            aborted += pod.aborted - earlier.aborted
            finished += pod.finished - earlier.finished
    return aborted, finished
