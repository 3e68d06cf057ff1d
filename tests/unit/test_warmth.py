"""When an engine is warm: the shapes that it must have met, compiles that are counted, windows that agree."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpu_migration.bench.options import shapes as parse_shapes
from tpu_migration.domain.warmth import (
    Change,
    Mark,
    Traffic,
    WarmUp,
    compiled_between,
    shapes,
    stalled_between,
    typical_change,
    written,
)

TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048)
BATCHES = (8, 16, 32, 64)
MARK = Mark(24, 218.4, 3, stalls=1.0, started=100.0)


# ------------------------------------------------------------------------------------ compiles


@pytest.mark.parametrize(
    ("before", "after", "compiled"),
    [
        (MARK, Mark(24, 218.4, 3, 1.0, 100.0), 0),
        (MARK, Mark(26, 230.0, 3, 1.0, 100.0), 2),
        (None, MARK, None),  # a pod that came meanwhile
        (MARK, Mark(3, 20.0, 0, 0.0, 100.0), None),  # a log that was rotated
        (MARK, Mark(24, 218.4, 3, 0.0, 900.0), None),  # an engine that began anew and compiled just as much
    ],
)
def test_a_count_that_began_anew_proves_no_absence_of_compiles(before, after, compiled):
    assert compiled_between(before, after) == compiled


def test_stalls_are_unknown_where_the_server_does_not_tell():
    assert stalled_between(MARK, Mark(24, 218.4, 3, 4.0, 100.0)) == 3
    assert stalled_between(MARK, Mark(24, 218.4, 3, None, 100.0)) is None


def test_marks_and_results_survive_the_record():
    assert Mark.from_dict(MARK.to_dict()) == MARK
    found = WarmUp("384x1", "the plan", TOKENS, BATCHES, passes=2, settled=True)
    assert WarmUp.from_dict(found.to_dict()) == found


# ------------------------------------------------------------------------------------- windows


def test_five_per_cent_is_the_same_up_and_down_and_the_message_has_both_figures():
    assert Change("TTFT", "96x1", 0.100, 0.105).agrees
    assert Change("TTFT", "96x1", 0.105, 0.100).agrees
    assert not Change("TTFT", "96x1", 0.100, 0.1051).agrees
    assert str(Change("TTFT", "96x1", 0.412, 0.398)) == "p50 TTFT 412 ms, then 398 ms (-3.4 %, at 96x1)"


def test_one_shape_that_met_a_hiccup_does_not_decide_and_a_general_change_does():
    before = {f"{n}x1": 0.01 * n for n in range(1, 10)}
    hiccup = {**before, "3x1": 5.0}
    faster = {shape: 0.8 * value for shape, value in before.items()}
    assert typical_change("TPOT", before, hiccup).agrees
    assert not typical_change("TPOT", before, faster).agrees


def test_without_a_shape_that_both_windows_measured_nothing_agrees():
    assert typical_change("TTFT", {"1x1": 0.1}, {"2x1": 0.1}) is None
    assert typical_change("TTFT", {}, {}) is None
    assert typical_change("TTFT", {"1x1": 0.0}, {"1x1": 0.1}) is None


def test_windows_of_an_engine_that_does_not_change_agree_though_each_shape_scatters():
    """Twenty shapes, as the demo drives, whose medians scatter by 5 % each."""
    agreed, rng = 0, random.Random(5)
    for _ in range(1000):
        first, second = ({f"{n}": math.exp(rng.gauss(0, 0.05)) for n in range(20)} for _ in range(2))
        agreed += typical_change("TTFT", first, second).agrees
    assert agreed > 950


# -------------------------------------------------------------------------------------- shapes


def driven(prompts, rate=10.0, stay_s=3.0, replicas=2):
    return shapes(Traffic(tuple(prompts), rate, stay_s), replicas, TOKENS, BATCHES)


def test_every_bucket_of_live_lengths_meets_every_batch_that_the_peak_may_fill():
    """10 requests a second that stay 3 s are 15 a replica, on a TPU twice as slow 30."""
    found = driven([(17, 32), (65, 128)])
    assert found == [(24, 1), (96, 1), (24, 16), (96, 16), (24, 32), (96, 32)]


def test_a_wide_range_of_lengths_holds_all_buckets_within_it():
    assert {length for length, width in driven([(1, 500)]) if width == 1} == {8, 24, 48, 96, 192, 384}


def test_longer_prompts_that_would_fill_the_same_steps_are_driven_once_only():
    found = driven([(1, 2048)], rate=40.0)
    assert max(length for length, width in found if width == 64) == 96  # 64 x 96 are three whole steps
    assert max(length for length, width in found if width == 1) == 1536


def test_prompts_beyond_the_largest_step_are_cut_into_chunks_whose_rest_may_have_any_size():
    found = driven([(5000, 30_000)])
    assert {length for length, width in found if width == 1} == {8, 24, 48, 96, 192, 384, 768, 1536, 8192}


def test_a_quiet_workload_still_meets_one_batch_of_several():
    assert {width for _, width in driven([(1, 16)], rate=0.01)} == {1, 8}


def test_an_engine_that_tells_no_buckets_is_driven_by_powers_of_two():
    assert shapes(Traffic(((100, 100),), 10.0, 3.0), 2) == [(96, 1), (96, 16), (96, 32)]


@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 60_000)), min_size=1, max_size=6),
    st.floats(0.01, 10_000),
    st.floats(0.01, 600),
    st.integers(1, 64),
)
def test_whatever_users_send_each_bucket_of_theirs_is_met_and_the_load_generator_can_read_it(
    prompts, rate, stay_s, replicas
):
    ranges = [(low, low + more) for low, more in prompts]
    found = driven(ranges, rate, stay_s, replicas)
    assert len(set(found)) == len(found)
    assert list(parse_shapes(written(found))) == found
    singles = {length for length, width in found if width == 1}
    for low, high in ranges:
        for at in (low, high):
            bucket = next((size for size in TOKENS if size >= at), TOKENS[-1])
            assert any((bucket // 2 if bucket > TOKENS[0] else 0) < length <= bucket for length in singles)
