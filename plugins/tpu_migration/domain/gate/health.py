"""Declare a measurement void: the client lagged, or an engine was disturbed while it was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tpu_migration.domain.gate.model import ArmEvents, Check, ClientHealth, Outcome
from tpu_migration.domain.gate.policy import Policy
from tpu_migration.domain.gate.sections import Void
from tpu_migration.domain.gate.statistics import proportion


def client_health(limits: Void, clients: Mapping[str, ClientHealth | None]) -> Check:
    """Void if a load generator lagged, sent late or sent too little, or if that was not measured."""
    problems = []
    worst = 0.0
    for side, client in clients.items():
        if client is None:
            problems.append(f"{side} client: its health was not measured")
            continue
        problems += [f"{side} client: {reason}" for reason in client.void_reasons]
        problems += [f"{side} client: {problem}" for problem in _client_problems(limits, client)]
        lag = client.loop_lag_p99_ms
        worst = max(worst, lag if lag is not None and math.isfinite(lag) else 0.0)
    text = "; ".join(problems) or f"load generator kept its schedule (loop lag p99 {worst:.1f} ms)"
    outcome: Outcome = "void" if problems else "pass"
    return Check("client_health", outcome, worst, (None, None), limits.loop_lag_p99_ms, "ms", text)


def _client_problems(limits: Void, client: ClientHealth) -> list[str]:
    found = []
    for title, value, limit in (
        ("loop lag p99", client.loop_lag_p99_ms, limits.loop_lag_p99_ms),
        ("schedule delay p99", client.schedule_delay_p99_ms, limits.schedule_delay_p99_ms),
    ):
        if limit is None:
            continue
        if value is None or not math.isfinite(value):
            found.append(f"{title} was not measured")
        elif value > limit:
            found.append(f"{title} {value:.1f} ms > {limit:g} ms")
    least, rate = limits.achieved_rate_min, client.achieved_rate_ratio
    if least is not None:
        if rate is None or not math.isfinite(rate):
            found.append("achieved rate was not measured")
        elif rate < least:
            found.append(f"achieved rate {100 * rate:.1f} % < {100 * least:g} % of the schedule")
    return found


def over_slo(policy: Policy, requests: int, slow: int) -> str:
    """Say by how much live users are over the TTFT limit beyond doubt, or nothing.

    The policy allows `1 - quantile` of them to be slower; an exact bound at 95 % keeps one slow answer in fifty
    from ending a measurement.
    """
    if policy.slo is None:
        return ""
    share = proportion(min(slow, requests), requests, 0.05)
    allowed = 1 - policy.slo.quantile
    if not share.low > allowed:
        return ""
    return (
        f"live users are over their SLO: {slow} of {requests} waited longer than {policy.slo.ttft_limit_ms:g} ms for "
        f"the first token, {100 * allowed:.3g} % may"
    )


def arm_health(arms: Mapping[str, ArmEvents | None]) -> Check:
    """Void if an engine recompiled, restarted or preempted during the window, or if nobody watched."""
    problems = []
    total = 0
    for side, events in arms.items():
        if events is None:
            problems.append(f"{side} engines: not watched during the window")
            continue
        for kind in ("recompiles", "restarts", "preemptions"):
            count = getattr(events, kind)
            if count is None:
                problems.append(f"{side} engines: {kind} not watched during the window")
            elif count != 0:
                total += count
                problems.append(f"{side} engines: {count} {kind} during the window")
    text = "; ".join(problems) or "no recompile, restart or preemption during the window"
    outcome: Outcome = "void" if problems else "pass"
    return Check("arm_health", outcome, total, (None, None), 0, "events", text)
