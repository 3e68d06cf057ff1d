"""What the gate lets through, what it stops, and what it refuses to decide."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpu_migration.domain.gate import (
    ArmCost,
    ArmEvents,
    ClientHealth,
    Observations,
    RatePoint,
    RequestResult,
    Verdict,
    conforming_tokens_per_s,
    judge,
    load_policy,
    rate_point,
)
from tpu_migration.domain.gate.parity import FeatureParity, Parity, PromptParity

POLICIES = Path(__file__).parents[2] / "include" / "policies"
HEALTHY = ClientHealth(loop_lag_p99_ms=2.0, schedule_delay_p99_ms=2.0, achieved_rate_ratio=0.995)
QUIET = ArmEvents(recompiles=0, restarts=0, preemptions=0)
RANK = {"pass": 0, "inconclusive": 1, "fail": 2}


def policy(name):
    return load_policy((POLICIES / f"{name}.yaml").read_text())


def arm(n, *, seed=0, tpot_ms=20.0, ttft_ms=120.0, rate=5.0, failed=0, tokens=32, spread=0.15):
    """Draw a run whose times scatter as a healthy server's do."""
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(1 / rate, n))
    broken = set(rng.choice(n, failed, replace=False).tolist())
    out = []
    for i in range(n):
        tpot, ttft = rng.lognormal(math.log(tpot_ms), spread) / 1e3, rng.lognormal(math.log(ttft_ms), 0.3) / 1e3
        bad = i in broken
        out.append(
            RequestResult(
                id=f"r{i}",
                scheduled_s=float(at[i]),
                sent_s=float(at[i]) + 0.001,
                ttft_s=None if bad else float(ttft),
                tpot_s=None if bad else float(tpot),
                e2e_s=None if bad else float(ttft + tpot * (tokens - 1)),
                prompt_tokens=64,
                output_tokens=0 if bad else tokens,
                ok=not bad,
                error="http 503" if bad else None,
                finish_reason=None if bad else "length",
            )
        )
    return out


ALIKE = Parity(
    tuple(PromptParity(str(i), (1e-5,) * 64, (True,) * 64, (1e-5,) * 64, (True,) * 64, 64, 64) for i in range(64)),
    features=(FeatureParity("seed", "honoured", "honoured"),),
)


def seen(**changes):
    """Return observations of a demo that went well."""
    good = Observations(
        baseline_client=HEALTHY,
        candidate_client=HEALTHY,
        baseline_events=QUIET,
        candidate_events=QUIET,
        peak_rps=4.0,
        sweep=(RatePoint(4.8, 250, 250),),
        baseline_cost=ArmCost(11.0, 160.0),
        candidate_cost=ArmCost(9.6, 160.0),
        quality=ALIKE,
    )
    return dataclasses.replace(good, **changes)


def check(verdict, name):
    return next(c for c in verdict.checks if c.name == name)


DEMO = policy("demo")
SIMPLE = DEMO.without("capacity", "cost")


def test_an_equal_tpu_passes_the_demo_with_its_numbers():
    verdict = judge(DEMO, arm(60, seed=1), arm(250, seed=2), observations=seen())
    assert verdict.outcome == "pass", verdict.sentence
    assert {c.name for c in verdict.checks} == {
        "evidence", "client_health", "arm_health", "ttft_p95", "tpot_p95", "ttft_p95_ratio", "tpot_p95_ratio",
        "e2e_p95_ratio", "goodput", "errors", "capacity", "cost_ratio",
    }  # fmt: skip
    assert verdict.policy_hash == DEMO.hash
    assert "n=250" in verdict.sentence


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("old", "new"), [(20, 20), (20, 40), (40, 40)])
def test_an_equal_tpu_passes_the_demo_even_while_the_machine_is_busy(seed, old, new):
    baseline = arm(60, seed=seed, tpot_ms=old, spread=0.2)
    candidate = arm(250, seed=seed + 50, tpot_ms=new, ttft_ms=300, spread=0.2, failed=1)
    verdict = judge(SIMPLE, baseline, candidate, observations=seen())
    if new == 2 * old:  # only the measured arm was disturbed: the ratio may be undecided, it must not fail
        assert verdict.outcome != "fail", verdict.sentence
    else:
        assert verdict.outcome == "pass", verdict.sentence


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("baseline_ms", [20, 40])
def test_a_tpu_four_times_slower_fails_the_demo(seed, baseline_ms):
    slow = arm(250, seed=seed, tpot_ms=80 if baseline_ms == 20 else 100)
    verdict = judge(DEMO, arm(60, seed=seed + 9, tpot_ms=baseline_ms), slow, observations=seen())
    assert verdict.outcome == "fail"
    assert check(verdict, "tpot_p95").outcome == "fail"
    assert "> limit 70 ms" in verdict.sentence
    assert "n=250" in verdict.sentence


