"""The bounds are the published ones, and never better for worse data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm

from tpu_migration.domain.gate.statistics import (
    POCOCK_ALPHA,
    Blocks,
    expanded_alpha,
    order_statistic_bounds,
    proportion,
    quantile_index,
    requests_to_claim,
)


@pytest.mark.parametrize(("alpha", "misses", "failures"), [(0.05, 83, 12), (POCOCK_ALPHA[0.95][2], 80, 11)])
def test_the_allowed_misses_and_errors_in_2000_are_the_published_ones(alpha, misses, failures):
    assert proportion(2000 - misses, 2000, alpha).low >= 0.95
    assert proportion(2000 - misses - 1, 2000, alpha).low < 0.95
    assert proportion(failures, 2000, alpha).high <= 0.01
    assert proportion(failures + 1, 2000, alpha).high > 0.01


def test_a_p99_claim_needs_299_requests_at_95_per_cent_and_459_at_99():
    assert requests_to_claim(0.01, 0.05) == 299
    assert requests_to_claim(0.01, 0.01) == 459
    values = np.ones(299)
    assert order_statistic_bounds(values, 0.99, 0.05).high == 1.0
    assert order_statistic_bounds(values[:298], 0.99, 0.05).high == math.inf


@pytest.mark.parametrize("confidence", [0.90, 0.95])
@pytest.mark.parametrize("looks", [2, 3])
def test_pococks_levels_keep_the_error_over_all_looks(confidence, looks):
    level = POCOCK_ALPHA[confidence][looks - 1]
    steps = range(1, looks + 1)
    correlation = [[math.sqrt(min(i, j) / max(i, j)) for j in steps] for i in steps]
    bound = np.full(looks, norm.isf(level))
    assert multivariate_normal(np.zeros(looks), correlation).cdf(bound) == pytest.approx(confidence, abs=2e-4)


def test_nothing_observed_bounds_nothing():
    assert proportion(0, 0, 0.05)[1:] == (-math.inf, math.inf)
    assert order_statistic_bounds(np.array([]), 0.99, 0.05)[1:] == (-math.inf, math.inf)
    assert expanded_alpha(0.05, 1) == 0.0


@given(st.integers(1, 5000), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_quantile_is_the_smallest_value_with_that_share_at_or_below(n, q):
    rank = quantile_index(n, q) + 1
    assert rank >= q * n - 1e-6
    assert rank == 1 or rank - 1 < q * n


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_block_quantiles_equal_those_of_the_resampled_requests(data):
    n = data.draw(st.integers(1, 60))
    q = data.draw(st.sampled_from([0.5, 0.95, 0.99]))
    values = np.array(data.draw(st.lists(st.floats(0, 9) | st.just(math.inf), min_size=n, max_size=n)))
    times = np.array(data.draw(st.lists(st.floats(0, 100), min_size=n, max_size=n)))
    members = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    blocks = Blocks(times, 10, 0.5, 200, (1, 2))
    fast = blocks.quantiles(values, members, q)
    for draw, found in list(zip(blocks.draws, fast, strict=True))[:20]:
        sample = np.sort(np.repeat(values[members], draw[blocks.of[members]]))
        if len(sample):
            assert found == sample[quantile_index(len(sample), q)]
        else:
            assert math.isnan(found)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 199), st.floats(1.0, 1e6))
def test_one_slower_request_never_lowers_a_bound(seed, which, factor):
    rng = np.random.default_rng(seed)
    times, values = np.sort(rng.uniform(0, 50, 200)), rng.lognormal(3, 0.5, 200)
    worse = values.copy()
    worse[which] *= factor
    blocks, everyone = Blocks(times, 20, 1.0, 300, (7, 0)), np.ones(200, dtype=bool)
    assert (blocks.quantiles(worse, everyone, 0.95) >= blocks.quantiles(values, everyone, 0.95)).all()
    old = order_statistic_bounds(np.sort(values), 0.95, 0.05)
    new = order_statistic_bounds(np.sort(worse), 0.95, 0.05)
    assert new.low >= old.low
    assert new.high >= old.high


def test_a_stall_that_hits_neighbours_widens_the_bound_that_blocks_give():
    rng = np.random.default_rng(3)
    times = np.arange(1000.0)
    spread = rng.permutation(np.where(np.arange(1000) < 45, 500.0, 20.0))
    together = np.where((times >= 500) & (times < 545), 500.0, 20.0)
    everyone = np.ones(1000, dtype=bool)
    share = [
        (Blocks(times, 20, 1.0, 2000, (1, 1)).quantiles(values, everyone, 0.95) > 100).mean()
        for values in (spread, together)
    ]
    assert share[1] > share[0]
