"""Define what the gate looks at and what it answers: requests, observations, checks, the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tpu_migration.domain.gate.parity import Parity

Outcome = Literal["pass", "fail", "inconclusive", "void"]
_ROUNDING_S = 2e-6  # a result file has microseconds

OUTCOMES: tuple[Outcome, ...] = ("pass", "fail", "inconclusive", "void")


@dataclass(frozen=True, slots=True)
class RequestResult:
    """One request of a benchmark; the fields and their names are the contract of `tpu-migration bench`.

    `scheduled_s` and `sent_s` count from the run's start; TTFT and E2E from the *scheduled* arrival,
    so that a client that falls behind cannot hide the wait. None where there is no value: a request
    that failed before its first token, or TPOT of an answer of a single token.
    """

    id: str
    scheduled_s: float
    sent_s: float
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    prompt_tokens: int | None
    output_tokens: int
    ok: bool
    error: str | None = None
    finish_reason: str | None = None

    @property
    def succeeded(self) -> bool:
        """Tell whether the answer came whole; an aborted one ends cleanly and is cut short all the same."""
        return self.ok and self.finish_reason != "abort"

    def malformed(self) -> str | None:
        """Say what makes this record unusable as evidence, or None.

        A NaN, a negative time, or a good answer without its timings: a broken tool, not a slow server.
        """
        if not (_time(self.scheduled_s) and _time(self.sent_s)):
            return "scheduled_s and sent_s must be finite and not negative"
        if self.sent_s < self.scheduled_s - _ROUNDING_S:
            return "sent before it was due: the client's clock stepped"
        if not self.ok:
            return None
        if self.output_tokens < 1:
            return "ok without a token"
        if not (_time(self.ttft_s) and _time(self.e2e_s)):
            return "ok without a finite ttft_s and e2e_s"
        if self.output_tokens > 1 and not _time(self.tpot_s):
            return "ok, two tokens or more, without a finite tpot_s"
        if (self.e2e_s or 0.0) < (self.ttft_s or 0.0) - _ROUNDING_S:
            return "the last token came before the first: the client's clock stepped"
        return None


def _time(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value >= 0


@dataclass(frozen=True)
class ClientHealth:
    """How well the load generator kept its own schedule; a None was not measured."""

    loop_lag_p99_ms: float | None
    schedule_delay_p99_ms: float | None
    achieved_rate_ratio: float | None
    void_reasons: tuple[str, ...] = ()  # what the load generator itself declared


@dataclass(frozen=True)
class ArmEvents:
    """What happened to an arm's engines during the window; a None was not observed."""

    recompiles: int | None
    restarts: int | None
    preemptions: int | None


@dataclass(frozen=True)
class ArmCost:
    """What an arm costs and delivers: whole machines, and tokens of conforming requests at the SLO load.

    Give low and high (see `conforming_tokens_per_s`) where the throughput is itself a measurement.
    """

    usd_per_hour: float
    tokens_per_s: float
    tokens_per_s_low: float | None = None
    tokens_per_s_high: float | None = None


@dataclass(frozen=True)
class RatePoint:
    """One rate of a capacity sweep over the ready replicas; good requests met every SLO."""

    rate_rps: float
    scheduled: int
    good: int


@dataclass(frozen=True)
class Observations:
    """Everything the judge needs besides the two lists of requests. What is None was not observed."""

    baseline_client: ClientHealth | None = None
    candidate_client: ClientHealth | None = None
    baseline_events: ArmEvents | None = None
    candidate_events: ArmEvents | None = None
    peak_rps: float | None = None
    sweep: tuple[RatePoint, ...] = ()
    baseline_cost: ArmCost | None = None
    candidate_cost: ArmCost | None = None
    quality: Parity | None = None
    needed_features: tuple[str, ...] = ()  # of requests, that the users' clients rely on


@dataclass(frozen=True)
class Check:
    """One check of a verdict. A None in `value` or at an end of `interval` is unbounded or unknown."""

    name: str
    outcome: Outcome
    value: float | None
    interval: tuple[float | None, float | None]
    limit: float | None
    unit: str
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Return the check as strict JSON values."""
        return {**asdict(self), "interval": list(self.interval)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Check:
        """Rebuild a check; raises ValueError on a foreign shape."""
        low, high = data["interval"]
        return cls(
            name=str(data["name"]),
            outcome=_outcome(data["outcome"]),
            value=data["value"],
            interval=(low, high),
            limit=data["limit"],
            unit=str(data["unit"]),
            sentence=str(data["sentence"]),
        )


@dataclass(frozen=True)
class Verdict:
    """The gate's answer: the outcome, every check with its numbers, and one sentence for people."""

    outcome: Outcome
    checks: tuple[Check, ...]
    policy_name: str
    policy_hash: str
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as strict JSON values (no NaN, no infinity)."""
        return {
            "outcome": self.outcome,
            "checks": [check.to_dict() for check in self.checks],
            "policy_name": self.policy_name,
            "policy_hash": self.policy_hash,
            "sentence": self.sentence,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verdict:
        """Rebuild a verdict; raises ValueError on an unknown outcome and KeyError on a missing field."""
        return cls(
            outcome=_outcome(data["outcome"]),
            checks=tuple(Check.from_dict(check) for check in data["checks"]),
            policy_name=str(data["policy_name"]),
            policy_hash=str(data["policy_hash"]),
            sentence=str(data["sentence"]),
        )


def _outcome(value: Any) -> Outcome:
    for known in OUTCOMES:
        if value == known:
            return known
    raise ValueError(f"unknown outcome {value!r}; known are {', '.join(OUTCOMES)}")
