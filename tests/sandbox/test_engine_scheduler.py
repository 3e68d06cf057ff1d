"""Continuous batching in virtual time: queueing, chunks, preemption, aborts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_harness import TPU, TPU_FLAGS, config_of

from sandbox.engine.metrics import Metrics
from sandbox.engine.scheduler import Scheduler, Sequence


class World:
    """A scheduler and a clock that moves by each step's own time."""

    def __init__(self, max_num_seqs: int = 4, budget: int = 512, kv_tokens: int = 100_000) -> None:
        timing = replace(config_of(TPU_FLAGS, TPU).timing, kv_capacity_tokens=kv_tokens)
        self.metrics = Metrics("m", {})
        self.scheduler = Scheduler(timing, max_num_seqs, budget, self.metrics)
        self.now = 0.0
        self.news: list[tuple[str, int, str | None]] = []

    def add(self, name: str, prompt: int, tokens: int, interval: int | None = 10, natural: int | None = None):
        sequence = Sequence(
            prompt, tokens, natural, interval=interval, notify=lambda: self._note(name), arrived=self.now
        )
        self._named = {**getattr(self, "_named", {}), name: sequence}
        self.scheduler.add(sequence)
        return sequence

    def _note(self, name: str) -> None:
        sequence = self._named[name]
        self.news.append((name, sequence.produced, sequence.reason))

    def step(self) -> bool:
        plan = self.scheduler.plan(self.now)
        if plan is None:
            return False
        self.now += plan.seconds
        self.scheduler.commit(self.now)
        return True

    def finish(self) -> None:
        for _ in range(100_000):
            if not self.step():
                return
        raise AssertionError("the scheduler never finishes")


def test_a_stream_speaks_at_its_first_token_then_every_interval_then_at_its_end():
    world = World()
    world.add("a", 4, 25)
    world.finish()
    assert world.news == [("a", 1, None), ("a", 11, None), ("a", 21, None), ("a", 25, "length")]


def test_an_answer_without_a_stream_speaks_only_at_its_end():
    world = World()
    world.add("a", 4, 25, interval=None)
    world.finish()
    assert world.news == [("a", 25, "length")]


def test_a_natural_end_comes_before_max_tokens_and_is_a_stop():
    world = World()
    world.add("a", 4, 100, natural=7)
    world.add("b", 4, 5, natural=7)
    world.finish()
    assert ("a", 7, "stop") in world.news
    assert ("b", 5, "length") in world.news


def test_requests_above_max_num_seqs_wait_and_are_all_served():
    world = World(max_num_seqs=2)
    for name in "abcde":
        world.add(name, 10, 5, interval=None)
    world.step()
    assert (world.metrics.running, world.metrics.waiting) == (2, 3)
    world.finish()
    assert sorted(world.news) == [(name, 5, "length") for name in "abcde"]
    assert (world.metrics.running, world.metrics.waiting, world.metrics.kv_usage) == (0, 0, 0.0)
    assert world.metrics.histograms["request_queue_time_seconds"].sum > 0


def test_a_long_prompt_is_prefilled_in_chunks_while_others_keep_their_tokens_coming():
    world = World(budget=512)
    world.add("short", 4, 50, interval=1)
    world.step()
    world.add("long", 1500, 2, interval=1)
    world.step()
    world.step()
    assert [item for item in world.news if item[0] == "long"] == []
    assert ("short", 3, None) in world.news
    world.step()
    assert ("long", 1, None) in world.news


def test_a_full_kv_cache_preempts_the_youngest_and_nobody_loses_a_token():
    world = World(kv_tokens=300)
    world.add("old", 100, 80, interval=None)
    world.add("young", 100, 80, interval=None)
    world.finish()
    assert world.metrics.preemptions >= 1
    assert sorted(world.news) == [("old", 80, "length"), ("young", 80, "length")]
    assert world.news[0][0] == "old"
    assert world.metrics.kv_usage == 0.0


@pytest.mark.parametrize("steps", [0, 1, 2, 12])
def test_a_client_that_hangs_up_frees_its_place_whatever_it_was_doing(steps):
    world = World(max_num_seqs=1, budget=16)
    gone = world.add("gone", 20, 50)
    world.add("next", 4, 3, interval=None)
    for _ in range(steps):
        world.step()
    world.scheduler.abort(gone)
    world.scheduler.abort(gone)
    world.finish()
    assert world.news[-1] == ("next", 3, "length")
    assert world.metrics.finished["abort"] == 1
    assert world.metrics.kv_usage == 0.0


def test_aborting_all_reports_how_far_each_stream_came():
    world = World()
    world.add("running", 4, 100)
    for _ in range(7):
        world.step()
    world.add("waiting", 4, 100)
    assert world.scheduler.abort_all() == 2
    assert world.news[-2:] == [("running", 7, "abort"), ("waiting", 0, "abort")]
    assert world.scheduler.unfinished == 0


def test_the_counters_add_up():
    world = World()
    for name in "abc":
        world.add(name, 10, 20, interval=None)
    world.finish()
    metrics = world.metrics
    assert (metrics.prompt_tokens, metrics.generation_tokens, metrics.finished["length"]) == (30, 60, 3)
    gaps = metrics.histograms["inter_token_latency_seconds"]
    assert sum(gaps.counts) == 3 * 19
    assert sum(metrics.histograms["time_to_first_token_seconds"].counts) == 3
    assert gaps.sum == pytest.approx(metrics.histograms["request_decode_time_seconds"].sum)


def test_a_slowdown_stretches_every_step():
    fast, slow = World(), World()
    slow.scheduler.slowdown = 4.0
    for world in (fast, slow):
        world.add("a", 10, 20)
        world.finish()
    assert slow.now == pytest.approx(4 * fast.now)
