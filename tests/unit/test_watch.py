"""The watch sees breaches, and does not cry wolf."""

from __future__ import annotations

import pytest

from tpu_migration.domain.watch import ArmSample, Limits, PodSample, ProbeSample, Sample, Split, Watch

LIMITS = Limits(ttft_limit_s=1.0)


def pod(first_tokens=0.0, *, aborted=0.0, slow=0.0, started=1.0):
    return PodSample(
        first_tokens=first_tokens,
        running=0,
        waiting=0,
        aborted=aborted,
        finished=first_tokens,
        started_at=started,
        ttft_buckets={1.0: first_tokens - slow, 5.0: first_tokens},
    )


def sample(at, source=100.0, target=0.0, *, probe=ProbeSample(0, 0, 0.5), dead_sources=None):
    """Make a sample; an arm is given whole, or as the requests that one pod of it has begun."""

    def arm(value, name):
        return value if isinstance(value, ArmSample) else ArmSample(1, {name: pod(value)})

    return Sample(float(at), arm(source, "gpu-0"), arm(target, "tpu-0"), probe, dead_sources or {})


def see(watch, *samples, users=True):
    return [watch.add(each, target_has_users=users, source_replicas=1) for each in samples]


def test_a_healthy_shift_shows_no_breach():
    assert see(Watch(LIMITS), *(sample(t, 100 + 5 * t, 5 * t) for t in range(60))) == [None] * 60


@pytest.mark.parametrize(
    ("hurt", "words"),
    [
        ({"target": ArmSample(0, {})}, "no ready endpoint"),
        ({"source": ArmSample(0, {})}, "could not take everybody back"),
        ({"dead_sources": {"gpu-0": "timed out"}}, "gpu-0 is Ready but gives no completion"),
        ({"probe": ProbeSample(2, 2, 3.0, "502")}, "2 probes in a row failed"),
    ],
)
def test_a_hard_breach_counts_at_once(hurt, words):
    *_, breach = see(Watch(LIMITS), sample(0), sample(1, **hurt))
    assert words in breach


def test_one_failed_probe_is_bad_luck():
    assert see(Watch(LIMITS), sample(0), sample(1, probe=ProbeSample(1, 1, 2.0, "502"))) == [None, None]


def failing(way, *at, until=70):
    """Make samples a second apart in which probes of one way failed at these seconds."""
    error = "last_error" if way == "failed" else "target_last_error"
    told = {error: "http 502", "consecutive_failures": 0, "last_ok_s_ago": 0.5, "failed": 0}
    return [sample(t, probe=ProbeSample(**{**told, way: sum(s <= t for s in at)})) for t in range(until)]


@pytest.mark.parametrize(("way", "words"), [("failed", "the Gateway's own address"), ("target_failed", "the target")])
def test_a_few_failed_probes_within_a_minute_are_a_breach_though_none_follow_each_other(way, words):
    breaches = see(Watch(LIMITS), *failing(way, 5, 20, 40, 60))
    assert breaches[:60] == [None] * 60
    assert breaches[60] == f"4 probes of {words} failed within 60 s: http 502"
    assert see(Watch(LIMITS), *failing(way, 5, 20, 40, 66)) == [None] * 70


def test_what_fails_on_a_target_without_users_hurts_nobody():
    assert see(Watch(LIMITS), *failing("target_failed", 5, 20, 40, 60), users=False) == [None] * 70


