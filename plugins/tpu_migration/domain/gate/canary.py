"""Judge a canary: what serves users against the policy's absolute limits, and against the day when it passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tpu_migration.domain.gate import checks, quality, verdicts
from tpu_migration.domain.gate.arms import Metric, arm, unusable
from tpu_migration.domain.gate.decide import missing, ms, per_cent
from tpu_migration.domain.gate.model import Check, ClientHealth, Observations, RequestResult, Verdict
from tpu_migration.domain.gate.parity import Parity
from tpu_migration.domain.gate.policy import Policy
from tpu_migration.domain.gate.sections import Ratio, Requests, Slo
from tpu_migration.domain.gate.statistics import POCOCK_ALPHA

_METRICS: tuple[Metric, ...] = ("ttft", "tpot")  # E2E follows from both, and from lengths


def canary_policy(policy: Policy) -> Policy:
    """Return the part of a policy that so few requests beside users can decide, in a single look.

    The peak is not driven again, so there is no capacity and no cost a token; answers are compared apart
    (`judge_answers`). What engines do beside users (a preemption, a compile) is told as a finding and voids nothing.
    """
    fewest = policy.requests.candidate_min
    requests = Requests(baseline=1, candidate=fewest, cap=fewest, baseline_min=1, candidate_min=fewest)
    void = replace(policy.void, arm_events=False) if policy.void else None
    return replace(policy.without("ratio", "capacity", "cost", "quality"), looks=1, requests=requests, void=void)


def judge_canary(
    policy: Policy, passed: Mapping[str, Any], results: Sequence[RequestResult], client: ClientHealth
) -> Verdict:
    """Decide; see `tpu_migration.domain.gate.judge_canary`."""
    own = canary_policy(policy)
    absolute = verdicts.judge(own, (), results, observations=Observations(candidate_client=client))
    made = absolute.checks
    if policy.ratio and results and not unusable(results):
        made = (*made, *_against_pass(policy, policy.ratio, passed, results))
    return verdicts.verdict_of(own, made, f"n={len(results)}")


def judge_answers(policy: Policy, parity: Parity, prompts: int) -> tuple[Check, ...]:
    """Hold the answers to so many prompts to the policy's limits on quality; see `domain.gate.judge_answers`."""
    if policy.quality is None:
        return ()
    own = replace(policy.quality, prompts=prompts)
    made = quality.checks(own, parity, POCOCK_ALPHA[policy.confidence][0])
    return tuple(check for check in made if check.name != "quality_features")  # no odd request beside users


def _against_pass(
    policy: Policy, ratio: Ratio, passed: Mapping[str, Any], results: Sequence[RequestResult]
) -> list[Check]:
    """Hold a quantile to a multiple of what it was at the pass: the margins that users do not notice."""
    seen, alpha = arm(results, policy.bootstrap, 1), POCOCK_ALPHA[policy.confidence][0]
    made = []
    for metric in _METRICS:
        factor, floor = getattr(ratio, f"{metric}_limit"), getattr(ratio, f"{metric}_floor_ms")
        if factor is None:
            continue
        name = f"{metric}_p{per_cent(ratio.quantile)}_since_pass"
        then = _quantile(passed.get(f"{metric}_ms") or (), ratio.quantile)
        if then is None:
            made.append(missing(name, None, "ms", f"{metric.upper()} since the pass: the record has none of the pass"))
            continue
        limit = factor * max(then, floor)
        slo = Slo(quantile=ratio.quantile, ttft_limit_ms=limit, tpot_limit_ms=limit)
        check = checks.latency(slo, metric, seen, alpha)
        made.append(
            replace(check, name=name, sentence=f"{check.sentence}; at the pass {ms(then)}, × {factor:g} allowed")
        )
    return made


def _quantile(distribution: Sequence[float], q: float) -> float | None:
    """Read a quantile off a stored distribution of equal steps from the least to the greatest."""
    return float(distribution[round(q * (len(distribution) - 1))]) if distribution else None
