"""Decide: void if the measurement is broken, else fail if any check fails, pass only if all pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tpu_migration.domain.gate import checks, economics, quality
from tpu_migration.domain.gate.arms import Arm, arm, unusable
from tpu_migration.domain.gate.health import arm_health, client_health
from tpu_migration.domain.gate.model import Check, Observations, Outcome, RequestResult, Verdict
from tpu_migration.domain.gate.policy import Policy
from tpu_migration.domain.gate.statistics import POCOCK_ALPHA

# The first of these that any check has is the verdict's; intersection-union: no correction for many checks.
_PRECEDENCE: tuple[Outcome, ...] = ("void", "fail", "inconclusive", "pass")
_SENTENCES = 3  # what a person reads at a glance; every check has its own beside it


def judge(
    policy: Policy,
    baseline: Sequence[RequestResult],
    candidate: Sequence[RequestResult],
    *,
    observations: Observations,
    look: int = 1,
) -> Verdict:
    """Decide on all evidence so far; see `tpu_migration.domain.gate.judge`."""
    if not 1 <= look <= policy.looks:
        raise ValueError(f"look {look} of policy {policy.name}: it has {policy.looks}")
    for side, results in (("baseline", baseline), ("candidate", candidate)):
        problem = unusable(results)
        if problem:
            void = Check("evidence", "void", None, (None, None), None, "requests", f"{side} {problem}")
            return _verdict(policy, (void,), baseline, candidate, look)
    alpha = POCOCK_ALPHA[policy.confidence][policy.looks - 1]
    made = [_evidence(policy, len(baseline), len(candidate)), *_health(policy, observations)]
    if candidate:
        new = arm(candidate, policy.bootstrap, 1)
        old = arm(baseline, policy.bootstrap, 0) if baseline else None
        made += _measured(policy, old, new, alpha)
    if policy.capacity and policy.goodput:
        made.append(economics.capacity(policy.capacity, policy.goodput, observations, alpha))
    if policy.cost:
        made.append(economics.cost_ratio(policy.cost, observations))
    if policy.quality:
        made += quality.checks(policy.quality, observations.quality, alpha, observations.needed_features)
    return _verdict(policy, tuple(made), baseline, candidate, look)


def stopped(policy: Policy, why: str) -> Verdict:
    """Return the verdict of a measurement that was ended for the users' sake: nothing was decided."""
    check = Check("live_users", "inconclusive", None, (None, None), None, "requests", why)
    return Verdict("inconclusive", (check,), policy.name, policy.hash, f"INCONCLUSIVE: the probe was stopped: {why}")


def _evidence(policy: Policy, baseline: int, candidate: int) -> Check:
    """Require a least number of requests; the exact bounds may ask for more."""
    wanted = policy.requests
    short = []
    if candidate < wanted.candidate_min:
        short.append(f"candidate has {candidate} requests of at least {wanted.candidate_min}")
    if policy.ratio and baseline < wanted.baseline_min:
        short.append(f"baseline has {baseline} requests of at least {wanted.baseline_min}")
    text = "; ".join(short) or f"{candidate} candidate and {baseline} baseline requests"
    outcome: Outcome = "inconclusive" if short else "pass"
    return Check("evidence", outcome, candidate, (None, None), wanted.candidate_min, "requests", text)


def _health(policy: Policy, seen: Observations) -> list[Check]:
    if policy.void is None:
        return []
    clients = {"candidate": seen.candidate_client}
    events = {"candidate": seen.candidate_events}
    if policy.ratio:  # else nothing of the baseline is compared
        clients["baseline"] = seen.baseline_client
        events["baseline"] = seen.baseline_events
    made = [client_health(policy.void, clients)]
    if policy.void.arm_events:
        made.append(arm_health(events))
    return made


def _measured(policy: Policy, baseline: Arm | None, candidate: Arm, alpha: float) -> list[Check]:
    made = []
    if policy.slo:
        made += [checks.latency(policy.slo, metric, candidate, alpha) for metric in ("ttft", "tpot")]
    if policy.ratio and baseline:
        for metric in ("ttft", "tpot", "e2e"):
            if getattr(policy.ratio, f"{metric}_limit") is not None:
                made.append(checks.latency_ratio(policy.ratio, metric, baseline, candidate, alpha))
    if policy.goodput and policy.slo:
        made.append(checks.goodput(policy.goodput, policy.slo, candidate, alpha))
    if policy.errors:
        made.append(checks.errors(policy.errors, candidate, alpha))
    return made


def _verdict(
    policy: Policy,
    made: tuple[Check, ...],
    baseline: Sequence[RequestResult],
    candidate: Sequence[RequestResult],
    look: int,
) -> Verdict:
    evidence = f"candidate n={len(candidate)}, baseline n={len(baseline)}, look {look} of {policy.looks}"
    verdict = verdict_of(policy, made, evidence)
    if verdict.outcome != "inconclusive":
        return verdict
    then = "extend the run" if look < policy.looks else "that was the last look: hold"
    return replace(verdict, sentence=f"{verdict.sentence}; {then}")


def verdict_of(policy: Policy, made: tuple[Check, ...], evidence: str) -> Verdict:
    """Sum checks up: the worst outcome of all, and a sentence with the first of those that made it."""
    outcome = next(kind for kind in _PRECEDENCE if any(check.outcome == kind for check in made))
    if outcome == "pass":
        sentence = f"PASS: all {len(made)} checks are inside their limits ({evidence})"
    else:
        texts = [check.sentence for check in made if check.outcome == outcome]
        more = f"; and {len(texts) - _SENTENCES} more" if len(texts) > _SENTENCES else ""
        sentence = f"{outcome.upper()}: {'; '.join(texts[:_SENTENCES])}{more}"
    return Verdict(outcome, made, policy.name, policy.hash, sentence)