def test_an_equal_tpu_passes_chat_at_the_first_look():
    points = tuple(RatePoint(rate, 800, 796) for rate in (2.0, 4.0, 5.0, 6.0))
    verdict = judge(
        policy("chat"), arm(2000, seed=1, spread=0.05), arm(2000, seed=2, spread=0.05, failed=3),
        observations=seen(sweep=points, candidate_cost=ArmCost(9.6, 170.0, 168.0, 172.0)),
    )  # fmt: skip
    assert verdict.outcome == "pass", verdict.sentence


def test_a_tpu_30_per_cent_slower_fails_chat_by_its_ratios_alone():
    verdict = judge(
        policy("chat").without("capacity", "cost"),
        arm(2000, seed=1, spread=0.05),
        arm(2000, seed=2, tpot_ms=26, spread=0.05),
        observations=seen(),
    )
    assert verdict.outcome == "fail"
    assert check(verdict, "tpot_p95_ratio").outcome == "fail"
    assert check(verdict, "tpot_p99").outcome == "pass"


def test_a_ratio_at_its_margin_is_not_decided():
    verdict = judge(
        policy("chat").without("capacity", "cost"), arm(2000, seed=1), arm(2000, seed=2, tpot_ms=23),
        observations=seen(),
    )  # fmt: skip
    assert verdict.outcome == "inconclusive"
    assert verdict.sentence.endswith("extend the run")


def test_the_last_look_that_decides_nothing_holds():
    few = arm(200, seed=2)
    chat = policy("chat").without("capacity", "cost")
    verdict = judge(chat, arm(200, seed=1), few, observations=seen(), look=3)
    assert verdict.outcome == "inconclusive"
    assert verdict.sentence.endswith("hold")
    with pytest.raises(ValueError, match="it has 3"):
        judge(chat, few, few, observations=seen(), look=4)


@pytest.mark.parametrize(("baseline", "candidate"), [(0, 250), (60, 0), (0, 0), (1, 1), (60, 1), (1, 250)])
def test_an_empty_arm_or_a_single_request_never_passes(baseline, candidate):
    verdict = judge(SIMPLE, arm(baseline), arm(candidate, seed=1), observations=seen())
    assert verdict.outcome == "inconclusive"


def test_an_empty_candidate_never_passes_any_policy():
    for path in POLICIES.glob("*.yaml"):
        verdict = judge(policy(path.stem), [], [], observations=seen())
        assert verdict.outcome != "pass", path.stem
        assert check(verdict, "evidence").outcome == "inconclusive"


def test_requests_that_all_arrive_at_once_say_nothing_of_the_scatter():
    together = [dataclasses.replace(r, scheduled_s=1.0, sent_s=1.0) for r in arm(250)]
    assert judge(SIMPLE, arm(60), together, observations=seen()).outcome == "inconclusive"


def test_too_few_requests_to_prove_the_error_rate_are_named():
    strict = dataclasses.replace(SIMPLE, errors=policy("chat").errors)
    verdict = judge(strict, arm(60), arm(250, seed=1), observations=seen())
    assert check(verdict, "errors").outcome == "inconclusive"
    assert "deciding needs 299 requests" in check(verdict, "errors").sentence


def test_a_candidate_that_answers_nothing_fails():
    verdict = judge(SIMPLE, arm(60), arm(250, failed=250), observations=seen())
    assert verdict.outcome == "fail"
    assert check(verdict, "errors").outcome == "fail"
    assert check(verdict, "ttft_p95").value is None


def test_a_baseline_that_answers_nothing_makes_no_candidate_look_good():
    verdict = judge(SIMPLE, arm(60, failed=60), arm(250, seed=1), observations=seen())
    assert check(verdict, "tpot_p95_ratio").outcome == "inconclusive"
    assert verdict.outcome == "inconclusive"


