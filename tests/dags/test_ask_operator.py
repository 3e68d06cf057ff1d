"""People are asked in Airflow; what they answer is in the record, and the question closes wherever they answered."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.standard.operators import hitl
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred

from tests.unit.cluster import GPU, NAMESPACE, Cluster
from tests.unit.cluster import record as make_record
from tpu_migration import answers
from tpu_migration.clock import SystemClock
from tpu_migration.domain.phases import Phase
from tpu_migration.domain.plan import APPROVALS, Plan
from tpu_migration.errors import SupersededError, TransientError
from tpu_migration.hooks import migration
from tpu_migration.operators.ask import AskOperator
from tpu_migration.records import Records
from tpu_migration.triggers import answer as triggers
from tpu_migration.triggers.answer import AnswerTrigger, settled

RUN = "run-1"
ROOT = Path(__file__).parents[2]
PLAN = {"workload": GPU, "source_release": "delete-pool", "approvals": ["shift", "decommission"]}


@pytest.fixture
def kube(monkeypatch):
    """The cluster of a run that waits for the decommission's approval."""
    made = Cluster().kube
    monkeypatch.setattr(migration.MigrationHook, "__init__", lambda self, plan: None)
    monkeypatch.setattr(migration.MigrationHook, "kubernetes", lambda self: made)
    found = make_record(Phase.COMMITTED, run_id=RUN, plan=Plan.from_params(PLAN).to_dict())
    records(made).begin(found.with_question("decommission", 1000.0))
    return made


@pytest.fixture
def shown(monkeypatch):
    """What Airflow is told to show."""
    found: dict[str, object] = {}
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **told: found.update(told))
    return found


def records(kube):
    return Records(kube, NAMESPACE, GPU)


def context(**changes):
    # Airflow adds the fields of the task's own form to the run's parameters.
    params = {**PLAN, "reason": "", **changes}
    return {"params": params, "run_id": RUN, "task_instance": SimpleNamespace(id="ti-1"), "ti": SimpleNamespace()}


def operator(what="decommission"):
    return AskOperator(task_id=f"approve_{what}", what=what)


def given(option, reason=""):
    return {
        "chosen_options": [option],
        "params_input": {"reason": reason},
        "responded_at": dt.datetime(2026, 11, 25, tzinfo=dt.UTC),
        "responded_by_user": {"id": "1", "name": "ada"},
    }


# ----------------------------------------------------------------------------------- its place


def test_no_task_waits_for_a_question_and_the_teardown_least_of_all():
    dag = DagBag(ROOT / "dags").dags["tpu_migration"]
    for what in APPROVALS:
        task = dag.task_dict[f"approve_{what}"]
        assert isinstance(task, AskOperator)
        assert task.downstream_task_ids == set()
        assert task.upstream_task_ids == dag.task_dict[what].upstream_task_ids, "it is asked when the stage begins"


# --------------------------------------------------------------------------------- the question


def test_people_see_the_verdict_what_a_yes_does_and_what_a_no(kube, shown):
    with pytest.raises(TaskDeferred) as deferred:
        operator().execute(context())
    assert deferred.value.method_name == "execute_complete"
    assert isinstance(deferred.value.trigger, AnswerTrigger)
    assert shown["subject"] == "Give up the GPUs of vllm?"
    assert shown["options"] == ["Approve", "Reject"]
    assert shown["defaults"] == ["Reject"]
    assert list(shown["params"]) == ["reason"]
    for words in ("**Approve**: ", "**Reject**: ", "may not be there again", "tpu-migration approve vllm"):
        assert words in shown["body"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"approvals": []}, "the plan asks nobody"),
        ({"approvals": ["shift"]}, "the plan asks nobody"),
        ({"source_release": "keep"}, "the plan asks nobody"),
        ({"stop_after": "gate"}, "the plan asks nobody"),
    ],
)
def test_a_plan_that_asks_nobody_skips_the_question_without_a_call(shown, changes, why):
    with pytest.raises(AirflowSkipException, match=why):
        operator().execute(context(**changes))
    assert shown == {}


