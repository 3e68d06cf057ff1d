"""A sample of the breaches that `make prove` measures: users are home in time, and the product says so truthfully."""

from __future__ import annotations

from tests.simulation.breaches import LIMIT_S, Figures, breach
from tests.simulation.harness import Latency

SEEDS = 10


def test_after_a_breach_users_are_home_and_seen_to_be_within_two_seconds_and_the_gateways_delay():
    figures = Figures.of([breach(seed) for seed in range(SEEDS)])
    assert figures.unobserved == 0
    assert figures.observed_p50_s <= LIMIT_S


def test_a_slow_api_makes_it_slower_so_that_the_figure_means_something():
    quick, slow = (breach(0, latency) for latency in (Latency(0.001, 0.002), Latency(0.3, 0.6)))
    assert quick.written_s < 0.05
    assert slow.written_s > 1.0
    assert slow.observed_s > quick.observed_s + 1.0
