"""What does not say whether streams run on it is given its time; a throttled question counts as none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tpu_migration.domain.watch import Limits
from tpu_migration.errors import ThrottledError, TransientError
from tpu_migration.stages import observe, teardown
from tpu_migration.stages.base import Waiting

RECORD = SimpleNamespace(shift=SimpleNamespace(percent=50), source=SimpleNamespace(port=8000, served_names=["m"]))


@pytest.fixture
def ctx():
    at = SimpleNamespace(now=100.0)
    clock = SimpleNamespace(monotonic=lambda: at.now, at=at)
    plan = SimpleNamespace(namespace="inference")
    return SimpleNamespace(memory={}, clock=clock, plan=plan, kube=None, together=lambda calls: [c() for c in calls])


def waits(ctx, monkeypatch, in_flight) -> bool:
    def look(*_):
        if isinstance(in_flight, Exception):
            raise in_flight
        return SimpleNamespace(target=SimpleNamespace(in_flight=in_flight))

    monkeypatch.setattr(teardown, "look", look)
    return isinstance(teardown._streams_still_run(ctx, RECORD), Waiting)


def test_streams_are_waited_for_and_a_target_that_has_none_goes(ctx, monkeypatch):
    assert waits(ctx, monkeypatch, 3.0)
    assert not waits(ctx, monkeypatch, 0.0)


@pytest.mark.parametrize("silence", [None, TransientError("503")])
def test_a_target_that_is_silent_goes_only_once_it_has_been_so_for_a_while(ctx, monkeypatch, silence):
    assert waits(ctx, monkeypatch, silence)
    ctx.clock.at.now += Limits.missing_grace_s
    assert waits(ctx, monkeypatch, silence)
    ctx.clock.at.now += 0.1
    assert not waits(ctx, monkeypatch, silence)


def test_one_that_spoke_meanwhile_is_given_its_time_anew(ctx, monkeypatch):
    assert waits(ctx, monkeypatch, None)
    ctx.clock.at.now += Limits.missing_grace_s
    assert waits(ctx, monkeypatch, 1.0)
    ctx.clock.at.now += 1.0
    assert waits(ctx, monkeypatch, None)


def asked(ctx, monkeypatch, *answers) -> dict:
    """Ask two replicas, the next time that they are due."""
    given = dict(zip("ab", answers, strict=True))

    def complete(self, pod, model, prompt, tokens):
        if given[pod]:
            raise given[pod]

    monkeypatch.setattr(observe.Vllm, "complete", complete)
    ctx.clock.at.now += observe._COMPLETION_EVERY_S
    return dict(observe._complete_on_sources(ctx, RECORD, None, ["a", "b"]))


def test_a_replica_is_dead_after_two_failures_and_throttled_questions_are_neither_failures_nor_requests(
    ctx, monkeypatch
):
    dead, throttled = TransientError("no answer"), ThrottledError("429")
    assert asked(ctx, monkeypatch, throttled, None) == {}
    assert asked(ctx, monkeypatch, throttled, None) == {}
    assert ctx.memory["completions"] == 2
    assert asked(ctx, monkeypatch, dead, None) == {}
    assert asked(ctx, monkeypatch, throttled, None) == {}
    assert asked(ctx, monkeypatch, dead, None) == {"a": "no answer"}
