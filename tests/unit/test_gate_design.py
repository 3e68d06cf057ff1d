"""Which blocks a measurement has follows from the policy, the peak and what was measured so far."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gate_judge import policy

from tpu_migration.domain.gate import PolicyError, RatePoint, compared, load_policy, next_rate, over_slo
from tpu_migration.domain.gate.design import probe_rate

CHAT = policy("chat")


def active(name="chat"):
    return dataclasses.replace(CHAT, load=dataclasses.replace(CHAT.load, baseline="active"))


def search(peak, holds, chosen=CHAT):
    """Play a search on a server whose rates hold or not; return the shares of the peak in order."""
    (group,) = compared(chosen, peak, "1a")
    points = [RatePoint(group[-1].rate_rps, 500, 500 if holds(group[-1].rate_rps / peak) else 0)]
    blocks = []
    while (block := next_rate(chosen, peak, "1a", points)) is not None:
        blocks.append(block)
        points.append(RatePoint(block.rate_rps, 500, 500 if holds(block.rate_rps / peak) else 100))
        assert len(points) < 20
    return [round(point.rate_rps / peak, 3) for point in points], blocks


def test_the_candidate_carries_the_peak_while_the_source_is_asked_for_a_few_per_cent_more():
    ((probe, load),) = compared(CHAT, 40.0, "1a")
    assert (probe.side, probe.rate_rps) == ("baseline", 2.0)
    assert (load.side, load.rate_rps) == ("candidate", 40.0)
    assert probe.seed == load.seed


def test_the_peak_is_measured_at_70_100_and_120_per_cent_and_a_fourth_rate_is_searched():
    assert search(10.0, lambda share: True)[0] == [1.0, 0.7, 1.2, 1.5]
    assert search(10.0, lambda share: share < 1.1)[0] == [1.0, 0.7, 1.2, 1.1]
    assert search(10.0, lambda share: share < 0.9)[0] == [1.0, 0.7, 1.2, 0.85]
    assert search(10.0, lambda share: False)[0] == [1.0, 0.7, 1.2, 0.35]


@given(st.floats(0.1, 5000.0), st.floats(0.05, 3.0), st.integers(4, 9))
def test_a_search_ends_and_never_measures_a_rate_twice(peak, capacity, rates):
    chosen = dataclasses.replace(CHAT, capacity=dataclasses.replace(CHAT.capacity, min_rates=rates))
    shares, blocks = search(peak, lambda share: share <= capacity, chosen)
    assert len(set(shares)) == len(shares) == rates
    assert all(share > 0 for share in shares)
    assert len({block.seed for block in blocks}) == len(blocks), "a prefix cache would answer"


def test_an_active_baseline_is_measured_in_the_order_a_b_b_a_with_the_same_lists():
    groups = compared(active(), 10.0, "2a")
    assert [[block.name for block in group] for group in groups] == [["a1-2a"], ["b1-2a"], ["b2-2a"], ["a2-2a"]]
    a1, b1, b2, a2 = (group[0] for group in groups)
    assert [each.side for each in (a1, b1, b2, a2)] == ["baseline", "candidate", "candidate", "baseline"]
    assert dataclasses.replace(a1, name="", side="candidate") == dataclasses.replace(b1, name="")
    assert dataclasses.replace(a2, name="", side="candidate") == dataclasses.replace(b2, name="")
    assert a1.seed != a2.seed
    assert a1.requests + a2.requests >= CHAT.requests.candidate


def test_without_a_ratio_or_with_a_recorded_baseline_the_source_is_left_alone():
    recorded = dataclasses.replace(CHAT, load=dataclasses.replace(CHAT.load, baseline="recorded"))
    for chosen in (recorded, policy("rescue")):
        assert [block.side for group in compared(chosen, 10.0, "1a") for block in group] == ["candidate"]


def test_a_high_peak_lasts_long_enough_all_the_same_and_only_a_sample_is_written():
    ((_, load),) = compared(CHAT, 100.0, "1a")
    assert load.requests / load.rate_rps >= 10 * CHAT.bootstrap.block_s
    assert CHAT.requests.candidate <= load.requests / load.write_every < 2 * CHAT.requests.candidate


def test_no_two_looks_or_tries_send_the_same_prompts():
    names = [f"{look}{attempt}" for look in (1, 2, 3) for attempt in "abc"]
    seeds = [block.seed for name in names for group in compared(active(), 10.0, name) for block in group[:1]]
    assert len(set(seeds)) == len(seeds) // 2  # each list goes to both arms


def test_the_probe_is_a_small_share_of_what_users_send():
    for peak in (0.5, 5.0, 50.0, 500.0):
        assert 0.05 * peak <= probe_rate(peak) <= 0.2 * peak


@pytest.mark.parametrize(
    ("requests", "slow", "over"), [(50, 0, False), (50, 2, False), (50, 3, True), (1000, 15, False), (1000, 20, True)]
)
def test_users_are_over_their_slo_only_beyond_doubt(requests, slow, over):
    told = over_slo(CHAT, requests, slow)
    assert bool(told) is over
    if over:
        assert f"{slow} of {requests} waited longer than 2000 ms" in told
    assert not over_slo(dataclasses.replace(CHAT, slo=None), requests, slow)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{baseline: guessed, shares: [1.0, 1.2], lengths: live}", "load.baseline: must be one of probe, active"),
        ("{baseline: probe, shares: [1.0, 0.7], lengths: live}", "must hold capacity.headroom"),
        ("{baseline: probe, shares: [], lengths: live}", "needs different shares"),
        ("{baseline: probe, shares: [1.2, 1.2], lengths: live}", "needs different shares"),
        ("{baseline: probe, shares: [1.2, -1], lengths: live}", "needs different shares"),
        ("{baseline: probe, shares: 1.2, lengths: live}", "load.shares: must be a list of numbers"),
        ("{baseline: probe, shares: [x, 1.2], lengths: live}", "load.shares[0]: must be a finite float"),
        ("{baseline: probe, shares: [1.2], lengths: long}", "load.lengths: must be one of live, fixed"),
    ],
)
def test_a_design_that_makes_no_sense_is_refused(text, said):
    from test_gate_policy import CHAT as chat_text

    line = next(each for each in chat_text.splitlines() if each.startswith("load: "))
    with pytest.raises(PolicyError) as refused:
        load_policy(chat_text.replace(line, f"load: {text}"))
    assert said in str(refused.value)


def test_looks_that_the_cap_does_not_allow_are_refused():
    from test_gate_policy import CHAT as chat_text

    with pytest.raises(PolicyError, match="must allow 3 looks of 2000"):
        load_policy(chat_text.replace("cap: 8000", "cap: 5000"))
