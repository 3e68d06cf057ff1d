"""A stage looks as often as it says, however long its looks take, and asks the prober's pod by the name it found."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tpu_migration.clients.transport import Response
from tpu_migration.errors import TransientError
from tpu_migration.stages.base import Done, Stage, Waiting
from tpu_migration.stages.observe import _count
from tpu_migration.stages.probes import prober_stats
from tpu_migration.stages.run import StageRun


class Clock:
    def __init__(self):
        self.at = 0.0

    def monotonic(self):
        return self.at

    now = monotonic


def stage_run(step, clock):
    context = SimpleNamespace(
        plan=SimpleNamespace(workload="w"), run_id="r", clock=clock, epoch=None, lease=None, announce=print
    )
    return StageRun(Stage("s", step, lambda plan: 100.0, takes_lease=False, watches_users=False), context)


@pytest.mark.parametrize(("took_s", "rest_s"), [(0.0, 2.0), (0.5, 1.5), (2.0, 0.0), (7.0, 0.0)])
def test_a_wait_counts_from_when_the_look_began(took_s, rest_s):
    clock = Clock()

    def step(context):
        clock.at += took_s
        return Waiting(2.0, "more")

    outcome = stage_run(step, clock).step()
    assert outcome == Waiting(pytest.approx(rest_s), "more")


def test_an_api_that_does_not_answer_is_left_alone_for_the_whole_pause():
    clock = Clock()

    def step(context):
        clock.at += 10.0  # until the call's timeout
        raise TransientError("no answer")

    run = stage_run(step, clock)
    pauses = [run.step().seconds for _ in range(8)]
    assert all(pause > 0.2 for pause in pauses)
    assert max(pauses) > 5.0


def test_the_end_of_a_stage_is_passed_on():
    assert stage_run(lambda context: Done({"a": 1}), Clock()).step() == Done({"a": 1})


class Probers:
    """An API server with one prober at a time behind it."""

    def __init__(self):
        self.pod, self.lists = "prober-1", 0

    def list(self, resource, namespace, *, labels):
        self.lists += 1
        ready = {"type": "Ready", "status": "True"}
        return [{"metadata": {"name": self.pod}, "status": {"conditions": [ready]}}] if self.pod else []

    def pod_proxy(self, namespace, pod, port, path):
        return Response(200, json.dumps({"arms": {}}).encode()) if pod == self.pod else Response(404, b"{}")


def test_probes_are_counted_on_when_another_prober_begins_at_nothing():
    context = SimpleNamespace(memory={})
    sums = []
    for sent in (5, 9, 1, 4):
        _count(context, "target", sent)
        sums.append(sum(context.memory["probed_target"]))
    assert sums == [5, 9, 10, 13]


def test_a_prober_is_looked_for_once_and_again_when_another_came_in_its_place():
    kube = Probers()
    context = SimpleNamespace(
        kube=kube, memory={}, plan=SimpleNamespace(namespace="n"), names=SimpleNamespace(prober="prober")
    )
    assert [prober_stats(context).pod for _ in range(3)] == ["prober-1"] * 3
    assert kube.lists == 1
    kube.pod = "prober-2"
    assert prober_stats(context) is None
    assert prober_stats(context).pod == "prober-2"
    kube.pod = ""
    assert [prober_stats(context) for _ in range(3)] == [None] * 3
    assert kube.lists == 4