def test_parameters_that_make_no_plan_fail_with_what_is_wrong():
    with pytest.raises(AirflowFailException, match="unknown parameter 'aprovals': did you mean approvals"):
        operator().execute(context(aprovals=[]))


def test_a_question_that_was_answered_is_not_asked_again(kube, shown):
    answer(kube, approved=True)
    with pytest.raises(AirflowSkipException, match="the decommission is approved by ada"):
        operator().execute(context())
    assert shown == {}


def answer(kube, **more):
    options = {"by": "ada", "reason": "", "clock": SystemClock(), **more}
    return answers.answer(kube, NAMESPACE, GPU, "decommission", **options)


# ---------------------------------------------------------------------------------- the answer


@pytest.mark.parametrize(("option", "approved"), [("Approve", True), ("Reject", False)])
def test_what_people_choose_in_airflow_is_in_the_record_with_their_name(kube, option, approved):
    operator().execute_complete(context(), given(option, "the peak is over"))
    said = records(kube).read().approval("decommission")
    assert (said.approved, said.by, said.reason) == (approved, "ada in Airflow", "the peak is over")
    assert said.answered > said.asked


def test_an_answer_that_comes_second_changes_nothing_and_fails_nothing(kube):
    answer(kube, approved=False, by="bob")
    told = operator().execute_complete(context(), given("Approve"))
    assert "rejected by bob already" in told
    assert records(kube).read().approval("decommission").approved is False


def test_an_answer_to_a_run_that_is_over_is_refused(kube):
    with pytest.raises(SupersededError, match="belongs to run run-1 now"):
        answer(kube, approved=True, run_id="run-0")


def test_an_answer_is_written_as_soon_as_the_cluster_answers_again(kube, monkeypatch):
    from tpu_migration.operators import ask

    write, failures = answers.answer, [TransientError("no answer"), TransientError("no answer")]

    def stumbling(*args, **more):
        if failures:
            raise failures.pop()
        return write(*args, **more)

    monkeypatch.setattr(answers, "answer", stumbling)
    monkeypatch.setattr(ask.time, "sleep", lambda seconds: None)
    operator().execute_complete(context(), given("Approve"))
    assert records(kube).read().approval("decommission").approved is True


# --------------------------------------------------------------------------------- the trigger


def test_the_trigger_comes_back_from_the_database_as_it_was():
    from airflow.models.trigger import Trigger

    row = Trigger.from_object(AnswerTrigger(PLAN, RUN, "decommission"))
    assert row.classpath == "tpu_migration.triggers.answer.AnswerTrigger"
    assert AnswerTrigger(**json.loads(json.dumps(row.kwargs))).serialize()[1]["what"] == "decommission"


async def test_the_question_closes_when_a_terminal_has_answered_it(kube, monkeypatch):
    monkeypatch.setattr(triggers, "_POLL_S", 0.0)
    fired = asyncio.create_task(anext(AnswerTrigger(PLAN, RUN, "decommission").run()))
    await asyncio.sleep(0)
    assert not fired.done()
    answer(kube, approved=True, by="bob at a terminal")
    told = (await fired).payload
    assert told == {"settled": "the decommission is approved by bob at a terminal"}
    assert operator().execute_complete(context(), told) == told["settled"]


async def test_a_cluster_that_does_not_answer_closes_no_question(kube, monkeypatch):
    monkeypatch.setattr(triggers, "_POLL_S", 0.0)
    looks = [TransientError("no answer"), "the run is over"]

    def look(self):
        found = looks.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(AnswerTrigger, "_look", look)
    assert (await anext(AnswerTrigger(PLAN, RUN, "decommission").run())).payload == {"settled": "the run is over"}


def test_a_question_is_over_when_the_run_is(kube):
    found = records(kube).read()
    assert settled(found, RUN, "decommission") == ""
    assert "belongs to run run-1 now" in settled(found, "run-0", "decommission")
    ended = found.moved_to(Phase.DECOMMISSIONING).moved_to(Phase.MIGRATED)
    assert "nothing is left to decide" in settled(ended, RUN, "decommission")