def test_an_aborted_answer_that_calls_itself_good_counts_as_failed():
    candidate = [dataclasses.replace(r, finish_reason="abort") for r in arm(250)]
    assert check(judge(SIMPLE, arm(60), candidate, observations=seen()), "errors").value == 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *itertools.product(("scheduled_s", "sent_s", "ttft_s", "tpot_s", "e2e_s"), (math.nan, math.inf, -1.0)),
        *itertools.product(("ttft_s", "tpot_s", "e2e_s"), (None,)),
    ],
)
@pytest.mark.parametrize("side", ["baseline", "candidate"])
def test_a_nan_anywhere_voids_the_run(field, value, side):
    arms = {"baseline": arm(60), "candidate": arm(250, seed=1)}
    arms[side][7] = dataclasses.replace(arms[side][7], **{field: value})
    verdict = judge(SIMPLE, arms["baseline"], arms["candidate"], observations=seen())
    assert verdict.outcome == "void"
    assert "r7" in verdict.sentence


def test_evidence_that_is_counted_twice_voids_the_run():
    candidate = arm(125, seed=1)
    assert judge(SIMPLE, arm(60), candidate * 2, observations=seen()).outcome == "void"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"candidate_client": None}, "candidate client: its health was not measured"),
        ({"baseline_client": None}, "baseline client"),
        ({"candidate_client": dataclasses.replace(HEALTHY, loop_lag_p99_ms=26.0)}, "26.0 ms > 25 ms"),
        ({"candidate_client": dataclasses.replace(HEALTHY, loop_lag_p99_ms=None)}, "not measured"),
        ({"candidate_client": dataclasses.replace(HEALTHY, loop_lag_p99_ms=math.nan)}, "not measured"),
        ({"baseline_client": dataclasses.replace(HEALTHY, schedule_delay_p99_ms=61.0)}, "61.0 ms > 60 ms"),
        ({"candidate_client": dataclasses.replace(HEALTHY, achieved_rate_ratio=0.90)}, "90.0 % < 95 %"),
        ({"candidate_client": dataclasses.replace(HEALTHY, void_reasons=("interrupted",))}, "interrupted"),
        ({"candidate_events": None}, "not watched"),
        ({"candidate_events": ArmEvents(1, 0, 0)}, "1 recompiles"),
        ({"candidate_events": ArmEvents(0, 1, 0)}, "1 restarts"),
        ({"baseline_events": ArmEvents(0, 0, 2)}, "2 preemptions"),
        ({"baseline_events": ArmEvents(0, None, 0)}, "restarts not watched"),
    ],
)
def test_a_disturbed_measurement_is_void_whatever_it_measured(change, said):
    for candidate in (arm(250, seed=1), arm(250, seed=1, tpot_ms=400)):
        verdict = judge(SIMPLE, arm(60), candidate, observations=seen(**change))
        assert verdict.outcome == "void"
        assert said in verdict.sentence


def test_the_rescue_policy_needs_nothing_of_a_dead_tpu():
    only = Observations(candidate_client=HEALTHY)
    rescue = policy("rescue")
    assert judge(rescue, [], arm(500, seed=1), observations=only).outcome == "pass"
    assert judge(rescue, [], arm(500, seed=1, failed=100), observations=only).outcome == "fail"


@pytest.mark.parametrize(
    ("points", "outcome"),
    [
        ([(2, 500, 500), (4, 500, 500), (5, 500, 499), (6, 500, 400)], "pass"),
        ([(2, 500, 500), (4, 500, 500), (4.5, 500, 300), (5, 500, 500)], "fail"),
        ([(2, 500, 500), (4, 500, 500), (4.5, 500, 500), (4.8, 500, 200)], "fail"),
        ([(2, 500, 500), (4, 500, 500), (5, 500, 475), (6, 500, 300)], "inconclusive"),
        ([(2, 500, 500), (4, 500, 500), (5, 500, 500)], "inconclusive"),
        ([(2, 5, 5), (4, 5, 5), (5, 5, 5), (6, 5, 5)], "inconclusive"),
        ([(2, 500, 500), (4, 500, 501), (5, 500, 500), (6, 500, 500)], "inconclusive"),
        ([(2, 500, 500), (4, 500, 500), (math.nan, 500, 500), (6, 500, 500)], "inconclusive"),
        ([], "inconclusive"),
    ],
)
def test_capacity_is_the_highest_proven_rate_with_no_disproven_one_below(points, outcome):
    chat = policy("chat").without("cost")
    verdict = judge(chat, [], [], observations=seen(sweep=tuple(RatePoint(*point) for point in points)))
    assert check(verdict, "capacity").outcome == outcome


