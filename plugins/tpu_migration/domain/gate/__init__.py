"""Judge a candidate against a baseline: requests and observations in, a frozen verdict out. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from tpu_migration.domain.gate.model import (
    ArmCost,
    ArmEvents,
    Check,
    ClientHealth,
    Observations,
    Outcome,
    RatePoint,
    RequestResult,
    Verdict,
)
from tpu_migration.domain.gate.policy import Policy, PolicyError, load_policy

__all__ = [
    "ArmCost",
    "ArmEvents",
    "Check",
    "ClientHealth",
    "Observations",
    "Outcome",
    "Policy",
    "PolicyError",
    "RatePoint",
    "RequestResult",
    "Verdict",
    "conforming_tokens_per_s",
    "judge",
    "load_policy",
    "rate_point",
]


def judge(
    policy: Policy,
    baseline: Sequence[RequestResult],
    candidate: Sequence[RequestResult],
    *,
    observations: Observations,
    look: int = 1,
) -> Verdict:
    """Decide whether the candidate may serve the baseline's users: pass, fail, inconclusive or void.

    `look` is 1 at the first decision and counts up as requests are added, to at most `policy.looks`;
    pass all requests gathered so far. Raises ValueError on a look that the policy does not have.
    """
    from tpu_migration.domain.gate.verdicts import judge as decide

    return decide(policy, baseline, candidate, observations=observations, look=look)


def rate_point(policy: Policy, rate_rps: float, results: Sequence[RequestResult]) -> RatePoint:
    """Sum up a run at one rate for the capacity check; raises ValueError if the policy has no SLO."""
    from tpu_migration.domain.gate.economics import good_requests

    return RatePoint(rate_rps, len(results), good_requests(policy, results))


def conforming_tokens_per_s(
    policy: Policy, results: Sequence[RequestResult]
) -> tuple[float, float | None, float | None]:
    """Return tokens a second of conforming requests in the steady window, and its bounds (None: unbounded).

    What ArmCost wants; only of a run at the SLO load: a probe's tokens say nothing of an arm's throughput.
    """
    from tpu_migration.domain.gate.economics import throughput

    return throughput(policy, results)
