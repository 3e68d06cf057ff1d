"""A policy is frozen, complete and refuses what it does not know."""

from __future__ import annotations

from pathlib import Path

import pytest

from tpu_migration.domain.gate import PolicyError, load_policy

POLICIES = Path(__file__).parents[2] / "include" / "policies"
CHAT = (POLICIES / "chat.yaml").read_text()


@pytest.mark.parametrize("name", ["demo", "chat", "interactive", "batch", "rescue"])
def test_every_policy_in_the_repository_loads_under_its_own_name(name):
    policy = load_policy((POLICIES / f"{name}.yaml").read_text())
    assert policy.name == name
    assert policy.errors is not None
    assert policy.void is not None


def test_the_defaults_are_the_published_limits():
    chat, quick = load_policy(CHAT), load_policy((POLICIES / "interactive.yaml").read_text())
    assert (chat.slo.ttft_limit_ms, chat.slo.tpot_limit_ms, chat.slo.quantile) == (2000, 200, 0.99)
    assert (quick.slo.ttft_limit_ms, quick.slo.tpot_limit_ms) == (450, 40)
    assert (chat.ratio.ttft_limit, chat.ratio.tpot_limit, chat.ratio.e2e_limit) == (1.20, 1.15, 1.15)
    assert (chat.goodput.minimum, chat.errors.limit, chat.cost.ratio_limit) == (0.95, 0.01, 0.90)
    assert (chat.capacity.headroom, chat.capacity.min_rates, chat.looks) == (1.2, 4, 3)


def test_the_schedule_delay_limit_is_one_per_cent_of_the_ttft_limit():
    for name in ("chat", "interactive"):
        policy = load_policy((POLICIES / f"{name}.yaml").read_text())
        assert policy.void.schedule_delay_p99_ms == pytest.approx(policy.slo.ttft_limit_ms / 100)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("looks: 3", "loks: 3", "loks: unknown key; did you mean looks?"),
        ("tpot_limit_ms", "tpot_limit_s", "slo.tpot_limit_s: unknown key; did you mean tpot_limit_ms?"),
        ("cost: {ratio_limit: 0.90}", "", "cost: missing; write null to leave its checks out"),
        ("version: 2", "version: 0", "version: must be at least 1"),
        ("version: 2", "version: two", "version: must be a finite int"),
        ("looks: 3", "looks: 5", "looks: must be one of"),
        ("looks: 3", "looks: true", "looks: must be a finite int, not True"),
        ("confidence: 0.95", "confidence: 0.5", "confidence: must be one of"),
        ("ttft_limit_ms: 2000", "ttft_limit_ms: .nan", "slo.ttft_limit_ms: must be a finite float"),
        ("ttft_limit_ms: 2000", "ttft_limit_ms: -1", "slo.ttft_limit_ms: must be above 0"),
        ("minimum: 0.95", "minimum: 95", "goodput.minimum: must be between 0 and 1"),
        ("slo: {quantile: 0.99, ttft_limit_ms: 2000, tpot_limit_ms: 200}", "slo: null", "goodput: needs slo"),
        ("goodput: {minimum: 0.95}", "goodput: null", "capacity: needs goodput"),
        ("errors: {limit: 0.01}", "errors: 0.01", "errors: must be a mapping"),
        ("name: chat", "name: [", "no YAML"),
        ("baseline_min: 100", "baseline_min: 9000", "requests: needs 1 <= baseline_min"),
    ],
)
def test_a_mistake_is_refused_by_name(old, new, said):
    assert old in CHAT
    with pytest.raises(PolicyError) as refused:
        load_policy(CHAT.replace(old, new))
    assert said in str(refused.value)


def test_a_gate_that_checks_nothing_is_refused():
    sections = ("slo", "ratio", "capacity", "goodput", "errors", "cost", "quality", "void")
    with pytest.raises(PolicyError, match="prove nothing"):
        load_policy("name: lax\n" + "".join(f"{name}: null\n" for name in sections))


def test_every_problem_is_reported_at_once():
    with pytest.raises(PolicyError) as refused:
        load_policy(CHAT.replace("looks", "loks").replace("limit: 0.01", "limt: 0.01"))
    assert "loks" in str(refused.value)
    assert "limt" in str(refused.value)


def test_the_hash_follows_the_values_not_the_wording():
    chat = load_policy(CHAT)
    assert load_policy(CHAT.replace("A chat service", "Chat")).hash == chat.hash
    assert load_policy(CHAT.replace("looks: 3", "looks: 1")).hash != chat.hash
    assert chat.without("cost").hash != chat.hash
    assert chat.without("cost").cost is None
    with pytest.raises(PolicyError, match="no such section"):
        chat.without("costs")