def test_capacity_without_a_peak_is_not_decided():
    for peak in (None, 0.0, math.nan):
        verdict = judge(DEMO, arm(60), arm(250, seed=1), observations=seen(peak_rps=peak))
        assert verdict.outcome == "inconclusive"


@pytest.mark.parametrize(
    ("candidate", "outcome"),
    [
        (ArmCost(9.6, 160.0), "pass"),
        (ArmCost(9.6, 160.0, 130.0, 180.0), "inconclusive"),
        (ArmCost(11.0, 150.0), "fail"),
        (ArmCost(9.6, 0.0), "fail"),
        (ArmCost(math.nan, 160.0), "inconclusive"),
        (ArmCost(9.6, math.nan), "inconclusive"),
        (ArmCost(0.0, 160.0), "inconclusive"),
        (None, "inconclusive"),
    ],
)
def test_cost_is_dollars_a_conforming_token_over_the_widest_interval(candidate, outcome):
    verdict = judge(DEMO, arm(60), arm(250, seed=1), observations=seen(candidate_cost=candidate))
    assert check(verdict, "cost_ratio").outcome == outcome
    assert verdict.outcome == outcome


def test_throughput_counts_conforming_tokens_of_the_steady_window():
    value, low, high = conforming_tokens_per_s(DEMO, arm(500, rate=5.0, tokens=32))
    assert low <= value <= high
    assert value == pytest.approx(5 * 32, rel=0.15)
    assert conforming_tokens_per_s(DEMO, arm(500, tpot_ms=400))[0] == 0.0
    assert rate_point(DEMO, 5.0, arm(100, failed=10)) == RatePoint(5.0, 100, 90)


def test_a_verdict_survives_json():
    for candidate in (arm(250, seed=1), arm(250, failed=250), []):
        verdict = judge(DEMO, arm(60), candidate, observations=seen())
        text = json.dumps(verdict.to_dict(), allow_nan=False)
        assert Verdict.from_dict(json.loads(text)) == verdict
    with pytest.raises(ValueError, match="unknown outcome"):
        Verdict.from_dict({**verdict.to_dict(), "outcome": "passed"})


def test_the_same_evidence_gets_the_same_verdict():
    results = arm(60), arm(250, seed=1)
    assert judge(DEMO, *results, observations=seen()) == judge(DEMO, *results, observations=seen())


def test_two_arms_of_8000_requests_are_judged_within_three_seconds_of_this_thread():
    arms = arm(8000, seed=1), arm(8000, seed=2)
    chat = policy("chat")
    judge(chat, arms[0][:100], arms[1][:100], observations=seen())  # imports
    started = time.thread_time()
    judge(chat, *arms, observations=seen())
    assert time.thread_time() - started < 3.0


worsenings = st.lists(
    st.tuples(st.integers(0, 249), st.sampled_from(["ttft_s", "tpot_s", "e2e_s", "fail"]), st.floats(1.0, 200.0)),
    min_size=1,
    max_size=120,
)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.sampled_from([20.0, 45.0, 60.0, 68.0]), worsenings, st.sampled_from([1, 32]))
def test_a_worse_candidate_never_gets_a_better_outcome(seed, tpot_ms, changes, tokens):
    fewer = dataclasses.replace(SIMPLE, bootstrap=dataclasses.replace(SIMPLE.bootstrap, replicates=300))
    baseline = arm(60, seed=99)
    better = arm(250, seed=seed, tpot_ms=tpot_ms, failed=seed)
    better = [dataclasses.replace(r, output_tokens=min(r.output_tokens, tokens)) if i % 9 == 0 else r
              for i, r in enumerate(better)]  # fmt: skip
    worse = list(better)
    for index, what, factor in changes:
        r = worse[index]
        if what == "fail" or not r.ok:
            worse[index] = dataclasses.replace(r, ok=False, ttft_s=None, tpot_s=None, e2e_s=None, error="x")
        else:
            slow = dataclasses.replace(r, **{what: getattr(r, what) * factor})
            worse[index] = dataclasses.replace(slow, e2e_s=max(slow.e2e_s, slow.ttft_s))
    before = judge(fewer, baseline, better, observations=seen())
    after = judge(fewer, baseline, worse, observations=seen())
    assert RANK[after.outcome] >= RANK[before.outcome]
    names = {c.name: c for c in before.checks}
    assert all(RANK[c.outcome] >= RANK[names[c.name].outcome] for c in after.checks)
