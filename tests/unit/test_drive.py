"""What a worker, the triggerer, a terminal and a simulation share: turns of one stage."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from cluster import record

from tpu_migration.domain.plan import Plan
from tpu_migration.drive import Turns, drive
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.stages.base import Context, Done, Failed, Stage, Waiting
from tpu_migration.stages.run import StageRun


class Clock:
    def __init__(self):
        self.at = 0.0

    def monotonic(self):
        return self.at

    now = monotonic

    def sleep(self, seconds):
        self.at += seconds


class Run:
    """A stage whose outcomes are written down, with a lease that somebody may take."""

    def __init__(self, *outcomes, budget_s=100.0):
        self.outcomes = list(outcomes)
        self.stage = SimpleNamespace(budget_s=lambda plan: budget_s)
        self.context = SimpleNamespace(clock=Clock(), plan=None, lease=SimpleNamespace(replaced=False))

    def step(self):
        return self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]

    def time_out(self, why):
        return Failed(f"too late: {why}", "timeout")


@contextmanager
def kept(lease):
    lease.kept = True
    yield
    lease.kept = False


def test_a_stage_is_stepped_to_its_end_and_each_wait_is_told_once():
    run, said = Run(Waiting(1, "nodes"), Waiting(1, "nodes"), Waiting(0, "pods"), Done({"a": 1})), []
    assert drive(run, sleep=run.context.clock.sleep, say=said.append, keeping=kept) == Done({"a": 1})
    assert said == ["nodes", "pods"]
    assert run.context.clock.at == 2
    assert run.context.lease.kept is False


def test_a_stage_that_outstays_its_budget_is_given_up_with_what_it_waited_for():
    run = Run(Waiting(30, "nodes"), budget_s=100.0)
    assert drive(run, sleep=run.context.clock.sleep, say=str, keeping=kept) == Failed("too late: nodes", "timeout")
    assert run.context.clock.at == 120


def test_a_cluster_that_does_not_answer_is_asked_again_and_the_lease_is_kept_only_then():
    run = Run(Waiting(0, "x"))
    answers = [TransientError("no answer"), run]

    def make():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with Turns(make, lambda: False, kept) as turns:
        assert isinstance(turns.take(), Waiting)
        assert (turns.news, turns.run) == ("no answer", None)
        assert turns.take() == Waiting(0, "x")
        assert run.context.lease.kept is True
    assert run.context.lease.kept is False


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(TransientError("no answer"), Failed("no answer", "timeout")), (PermanentError("no plan"), Failed("no plan"))],
)
def test_clients_that_can_never_be_made_end_it(error, outcome):
    def make():
        raise error

    with Turns(make, lambda: True, kept) as turns:
        assert turns.take() == outcome


def test_a_worker_that_is_stopped_while_it_connects_keeps_no_lease():
    run = Run(Waiting(0, "x"))
    turns = Turns(lambda: run, lambda: False, kept)
    with turns:
        pass
    assert turns.take() == Failed("this worker was told to stop", "superseded")
    assert not hasattr(run.context.lease, "kept")


def test_a_worker_that_hands_a_stage_over_leaves_its_waits_in_the_record_and_only_once(monkeypatch):
    told = []
    context = Context(Plan(), "run-1", FakeKube(), FakeKube(), None, Clock(), SimpleNamespace(taken=True))
    context.epoch = 1
    monkeypatch.setattr(context.records, "update", lambda run, epoch, change: told.append(change(record())))
    run = StageRun(Stage("gate", lambda ctx: Waiting(2.5, "a Job"), lambda plan: 100.0, takes_lease=False), context)
    run.step()
    run.step()
    run.hand_over()
    assert told[-1].stages[-1].waited == 5.0, "the last wait too: whoever comes next keeps to it"
    told.clear()
    run.hand_over()
    assert told == []


def test_a_record_that_cannot_be_written_does_not_keep_a_stage_from_being_handed_over(monkeypatch):
    def fails(*_):
        raise TransientError("503")

    context = Context(Plan(), "run-1", FakeKube(), FakeKube(), None, Clock(), SimpleNamespace(taken=True))
    run = StageRun(Stage("gate", lambda ctx: Waiting(2.5, "a Job"), lambda plan: 100.0, takes_lease=False), context)
    run.step()
    context.epoch = 1
    monkeypatch.setattr(context.records, "update", fails)
    run.hand_over()


# ---------------------------------------------------------------------------------- back-off


def pauses(workload, times=12, *, watches=False):
    """Return the pauses of a stage whose API does not answer."""

    def fails(ctx):
        raise TransientError("503")

    stage = Stage("gate", fails, lambda plan: 100.0, takes_lease=False, watches_users=watches)
    context = Context(Plan(workload=workload), "run-1", FakeKube(), FakeKube(), None, Clock(), None)
    run = StageRun(stage, context)
    return [run.step().seconds for _ in range(times)]


class FakeKube:
    def watching(self):
        return self


def test_two_hundred_runs_that_meet_the_same_outage_do_not_come_back_in_step():
    runs = [pauses(f"vllm-{number}") for number in range(200)]
    for turn in range(12):
        assert len({pause[turn] for pause in runs}) == 200
    last = sorted(pause[-1] for pause in runs)
    assert last[0] < 8.0
    assert last[-1] > 14.5


def test_a_pause_is_never_longer_than_without_the_draw_and_never_shorter_than_half():
    for at, pause_s in enumerate(pauses("vllm"), 1):
        whole_s = min(15.0, 0.25 * 2**at)
        assert whole_s / 2 <= pause_s <= whole_s
    assert all(0.25 <= pause_s <= 1.0 for pause_s in pauses("vllm", watches=True))


def test_the_same_run_draws_the_same_pauses_again():
    assert pauses("vllm") == pauses("vllm")
