"""Evidence that is missing, broken or empty never lets users move, whatever else it says."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gate_judge import POLICIES, arm, policy, seen

from tpu_migration.domain.gate import ArmCost, ArmEvents, ClientHealth, Observations, RatePoint, judge

TIMES = ("scheduled_s", "sent_s", "ttft_s", "tpot_s", "e2e_s")
NAMES = sorted(path.stem for path in POLICIES.glob("*.yaml"))
SWEEP = tuple(RatePoint(rate, 800, 799) for rate in (2.8, 4.0, 4.8, 6.0))
COSTS = {"baseline_cost": ArmCost(16.0, 160.0, 160.0, 160.0), "candidate_cost": ArmCost(9.6, 160.0, 160.0, 160.0)}
GOOD = seen(sweep=SWEEP, **COSTS)


def arms(name):
    """Return a baseline and a candidate that pass the policy."""
    n = 250 if name == "demo" else 2000
    return arm(60 if name == "demo" else n, seed=1, spread=0.05), arm(n, seed=2, spread=0.05)


ARMS = {name: arms(name) for name in NAMES}


def outcome(name, baseline, candidate, observations=GOOD):
    return judge(policy(name), baseline, candidate, observations=observations).outcome


@pytest.mark.parametrize("name", NAMES)
def test_whole_evidence_of_an_equal_candidate_passes_so_that_the_other_tests_mean_something(name):
    assert outcome(name, *ARMS[name]) == "pass"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [0, 1])
def test_an_empty_arm_or_one_request_never_passes(name, n):
    baseline, candidate = ARMS[name]
    assert outcome(name, baseline, candidate[:n]) != "pass"
    if policy(name).ratio:
        assert outcome(name, baseline[:n], candidate) != "pass"


@pytest.mark.parametrize("name", NAMES)
def test_an_arm_of_nothing_but_errors_never_passes(name):
    baseline, candidate = ARMS[name]
    dead = arm(len(candidate), failed=len(candidate))
    assert outcome(name, baseline, dead) == "fail"
    assert outcome(name, dead, dead) != "pass"
    if policy(name).ratio:
        assert outcome(name, dead[: len(baseline)], candidate) != "pass"


FIELDS = [field.name for field in dataclasses.fields(Observations) if field.name != "needed_features"]


@pytest.mark.parametrize("name", ["chat", "interactive"])  # which use all that is observed
@pytest.mark.parametrize("field", FIELDS)
def test_each_observation_that_is_missing_keeps_the_gate_shut(name, field):
    missing = dataclasses.replace(GOOD, **{field: () if field == "sweep" else None})
    assert outcome(name, *ARMS[name], missing) != "pass"


def holes():
    """List each number of each observation."""
    for kind, fields in (
        (ClientHealth, ("loop_lag_p99_ms", "schedule_delay_p99_ms", "achieved_rate_ratio")),
        (ArmEvents, ("recompiles", "restarts", "preemptions")),
        (ArmCost, ("usd_per_hour", "tokens_per_s")),
    ):
        for side in FIELDS:
            if isinstance(getattr(GOOD, side), kind):
                # A cost's numbers are never None by their type.
                values = (math.nan,) if kind is ArmCost else (None, math.nan)
                yield from ((side, field, value) for field in fields for value in values)


@pytest.mark.parametrize(("side", "field", "value"), list(holes()))
def test_each_number_that_is_missing_or_nan_keeps_the_gate_shut(side, field, value):
    broken = dataclasses.replace(GOOD, **{side: dataclasses.replace(getattr(GOOD, side), **{field: value})})
    assert outcome("chat", *ARMS["chat"], broken) != "pass"


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_nan_or_an_impossible_time_anywhere_never_passes(data):
    name = data.draw(st.sampled_from(["demo", "chat"]))
    sides = [list(side) for side in ARMS[name]]
    side = data.draw(st.sampled_from(sides))
    index = data.draw(st.integers(0, len(side) - 1))
    value = data.draw(st.sampled_from([math.nan, math.inf, -0.5]))
    side[index] = dataclasses.replace(side[index], **{data.draw(st.sampled_from(TIMES)): value})
    assert outcome(name, *sides) == "void"


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_clock_that_steps_never_passes(data):
    """A step apart leaves too few blocks; one inside a request makes it impossible, or slow."""
    name = data.draw(st.sampled_from(["demo", "chat"]))
    sides = [list(each) for each in ARMS[name]]
    side = data.draw(st.sampled_from(sides))
    at = data.draw(st.integers(1, len(side) - 1))
    step = data.draw(st.sampled_from([3600.0, 86_400.0, 1.7e9])) * 10
    apart = data.draw(st.booleans())
    if apart:
        side[at:] = [
            dataclasses.replace(r, scheduled_s=r.scheduled_s + step, sent_s=r.sent_s + step) for r in side[at:]
        ]
    else:
        side[at] = dataclasses.replace(side[at], scheduled_s=side[at].scheduled_s + step)
    assert outcome(name, *sides) != "pass"


@pytest.mark.parametrize("change", [{"sent_s": 0.0}, {"e2e_s": 0.01}])
def test_an_effect_before_its_cause_voids_the_run(change):
    baseline, candidate = (list(side) for side in ARMS["demo"])
    candidate[100] = dataclasses.replace(candidate[100], **change)
    assert outcome("demo", baseline, candidate) == "void"
