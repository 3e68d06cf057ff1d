"""Judge a candidate against a baseline: requests and observations in, a frozen verdict out. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tpu_migration.domain.gate.design import Block, canary_block, compared, next_rate
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
from tpu_migration.domain.gate.parity import Parity
from tpu_migration.domain.gate.policy import Policy, PolicyError, load_policy

__all__ = [
    "ArmCost",
    "ArmEvents",
    "Block",
    "Check",
    "ClientHealth",
    "Observations",
    "Outcome",
    "Policy",
    "PolicyError",
    "RatePoint",
    "RequestResult",
    "Verdict",
    "canary_block",
    "compared",
    "conforming_tokens_per_s",
    "judge",
    "judge_answers",
    "judge_canary",
    "load_policy",
    "next_rate",
    "over_slo",
    "rate_point",
    "stopped",
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


def judge_canary(
    policy: Policy, passed: Mapping[str, Any], results: Sequence[RequestResult], client: ClientHealth
) -> Verdict:
    """Hold what serves users to the policy's absolute limits, and to what was measured when it passed the gate.

    `passed` are the distributions of the candidate that passed (`evidence.distributions`); empty: unknown.
    """
    from tpu_migration.domain.gate.canary import judge_canary as decide

    return decide(policy, passed, results, client)


def judge_answers(policy: Policy, parity: Parity, prompts: int) -> tuple[Check, ...]:
    """Hold the answers to so many prompts to the policy's limits on quality; none where it has none.

    So few decide little but a change that is beyond doubt: a check that is inconclusive proves nothing either way.
    """
    from tpu_migration.domain.gate.canary import judge_answers as decide

    return decide(policy, parity, prompts)


def over_slo(policy: Policy, requests: int, slow: int) -> str:
    """Say by how much live users are over the TTFT limit beyond doubt, or nothing."""
    from tpu_migration.domain.gate.health import over_slo as told

    return told(policy, requests, slow)


def stopped(policy: Policy, why: str) -> Verdict:
    """Return the verdict of a measurement that was ended for the users' sake: nothing was decided."""
    from tpu_migration.domain.gate.verdicts import stopped as verdict

    return verdict(policy, why)


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
