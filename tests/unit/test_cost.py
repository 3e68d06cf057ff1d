"""What serving costs, and what nobody may claim about it."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.translation_builders import ROOT
from tpu_migration.domain import cost
from tpu_migration.domain.accelerators import AcceleratorError, parse_accelerators
from tpu_migration.domain.cost import ASSUMED, GIVEN, Machine, Throughput
from tpu_migration.domain.plan import Plan
from tpu_migration.domain.profiles import ProfileError, parse_profiles

TEXT = (ROOT / "include" / "accelerators.yaml").read_text()
KNOWN = parse_accelerators(TEXT)
TODAY = dt.date(2026, 11, 25)
SOURCE = Machine("source", KNOWN.gpu("h100"), 1)
V5E8 = Machine("tpu-v5e-8", KNOWN.slice("tpu-v5e-8"), 8)
L4 = Machine("l4", KNOWN.gpu("l4"), 4)


def compare(*machines, kind="on-demand", today=TODAY, replicas=1, known=KNOWN, **throughputs):
    rates = {name.replace("_", "-"): Throughput(rate, GIVEN, "test") for name, rate in throughputs.items()}
    rows = [(machine, replicas) for machine in (SOURCE, *machines)]
    return cost.compare(rows, kind, known.region, today, rates)


def test_an_hour_and_a_month_are_of_whole_machines_times_replicas():
    source, tpu = compare(V5E8, replicas=2)
    assert source.usd_per_hour == {"on-demand": pytest.approx(21.96), "spot": pytest.approx(8.84)}
    assert tpu.usd_per_hour["on-demand"] == pytest.approx(19.20)
    assert tpu.usd_per_month == pytest.approx(19.20 * 730)
    assert tpu.saving_percent == pytest.approx((1 - 19.20 / 21.96) * 100)


def test_a_million_tokens_is_priced_from_the_throughput_of_one_replica():
    source, tpu = compare(V5E8, source=1000, tpu_v5e_8=2000)
    assert source.usd_per_million == pytest.approx(10.98 / 3.6)
    assert tpu.usd_per_million == pytest.approx(9.60 / 7.2)
    assert tpu.saving_per_token_percent == pytest.approx((1 - (9.60 / 7.2) / (10.98 / 3.6)) * 100)


def test_without_a_throughput_no_token_has_a_price():
    _, tpu = compare(V5E8, source=1000)
    assert (tpu.usd_per_million, tpu.saving_per_token_percent, tpu.throughput) == (None, None, None)


@given(st.floats(1, 1e5), st.floats(1, 1e5))
def test_the_break_even_is_where_a_token_costs_the_same_on_both(mine, theirs):
    _, tpu = compare(V5E8, source=theirs, tpu_v5e_8=mine)
    assert (mine > tpu.break_even_tokens_per_s) == (tpu.saving_per_token_percent > 0) or mine == pytest.approx(
        tpu.break_even_tokens_per_s
    )
    _, even = compare(V5E8, source=theirs, tpu_v5e_8=tpu.break_even_tokens_per_s)
    assert even.saving_per_token_percent == pytest.approx(0, abs=1e-6)


def test_the_break_even_share_is_known_before_anything_is_measured():
    _, tpu = compare(V5E8)
    assert tpu.break_even == pytest.approx(9.60 / 10.98)
    assert tpu.break_even_tokens_per_s is None


def test_an_unread_price_gives_no_figure_and_says_so():
    _, l4 = compare(L4, kind="spot", l4=500)
    assert (l4.usd_per_month, l4.saving_percent, l4.usd_per_million, l4.break_even) == (None, None, None, None)
    assert "no spot price for us-central1 was read" in l4.notes[0]


def test_an_old_price_is_shown_as_old_by_the_day_that_is_given():
    _, l4 = compare(L4)
    assert "542 days ago" in l4.notes[0]
    _, tpu = compare(V5E8)
    assert tpu.notes == ()
    _, later = compare(V5E8, today=dt.date(2027, 6, 1))
    assert "days ago" in later.notes[0]
    assert cost.old_prices([SOURCE, V5E8, L4], KNOWN.region, TODAY) == ["l4"]


def test_a_region_without_prices_has_no_figures():
    rows = cost.compare([(SOURCE, 1), (V5E8, 1)], "on-demand", "mars-north1", TODAY)
    assert [row.usd_per_month for row in rows] == [None, None]


def test_both_run_for_the_whole_migration_and_both_are_paid():
    plan = Plan(steps=(1, 50, 100), bake_s=1800, soak_s=7200)
    both = cost.overlap((SOURCE, 2), (V5E8, 1), "on-demand", KNOWN.region, plan, provision_h=1, warm_up_h=1, gate_h=0.5)
    assert both.hours == pytest.approx(1 + 1 + 0.5 + 1.5 + 2)
    assert both.usd == pytest.approx((21.96 + 9.60) * 6)
    assert cost.overlap((SOURCE, 1), (L4, 1), "spot", KNOWN.region, plan).usd is None


def test_a_claim_that_the_price_list_does_not_bear_out_is_contradicted():
    said = cost.contradicted_claims(KNOWN, KNOWN.region)
    assert len(said) == 1
    assert "$0.70/hr spot for 8 v5e chips" in said[0]
    assert "$1.96" in said[0]
    borne_out = [replace(KNOWN.claims[0], usd_per_hour=1.9)]
    assert cost.contradicted_claims(replace(KNOWN, claims=tuple(borne_out)), KNOWN.region) == []


def test_a_published_figure_counts_for_its_own_model_only_and_as_assumed():
    found = cost.published_throughputs(KNOWN, "meta-llama/Meta-Llama-3-8B-Instruct")
    assert found["tpu-v5e-8"].tokens_per_s == 8249
    assert found["tpu-v5e-8"].provenance == ASSUMED
    for other in ("google/gemma-3-27b-it", "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3-80B", None):
        assert cost.published_throughputs(KNOWN, other) == {}


PROFILES = (ROOT / "include" / "profiles.yaml").read_text()


def test_the_named_profiles_are_those_of_the_older_plans():
    profiles = parse_profiles(PROFILES, KNOWN)
    production = profiles.get()
    assert (production.name, production.accelerator, production.topology, production.tensor_parallel) == (
        "production",
        "tpu-v5e-8",
        "2x4",
        8,
    )
    assert profiles.get("legacy_gpu").accelerator == "l4"
    assert profiles.get("h100").accelerator == "h100"
    with pytest.raises(ProfileError, match="production, legacy_gpu, h100"):
        profiles.get("prod")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("chips: 4, machine_type: g2-standard-48", "chips: 4, machine_type: g2-standard-24", "is not 4 l4"),
        ("topology: 2x4", "topology: 2x2", "is not 8 tpu-v5e-8"),
        ("default: production", "default: staging", "unknown profile 'staging'"),
        ("chips: 1,", "chipz: 1,", "needs exactly"),
    ],
)
def test_a_profile_that_no_machine_has_is_refused(old, new, complaint):
    assert old in PROFILES
    with pytest.raises((ProfileError, AcceleratorError), match=complaint):
        parse_profiles(PROFILES.replace(old, new), KNOWN)
