"""The canaries' DAG: one of them a workload, none in a blackout, and GPUs brought back as the place says."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pendulum
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowSkipException,
    DagRunTriggerException,
    TaskDeferred,
)
from airflow.timetables.base import TimeRestriction
from airflow.timetables.trigger import CronTriggerTimetable

from tests.unit.cluster import GPU, NAMESPACE, Cluster, record
from tpu_migration.answers import answer_way_back
from tpu_migration.cli import main
from tpu_migration.clients import kubernetes
from tpu_migration.clock import SystemClock
from tpu_migration.domain.fleet import ALERT, ASK, AUTO, EXAMPLE, FleetError, parse_fleet
from tpu_migration.domain.phases import Phase
from tpu_migration.errors import TransientError
from tpu_migration.history import Canary, Histories
from tpu_migration.hooks import migration, notices
from tpu_migration.hooks.run import stage_run
from tpu_migration.operators.ask import APPROVE, REJECT, AskBackOperator
from tpu_migration.operators.canary import CanaryOperator, GoBackOperator, canary_run_id
from tpu_migration.triggers.answer import WayBackTrigger

ROOT = Path(__file__).parents[2]
PLACE = json.loads(EXAMPLE)[0]
RUN = "scheduled__1"
PUSHED: dict[str, str] = {}
TI = SimpleNamespace(
    try_number=1,
    id="ti",
    xcom_push=lambda key, value: PUSHED.update({key: value}),
    get_dag=lambda dag_id: SimpleNamespace(is_paused=False),
)
CONTEXT = {"run_id": RUN, "ti": TI, "task_instance": TI, "params": {}}


@pytest.fixture
def cluster(monkeypatch):
    made = Cluster()
    monkeypatch.setattr(migration.MigrationHook, "__init__", lambda self, plan: None)
    monkeypatch.setattr(migration.MigrationHook, "kubernetes", lambda self: made.kube)
    monkeypatch.setattr(migration.MigrationHook, "node_pools", lambda self: SimpleNamespace(fenced=lambda check: None))
    for none in ("monitoring", "permissions"):
        monkeypatch.setattr(migration.MigrationHook, none, lambda self: None)
    made.records.begin(record(Phase.MIGRATED))
    return made


def item(**place):
    (found,) = parse_fleet([{**PLACE, **place}])
    return {"place": json.loads(json.dumps(vars(found))), "workload": GPU, "trouble": ""}


def ran(cluster, outcome, run=RUN):
    """Leave what a canary leaves."""
    canary = Canary(1.0, canary_run_id(run, GPU), "run-1", outcome, f"it {outcome}s", (), {}, None, None, None)
    Histories(cluster.kube, NAMESPACE, GPU).update(lambda found: found.with_canary(canary, {}))


def go_back(item, context=CONTEXT):
    return GoBackOperator(task_id="go_back", item=item).execute(context)


# ------------------------------------------------------------------------------------------ wiring


def test_each_workload_has_its_own_canary_and_way_back_and_a_failure_stays_red():
    dag = DagBag(ROOT / "dags" / "tpu_canary_revalidation.py").dags["tpu_canary_revalidation"]
    back = dag.task_dict["workload.go_back"]
    assert dag.task_dict["workload.canary"].downstream_task_ids == {"workload.go_back"}
    assert back.is_teardown, "it runs after a failed canary"
    assert not back.on_failure_fail_dagrun, "else it would be the leaf that says how the run ended"
    assert back.trigger_dag_id in DagBag(ROOT / "dags").dags
    assert (dag.max_active_runs, dag.catchup) == (1, False)


def test_the_schedule_is_one_setting(monkeypatch):
    monkeypatch.setenv("TPU_MIGRATION_CANARY_SCHEDULE", "17 3 * * *")
    found = DagBag(ROOT / "dags" / "tpu_canary_revalidation.py").dags["tpu_canary_revalidation"]
    assert found.schedule == "17 3 * * *"


def test_the_way_back_asks_before_it_begins():
    dag = DagBag(ROOT / "dags" / "gpu_fallback.py").dags["gpu_fallback"]
    assert dag.task_dict["gpu_fallback"].upstream_task_ids == {"ask"}
    assert dag.task_dict["gpu_fallback"].trigger_rule == "all_success"
    assert dag.params["ask"] is False


# ------------------------------------------------------------------------------------------ canary


def test_the_stage_gets_the_place_and_a_run_id_that_no_neighbour_has(cluster, monkeypatch):
    taken = []
    monkeypatch.setattr(CanaryOperator, "_run", lambda self, *given: taken.append(given))
    CanaryOperator(task_id="canary", item=item(on_fail=AUTO)).execute(CONTEXT)
    ((params, run_id, attempt),) = taken
    assert stage_run("canary", params, run_id, attempt).context.lease.holder.run_id == f"{RUN}/{GPU}"
    assert params["workload"] == GPU


def test_a_blackout_is_no_time_for_a_canary(cluster):
    start = (dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)).isoformat()
    with pytest.raises(AirflowSkipException, match="left alone: a blackout from"):
        CanaryOperator(task_id="canary", item=item(blackouts=[{"start": start, "hours": 2}])).execute(CONTEXT)


def ticks(first: dt.datetime, last: dt.datetime):
    """Return when Airflow's own timetable starts the canaries' DAG."""
    schedule = DagBag(ROOT / "dags" / "tpu_canary_revalidation.py").dags["tpu_canary_revalidation"].schedule
    timetable = CronTriggerTimetable(schedule, timezone="UTC")
    span = TimeRestriction(earliest=pendulum.instance(first), latest=pendulum.instance(last), catchup=True)
    before = None
    while (info := timetable.next_dagrun_info(last_automated_data_interval=before, restriction=span)) is not None:
        yield info.run_after
        before = info.data_interval


def test_the_schedule_runs_into_a_blackout_and_out_of_it(cluster, monkeypatch):
    blackout = {"start": "2026-11-26T00:00:00-08:00", "hours": 48}
    monkeypatch.setattr(CanaryOperator, "_run", lambda self, *given: "measured")
    measured, skipped = [], []
    for tick in ticks(dt.datetime(2026, 11, 25, tzinfo=dt.UTC), dt.datetime(2026, 11, 30, tzinfo=dt.UTC)):
        monkeypatch.setattr(SystemClock, "now", lambda self, tick=tick: tick.timestamp())
        try:
            CanaryOperator(task_id="canary", item=item(blackouts=[blackout])).execute(CONTEXT)
            measured.append(f"{tick:%d %H:%M}")
        except AirflowSkipException:
            skipped.append(f"{tick:%d %H:%M}")
    assert skipped == [f"{day} {hour}:41" for day, hour in zip([26] * 2 + [27] * 4 + [28] * 2, WHEN, strict=True)]
    assert measured[3:6] == ["25 18:41", "26 00:41", "26 06:41"]
    assert measured[6] == "28 12:41"


WHEN = ["12", "18", "00", "06", "12", "18", "00", "06"]


def test_a_place_that_cannot_be_looked_at_is_red(cluster):
    broken = {**item(), "trouble": "no answer"}
    with pytest.raises(AirflowFailException, match="could not be looked at: no answer"):
        CanaryOperator(task_id="canary", item=broken).execute(CONTEXT)
    with pytest.raises(AirflowSkipException):
        go_back({**broken, "workload": ""})


@pytest.mark.parametrize(
    ("day", "hour", "closed"),
    [(26, 7, True), (26, 6, False), (27, 23, True), (28, 8, False), (33, 7, True)],
)
def test_a_schedule_goes_around_a_blackout_that_comes_every_week(day, hour, closed):
    blackout = {"start": "2026-11-26T00:00:00-08:00", "hours": 48, "recurrence": "FREQ=WEEKLY"}
    (place,) = parse_fleet([{**PLACE, "blackouts": [blackout]}])
    now = dt.datetime(2026, 11, 1, hour, 30, tzinfo=dt.UTC) + dt.timedelta(days=day - 1)
    assert bool(place.blackout(now.timestamp(), 3600.0)) is closed, "an hour before it opens is too late"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"on_fail": "maybe"}, "on_fail='maybe' must be one of auto, ask, alert"),
        ({"blackouts": "noon"}, "must be a list of spans"),
        ({"blackouts": [{"start": "2026-11-26T00:00:00", "hours": 1}]}, "start needs an offset"),
        ({"blackouts": [{"start": "2026-11-26T00:00:00Z"}]}, "blackout .*hours"),
        ({"blackouts": [{"start": "2026-11-26T00:00:00Z", "hours": 0}]}, "hours must be above 0"),
        ({"blackouts": [{"start": "2026-11-26T00:00:00Z", "hours": 1, "recurrence": "often"}]}, "blackout .*"),
        ({"blackouts": [{"start": "2026-11-26T00:00:00Z", "hours": 1, "end": "x"}]}, r"\['end'\] is not known"),
        ({"blackouts": ["noon"]}, "blackout 'noon'"),
    ],
)
def test_a_blackout_that_cannot_be_meant_is_refused_with_an_example(entry, words):
    with pytest.raises(FleetError, match=words):
        parse_fleet([{**PLACE, **entry}])


# ---------------------------------------------------------------------------------------- way back


def test_people_are_asked_by_default_with_the_finding_and_only_once(cluster):
    ran(cluster, "fail")
    with pytest.raises(DagRunTriggerException) as told:
        go_back(item())
    assert told.value.trigger_dag_id == "gpu_fallback"
    assert told.value.conf | {"ask": True, "why": "it fails", "workload": GPU} == told.value.conf
    with pytest.raises(DagRunTriggerException):
        go_back(item())  # the same task once more: its first try may have died before Airflow heard of it
    ran(cluster, "fail", "scheduled__2")
    with pytest.raises(AirflowSkipException, match="people were asked by scheduled__1/"):
        go_back(item(), {**CONTEXT, "run_id": "scheduled__2"})
    histories = Histories(cluster.kube, NAMESPACE, GPU)
    histories.update(lambda found: replace(found, asked=replace(found.asked, at=1.0)))  # and nobody answered
    with pytest.raises(DagRunTriggerException):
        go_back(item(), {**CONTEXT, "run_id": "scheduled__2"})


def test_auto_goes_back_without_asking(cluster):
    ran(cluster, "fail")
    with pytest.raises(DagRunTriggerException) as told:
        go_back(item(on_fail=AUTO))
    assert told.value.conf["ask"] is False
    assert Histories(cluster.kube, NAMESPACE, GPU).read().asked is None


def test_alert_does_nothing(cluster):
    ran(cluster, "fail")
    with pytest.raises(AirflowSkipException, match="alert"):
        go_back(item(on_fail=ALERT))


@pytest.mark.parametrize("outcome", ["pass", "warn", "undecided"])
@pytest.mark.parametrize("policy", [AUTO, ASK])
def test_only_a_failure_in_the_history_goes_back_whatever_the_task_says(cluster, outcome, policy):
    ran(cluster, outcome)
    with pytest.raises(AirflowSkipException, match="has not failed"):
        go_back(item(on_fail=policy))


def test_a_way_back_that_is_paused_is_red_and_nobody_counts_as_asked(cluster):
    ran(cluster, "fail")
    ti = SimpleNamespace(**{**vars(TI), "get_dag": lambda dag_id: SimpleNamespace(is_paused=True)})
    with pytest.raises(Exception, match="gpu_fallback is paused"):
        go_back(item(), {**CONTEXT, "ti": ti})
    assert Histories(cluster.kube, NAMESPACE, GPU).read().asked is None


# ------------------------------------------------------------------------------------- the question


def asking(**params):
    told = {"ask": True, "why": "p95 TTFT 900 ms > limit 700 ms", "workload": GPU, "namespace": NAMESPACE}
    return {**CONTEXT, "params": {**told, **params}}


def answered(option):
    now = dt.datetime.now(dt.UTC)
    return {"chosen_options": [option], "params_input": {}, "responded_at": now, "responded_by_user": {"name": "Ada"}}


@pytest.fixture
def shown(monkeypatch):
    """What Airflow is told to show."""
    from airflow.providers.standard.operators import hitl

    asked: dict[str, object] = {}
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **given: asked.update(given))
    monkeypatch.setattr(notices, "tell", lambda notice: None)
    return asked


def asked_in(cluster):
    return Histories(cluster.kube, NAMESPACE, GPU).read().asked


def waiting(cluster):
    """Ask, and return the operator and the trigger that it waits with."""
    operator = AskBackOperator(task_id="ask", response_timeout=dt.timedelta(days=3))
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(asking())
    return operator, deferred.value.trigger


def test_a_run_that_asks_nobody_goes_on_at_once():
    assert AskBackOperator(task_id="ask").execute(asking(ask=False)) == "nobody is to be asked"


def test_the_question_carries_the_finding_and_how_to_answer_it(cluster, shown, monkeypatch):
    told = []
    monkeypatch.setattr(notices, "tell", told.append)
    waiting(cluster)
    assert GPU in shown["subject"]
    assert shown["body"] == f"p95 TTFT 900 ms > limit 700 ms\n\nAt a terminal: `tpu-migration approve {GPU}`"
    assert shown["defaults"] == [REJECT]
    assert asked_in(cluster).back == RUN
    (notice,) = told
    assert notice.title == f"{GPU}: back to the GPUs?"
    assert notice.body.endswith(f"Answer in Airflow, or `tpu-migration approve {GPU}`.")


@pytest.mark.parametrize(("option", "approved"), [(APPROVE, True), (REJECT, False)])
def test_what_people_answer_in_airflow_is_followed_and_kept_in_the_history(cluster, shown, option, approved):
    operator, _ = waiting(cluster)
    if approved:
        assert operator.execute_complete(asking(), answered(option)) == "approved by Ada in Airflow"
    else:
        with pytest.raises(AirflowSkipException, match="rejected by Ada in Airflow: users stay"):
            operator.execute_complete(asking(), answered(option))
    assert (asked_in(cluster).approved, asked_in(cluster).by) == (approved, "Ada in Airflow")


@pytest.mark.parametrize("argv", [[], ["--reject"]])
def test_what_people_answer_at_a_terminal_ends_the_question_in_airflow(cluster, shown, monkeypatch, argv):
    monkeypatch.setattr(kubernetes, "from_environment", lambda: cluster.kube)
    monkeypatch.setenv("USER", "ada")
    operator, trigger = waiting(cluster)
    path, values = trigger.serialize()
    assert path == "tpu_migration.triggers.answer.WayBackTrigger"
    assert not WayBackTrigger(**values)._look(), "nobody has answered"
    assert main(["approve", GPU, "--namespace", NAMESPACE, *argv]) == 0
    assert "by ada at a terminal" in trigger._look()
    event = asyncio.run(anext(trigger.run())).payload
    if argv:
        with pytest.raises(AirflowSkipException, match="rejected by ada at a terminal"):
            operator.execute_complete(asking(), event)
    else:
        assert operator.execute_complete(asking(), event) == "approved by ada at a terminal"
    # Whoever answers in Airflow in the same moment is too late.
    if not argv:
        assert operator.execute_complete(asking(), answered(REJECT)) == "approved by ada at a terminal"


def test_an_answer_that_was_quicker_than_the_task_is_followed_at_once(cluster, shown):
    Histories(cluster.kube, NAMESPACE, GPU).update(
        lambda found: found.asking(RUN, 1.0).answered(RUN, approved=True, by="ada", reason="", now=2.0)
    )
    assert AskBackOperator(task_id="ask").execute(asking()) == "approved by ada"
    assert not shown


def test_silence_is_a_no_that_is_kept(cluster, shown):
    operator, trigger = waiting(cluster)
    trigger.until = 1.0
    event = asyncio.run(anext(trigger.run())).payload
    with pytest.raises(AirflowSkipException, match="rejected by nobody: users stay"):
        operator.execute_complete(asking(), event)
    assert asked_in(cluster).told == "rejected by nobody: no answer in time"


def test_a_cluster_that_does_not_answer_leaves_the_question_to_airflow_and_its_answer_is_followed(
    cluster, shown, monkeypatch
):
    operator, _ = waiting(cluster)

    def down(self):
        raise TransientError("no answer")

    monkeypatch.setattr(migration.MigrationHook, "kubernetes", down)
    assert operator.execute_complete(asking(), answered(APPROVE)) == "approved by Ada in Airflow"


def test_people_are_asked_anew_when_their_yes_came_to_nothing(cluster):
    ran(cluster, "fail")
    with pytest.raises(DagRunTriggerException):
        go_back(item())
    back = asked_in(cluster).back
    answer_way_back(cluster.kube, NAMESPACE, GPU, back, approved=True, by="ada", reason="", clock=SystemClock())
    ran(cluster, "fail", "scheduled__2")
    with pytest.raises(DagRunTriggerException):
        go_back(item(), {**CONTEXT, "run_id": "scheduled__2"})


def test_the_reason_reaches_the_stage_and_is_no_part_of_the_plan(cluster):
    run = stage_run("gpu_fallback", {"workload": GPU, "namespace": NAMESPACE, "why": "slow", "ask": True}, "back-1", 1)
    assert run.context.why == "slow"
    assert run.context.proves_gpus
    assert not stage_run("gpu_fallback", {"workload": GPU, "prove": False}, "back-1", 1).context.proves_gpus