@pytest.mark.parametrize(("before", "seen"), [(3, True), (0, False)])
def test_long_answers_that_are_cut_are_a_breach_where_they_came_through_before(before, seen):
    cut = [sample(t, probe=ProbeSample(0, 0, 0.5, long_ok=before, long_failed=7 + t // 60)) for t in range(190)]
    breaches = see(Watch(LIMITS), *cut)
    assert breaches[:180] == [None] * 180
    told = "3 long answers failed at the Gateway's own address, where they had come through before"
    assert breaches[180] == (told if seen else None)


def test_failures_of_a_prober_that_was_replaced_are_not_counted_twice():
    replaced = [sample(t, probe=ProbeSample(9 if t < 5 else 1, 0, 0.5)) for t in range(10)]
    assert see(Watch(LIMITS), *replaced) == [None] * 10


def test_a_target_that_restarts_with_users_on_it_is_a_breach():
    again = ArmSample(1, {"tpu-0": pod(0, started=99.0)})
    assert "tpu-0 restarted" in see(Watch(LIMITS), sample(0), sample(1, target=again))[-1]


def test_a_restart_is_seen_though_a_look_in_between_had_no_answer():
    first, silent, again = (ArmSample(1, {"tpu-0": each}) for each in (pod(0), None, pod(0, started=99.0)))
    looks = [sample(t, target=each) for t, each in enumerate((first, silent, again))]
    assert "tpu-0 restarted" in see(Watch(LIMITS), *looks)[-1]


def test_a_source_replica_that_an_hpa_ends_may_be_silent():
    ending = ArmSample(1, {"gpu-0": pod(100), "gpu-1": None}, leaving=frozenset({"gpu-1"}))
    assert see(Watch(LIMITS), *(sample(t, source=ending) for t in range(30))) == [None] * 30


def test_no_data_is_a_breach_after_its_grace_and_not_before():
    watch = Watch(LIMITS)
    blind = [sample(t, target=ArmSample(1, {"tpu-0": None})) for t in range(20)]
    breaches = see(watch, *blind)
    assert breaches[:16] == [None] * 16
    assert "has given no data for 16 s" in breaches[16]


def test_a_silent_prober_is_missing_data():
    breaches = see(Watch(LIMITS), *(sample(t, probe=None) for t in range(25)))
    assert breaches[20] is None
    assert "the prober" in breaches[21]


def test_slow_first_tokens_must_last_before_they_are_a_breach():
    slow = [sample(t, target=ArmSample(1, {"tpu-0": pod(20.0 * t, slow=2.0 * t)})) for t in range(8)]
    breaches = see(Watch(LIMITS), *slow)
    assert breaches[4] is None
    assert "waited more than 1000 ms" in next(filter(None, breaches))


def test_a_small_share_that_is_all_slow_is_a_breach_though_it_takes_longer_to_see():
    slow = [sample(t, target=ArmSample(1, {"tpu-0": pod(0.1 * t, slow=0.1 * t)})) for t in range(120)]
    assert "waited more than" in next(filter(None, see(Watch(LIMITS), *slow)))


def test_a_new_share_is_judged_by_what_came_after_it():
    watch = Watch(LIMITS)
    see(watch, *(sample(t, target=20.0 * t) for t in range(5)))
    watch.begin_step()
    see(watch, sample(5, target=100.0), sample(6, target=107.0))
    assert watch.judged() == 7


def test_aborted_streams_on_the_target_are_a_breach_unless_the_source_has_them_too():
    def aborting(t):
        return ArmSample(1, {"tpu-0": pod(20.0 * t, aborted=4.0 * t)})

    alone = see(Watch(LIMITS), *(sample(t, target=aborting(t)) for t in range(10)))
    both = see(Watch(LIMITS), *(sample(t, source=aborting(t), target=aborting(t)) for t in range(10)))
    assert "aborted" in alone[-1]
    assert both == [None] * 10


def test_too_little_traffic_only_holds():
    few = [sample(t, target=ArmSample(1, {"tpu-0": pod(t * 0.2, slow=t * 0.2)})) for t in range(40)]
    assert see(Watch(LIMITS), *few) == [None] * 40


# ---------------------------------------------------------------- the split


@pytest.mark.parametrize(
    ("source", "target", "percent", "follows"),
    [
        (95, 5, 5, True),
        (100, 0, 5, False),  # not one request got there: no evidence
        (100, 0, 25, False),
        (75, 25, 25, True),
        (50, 50, 25, False),
        (0, 100, 100, True),
        (1, 119, 100, True),
        (20, 80, 100, False),
        (15, 5, 25, False),
    ],
)
def test_a_split_follows_its_weight_within_a_binomial_bound(source, target, percent, follows):
    assert Split(source, target).follows(percent) is follows


def test_our_own_requests_are_no_users():
    watch = Watch(LIMITS)
    for t in range(5):
        own = ArmSample(1, {"gpu-0": pod(100 + 10.0 * t)}, own=10.0 * t)
        see(watch, sample(t, source=own, target=ArmSample(1, {"tpu-0": pod(3.0 * t)})))
    assert watch.split(since=0) == Split(0.0, 12.0)


def test_only_what_came_after_the_weights_counts():
    watch = Watch(LIMITS)
    see(watch, *(sample(t, 100 + 10 * t, 0 if t < 5 else 10 * (t - 5)) for t in range(10)))
    assert watch.split(since=5) == Split(40.0, 40.0)


def test_a_quiet_workload_gets_a_longer_window_instead_of_a_false_alarm():
    watch = Watch(LIMITS)
    see(watch, *(sample(t, 100.0, 1.0 * t) for t in range(60)))
    assert watch.split(since=0).total == 30
    assert watch.split(since=0).follows(100)
