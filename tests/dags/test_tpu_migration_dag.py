"""The DAG holds together in the real Airflow: it parses fast, arms its way back, and holds no worker."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowFailException, ParamValidationError, TaskDeferred
from airflow.triggers.base import TaskSuccessEvent

from sandbox.api import Api, LocalClient, Request
from sandbox.clock import VirtualClock
from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.clients.transport import Response
from tpu_migration.clock import SystemClock
from tpu_migration.domain.capacity import KINDS
from tpu_migration.domain.plan import APPROVALS, ON_FALLBACK, RELEASES, STOPS, TARGETS, Plan, PlanError
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.hooks import run as hooks_run
from tpu_migration.lease import Holder
from tpu_migration.operators.ask import AskOperator
from tpu_migration.operators.stage import PATIENCE_S, StageOperator
from tpu_migration.stages import STAGES
from tpu_migration.stages.base import Context, Done, Failed, Stage, Waiting
from tpu_migration.stages.run import StageRun
from tpu_migration.triggers import stage as triggers
from tpu_migration.triggers.stage import StageTrigger, event

ROOT = Path(__file__).parents[2]
ORDER = ["preflight", "provision", "deploy", "warm_up", "gate", "shift", "decommission"]
TRIGGER = {"stage": "gate", "params": {"workload": "vllm", "steps": [1, 100]}, "run_id": "r", "attempt": 2}


@pytest.fixture(scope="session")
def bag():
    return DagBag(ROOT / "dags")


@pytest.fixture(scope="session")
def dag(bag):
    return bag.dags["tpu_migration"]


@pytest.fixture(scope="session")
def params(dag):
    return {name: dag.params.get_param(name) for name in dag.params}


# -------------------------------------------------------------------------------- it parses


def test_every_dag_file_imports_without_an_error(bag):
    assert bag.import_errors == {}
    assert "tpu_migration" in bag.dags


def test_parsing_loads_no_client_library_for_the_scheduler_does_it_all_day():
    heavy = ("kubernetes", "grpc", "google.cloud.container", "google.cloud.container_v1", "numpy", "scipy", "aiohttp")
    code = (
        "import runpy, sys\n"
        "found = runpy.run_path('dags/tpu_migration.py')['dag']\n"
        f"print(found.dag_id, [name for name in {heavy!r} if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "plugins")}
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == "tpu_migration []"


def test_airflow_does_not_execute_the_package_as_plugins():
    ignored = (ROOT / "plugins" / ".airflowignore").read_text().split()
    assert "tpu_migration" in ignored


def test_the_dag_survives_the_way_through_the_database(dag):
    from airflow.serialization.serialized_objects import DagSerialization

    stored = json.loads(json.dumps(DagSerialization.to_dict(dag)))
    again = DagSerialization.from_dict(stored)
    assert [task.task_id for task in again.tasks] == [task.task_id for task in dag.tasks]
    assert again.task_dict["restore"].is_teardown
    assert again.task_dict["restore"].on_failure_fail_dagrun
    assert again.doc_md == dag.doc_md


@pytest.mark.parametrize("name", ["tpu_migration", "gpu_fallback"])
def test_no_workload_waits_for_the_end_of_anothers_run(bag, name):
    assert bag.dags[name].max_active_runs >= 200


# -------------------------------------------------------------------------------- its shape


def test_the_stages_follow_each_other_in_the_order_of_the_design(dag):
    in_order = [task.task_id for task in dag.topological_sort() if not isinstance(task, AskOperator)]
    assert in_order == ["arm", *ORDER, "restore"]
    for before, after in zip(["arm", *ORDER], [*ORDER, "restore"], strict=True):
        assert after in dag.task_dict[before].downstream_task_ids


def test_every_task_but_the_arming_and_the_questions_runs_the_stage_of_its_name(dag):
    for task in dag.tasks:
        if task.task_id != "arm" and not isinstance(task, AskOperator):
            assert isinstance(task, StageOperator)
            assert task.stage == task.task_id
            assert task.stage in STAGES
    assert set(STAGES) == {*ORDER, "restore"}


def test_the_teardown_is_armed_by_a_setup_that_needs_no_worker(dag):
    arm = dag.task_dict["arm"]
    assert arm.is_setup
    assert arm.task_type == "EmptyOperator"
    assert not arm.on_execute_callback
    assert not arm.on_success_callback
    assert not arm.outlets, "with any of these the scheduler would send the empty task to a worker"
    assert [task.task_id for task in dag.tasks if task.is_setup] == ["arm"]


def test_the_restore_is_a_teardown_that_turns_the_run_red_when_it_fails(dag):
    restore = dag.task_dict["restore"]
    assert restore.is_teardown
    assert restore.on_failure_fail_dagrun
    assert restore.trigger_rule == "all_done_setup_success"
    assert "arm" in restore.upstream_task_ids
    assert [task.task_id for task in dag.tasks if task.is_teardown] == ["restore"]


def test_no_stage_goes_on_after_a_stage_that_failed(dag):
    assert {dag.task_dict[stage].trigger_rule for stage in ORDER} == {"all_success"}


def test_there_is_no_dagrun_timeout_for_it_would_skip_the_teardown(dag):
    assert dag.dagrun_timeout is None


def test_nothing_starts_by_itself(dag):
    assert not dag.catchup
    assert not dag.timetable.can_be_scheduled


def test_a_worker_that_died_is_retried_soon(dag):
    for stage in (*ORDER, "restore"):
        task = dag.task_dict[stage]
        assert task.retries >= 1
        assert task.retry_delay.total_seconds() <= 30


def test_the_page_shows_the_picture_and_every_task(dag):
    assert "preflight → provision → deploy → warm_up → gate → shift → decommission" in dag.doc_md
    assert "any failure before the commit" in dag.doc_md
    for stage in (*ORDER, "restore"):
        assert f"| `{stage}` |" in dag.doc_md
    assert "tpu-migration restore" in dag.doc_md


# ---------------------------------------------------------------------------- its parameters


def empty(value):
    """Airflow's form leaves an optional text empty as null; the plan means "" by it."""
    return "" if value is None else value


def test_every_parameter_is_a_field_of_the_plan_with_the_same_default_and_vice_versa(params):
    defaults = {field.name: getattr(Plan(), field.name) for field in dataclasses.fields(Plan)}
    assert set(params) == set(defaults)
    for name, param in params.items():
        default = tuple(param.value) if isinstance(param.value, list) else empty(param.value)
        assert default == defaults[name], name


def test_the_defaults_pass_airflows_validation_and_the_plans(dag):
    values = dag.params.validate()
    assert Plan.from_params(values) == Plan()
    assert Plan.from_params(json.loads(json.dumps(values))) == Plan(), "as a run's conf comes back from the database"


def test_a_person_finds_a_title_and_a_section_at_each_field_and_the_sections_hold_together(params):
    sections = []
    for name, param in params.items():
        schema = param.schema
        assert schema.get("title"), name
        assert schema.get("section"), name
        if schema["section"] not in sections:
            sections.append(schema["section"])
        assert schema["section"] == sections[-1], f"{name} tears its section apart"
    assert max(Counter(param.schema["title"] for param in params.values()).values()) == 1


def test_whatever_is_not_plain_from_its_title_is_described(params):
    plain = {"project_id", "cluster"}
    assert {name for name, param in params.items() if not param.description} <= plain


def test_the_choices_of_the_form_are_those_of_the_plan(params):
    for name, choices in (
        ("target", TARGETS),
        ("capacity", KINDS),
        ("stop_after", STOPS),
        ("source_release", RELEASES),
        ("on_fallback", ON_FALLBACK),
    ):
        assert tuple(params[name].schema["enum"]) == choices
    assert tuple(params["approvals"].schema["items"]["enum"]) == APPROVALS


def test_every_policy_of_the_form_is_there(params):
    for name in params["policy"].schema["enum"]:
        assert (ROOT / "include" / "policies" / f"{name}.yaml").is_file()


def test_form_and_plan_draw_the_same_bounds_round_every_number(params):
    numbers = {name: p.schema for name, p in params.items() if p.schema.get("type") in ("number", "integer")}
    assert {"peak_rps", "target_replicas", "bake_s", "soak_s"} <= set(numbers)
    for name, schema in numbers.items():
        low, high = schema["minimum"], schema["maximum"]
        for value in (low, high):
            assert params[name].resolve(value) == value
            Plan.from_params({name: value})
        for value in (low - 1, high + 1):
            with pytest.raises(ParamValidationError):
                params[name].resolve(value)
            with pytest.raises(PlanError, match=name):
                Plan.from_params({name: value})


def test_steps_out_of_range_are_refused_by_the_form_already(params):
    for steps in ([0, 100], [1, 101], ["all"], "100"):
        with pytest.raises(ParamValidationError):
            params["steps"].resolve(steps)
        with pytest.raises(PlanError, match="steps"):
            Plan.from_params({"steps": steps})


def test_a_form_sent_as_it_stands_is_a_valid_run(dag):
    from airflow.sdk.definitions.param import process_params

    sent = {"workload": "vllm", "peak_rps": 4, "route": None, "reservation": None}
    values = process_params(dag, dag.task_dict["preflight"], sent, suppress_exception=False)
    plan = Plan.from_params(values)
    assert (plan.workload, plan.peak_rps, plan.route, plan.reservation) == ("vllm", 4.0, "", "")


# ------------------------------------------------------------------------------- the operator


class Scripted:
    """A stage whose steps a test writes down; its clients reach an empty namespace."""

    def __init__(self, *outcomes, budget_s=100.0):
        self.outcomes = list(outcomes)
        self.api = Api(VirtualClock())
        LocalClient(self.api).create("namespaces", {"metadata": {"name": "inference"}})
        self.kube = Kubernetes(self._send)
        self.stage = Stage("gate", self._step, lambda plan: budget_s, takes_lease=False)
        self.asked = []

    def _send(self, method, path, *, query, content_type, body, timeout_s):
        payload = json.dumps(body).encode() if body is not None else b""
        answer = self.api.handle(Request(method, path, dict(query), {"content-type": content_type}, payload, "admin"))
        return Response(answer.status, answer.body)

    def _step(self, context):
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def stage_run(self, stage, params, run_id, attempt):
        self.asked.append((stage, run_id, attempt))
        plan = Plan.from_params(params)
        pools = NodePools(None, plan.project_id, plan.location, plan.cluster)
        context = Context.create(plan, Holder(run_id, stage, attempt), self.kube, pools, SystemClock())
        return StageRun(self.stage, context)


@pytest.fixture
def scripted(monkeypatch):
    def use(*outcomes, **options):
        made = outcomes[0] if isinstance(outcomes[0], Scripted) else Scripted(*outcomes, **options)
        monkeypatch.setattr(hooks_run, "stage_run", made.stage_run)
        monkeypatch.setattr(triggers, "stage_run", made.stage_run)
        return made

    return use


def context(**params):
    return {"params": params, "run_id": "manual__2026-11-22", "ti": SimpleNamespace(try_number=2)}


def execute(**params):
    return StageOperator(task_id="gate").execute(context(**params))


def test_a_stage_that_is_done_at_once_ends_in_the_worker(scripted):
    made = scripted(Waiting(0, "one more thing"), Waiting(0.01, "another"), Done({"verdict": "pass"}))
    assert execute() == {"verdict": "pass"}
    assert made.asked == [("gate", "manual__2026-11-22", 2)]


def test_a_stage_that_really_waits_defers_and_holds_no_slot(scripted):
    scripted(Waiting(10 * PATIENCE_S, "waiting for nodes"), budget_s=500.0)
    before = time.time()
    with pytest.raises(TaskDeferred) as deferred:
        execute(workload="vllm")
    assert time.time() - before < PATIENCE_S, "it must not sit the wait out in the worker"
    assert deferred.value.method_name == "resume"
    assert deferred.value.timeout.total_seconds() > 500.0, "execution_timeout does not bound a deferral"
    _, kwargs = deferred.value.trigger.serialize()
    assert kwargs["params"] == {"workload": "vllm"}
    assert (kwargs["stage"], kwargs["run_id"], kwargs["attempt"]) == ("gate", "manual__2026-11-22", 2)
    assert before + 500.0 <= kwargs["deadline"] <= time.time() + 500.0


def test_a_stage_that_fails_says_why_and_is_not_retried(scripted):
    scripted(Failed("p95 TPOT 91 ms > limit 70 ms"))
    with pytest.raises(AirflowFailException, match="p95 TPOT 91 ms > limit 70 ms"):
        execute()


def test_a_crash_in_a_stage_is_a_failure_with_its_name_and_no_retry(scripted):
    scripted(KeyError("spec"))
    with pytest.raises(AirflowFailException, match="unexpected KeyError in stage gate"):
        execute()


def test_a_cluster_that_does_not_answer_yet_is_waited_for_in_the_triggerer(monkeypatch):
    def away(*_):
        raise TransientError("the GKE API does not answer")

    monkeypatch.setattr(hooks_run, "stage_run", away)
    with pytest.raises(TaskDeferred):
        execute()


def test_parameters_that_make_no_plan_fail_with_every_problem_before_anything_is_called():
    with pytest.raises(AirflowFailException) as refused:
        execute(workload="Bad_Name", steps=[5, 1])
    assert "Bad_Name" in str(refused.value)
    assert "[5, 1]" in str(refused.value)


def test_a_failed_event_fails_the_task_with_its_reason():
    failed = event(Failed("no stock in us-west4-a", "timeout")).payload
    with pytest.raises(AirflowFailException, match="no stock in us-west4-a"):
        StageOperator(task_id="gate").resume(context(), failed)


def test_a_stage_that_is_done_ends_its_task_without_a_worker_and_leaves_its_result():
    ended = event(Done({"pool": "tpu", "buckets": (16, 32)}))
    assert isinstance(ended, TaskSuccessEvent)
    assert ended.xcoms == {"return_value": {"pool": "tpu", "buckets": [16, 32]}}


def test_the_restore_of_a_run_that_made_nothing_is_red_and_touches_nothing(scripted):
    made = scripted(Scripted(Done()))
    made.stage = STAGES["restore"]
    with pytest.raises(AirflowFailException, match="see the failed stage"):
        StageOperator(task_id="restore").execute(context(workload="vllm"))
    client = LocalClient(made.api)
    assert client.list("configmaps", "inference") == []
    assert client.list("httproutes", "inference") == []


# -------------------------------------------------------------------------------- the trigger


def test_the_trigger_comes_back_from_the_database_as_it_was():
    from airflow.models.trigger import Trigger

    first = StageTrigger(**TRIGGER, deadline=1_795_305_600.5, due=1_795_300_000.25)
    row = Trigger.from_object(first)
    again = StageTrigger(**row.kwargs)
    assert row.classpath == "tpu_migration.triggers.stage.StageTrigger"
    assert again.serialize() == first.serialize()
    assert json.loads(json.dumps(again.serialize()[1])) == {
        **TRIGGER,
        "deadline": 1_795_305_600.5,
        "due": 1_795_300_000.25,
    }


def test_the_trigger_undoes_nothing_when_a_triggerer_restarts():
    assert "cleanup" not in vars(StageTrigger)
    assert "on_kill" not in vars(StageTrigger)


async def fired(deadline_in=600.0):
    trigger = StageTrigger(**{**TRIGGER, "params": {"workload": "vllm"}}, deadline=time.time() + deadline_in)
    events = [each async for each in trigger.run()]
    assert len(events) == 1, "a trigger fires once"
    return events[0]


async def test_the_trigger_steps_until_the_stage_is_done(scripted):
    made = scripted(Waiting(0, "a"), Waiting(0.01, "b"), Done({"pool": "tpu"}))
    assert (await fired()).xcoms == {"return_value": {"pool": "tpu"}}
    assert made.asked == [("gate", "r", 2)]


async def test_the_trigger_waits_for_as_long_as_the_worker_had_written_down(scripted, monkeypatch):
    scripted(Done({}))
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(triggers.asyncio, "sleep", sleep)
    trigger = StageTrigger(**{**TRIGGER, "params": {}}, deadline=time.time() + 600, due=time.time() + 100)
    assert [type(each) async for each in trigger.run()] == [TaskSuccessEvent]
    assert slept[0] == pytest.approx(100, abs=10), "the record says already that this was waited for"


async def test_the_trigger_ends_with_the_reason_of_a_failure(scripted):
    scripted(Waiting(0, "a"), Failed("no stock", "permanent"))
    assert (await fired()).payload == {"reason": "no stock", "kind": "permanent"}


async def test_a_trigger_goes_on_where_a_call_got_no_answer(scripted):
    scripted(TransientError("no answer"), Done({}))
    assert isinstance(await fired(), TaskSuccessEvent)


async def test_a_stage_that_outstays_its_budget_fails_with_what_it_waited_for(scripted):
    scripted(Waiting(0.01, "waiting for nodes"), budget_s=100.0)
    outcome = (await fired(deadline_in=-1.0)).payload
    assert outcome["kind"] == "timeout"
    assert re.search(r"stage gate took more than its 100 s: waiting for nodes", outcome["reason"])


async def test_a_plan_that_is_no_plan_any_more_ends_the_trigger(monkeypatch):
    def refuse(*_):
        raise PermanentError("unknown parameter 'x'")

    monkeypatch.setattr(triggers, "stage_run", refuse)
    assert (await fired()).payload == {"reason": "unknown parameter 'x'", "kind": "permanent"}


async def test_a_cluster_that_stays_away_past_the_deadline_ends_the_trigger(monkeypatch):
    def away(*_):
        raise TransientError("the GKE API does not answer")

    monkeypatch.setattr(triggers, "stage_run", away)
    assert (await fired(deadline_in=-1.0)).payload == {"reason": "the GKE API does not answer", "kind": "timeout"}


async def test_many_stages_at_once_step_in_a_pool_of_their_own(scripted):
    import asyncio
    import threading

    names = set()
    both = threading.Barrier(8, timeout=30.0)  # broken unless all eight step at the same time

    class Meeting(Scripted):
        def _step(self, context):
            names.add(threading.current_thread().name)
            both.wait()
            return Done({})

    scripted(Meeting(Done({})))
    outcomes = await asyncio.gather(*(fired() for _ in range(8)))
    assert [type(each) for each in outcomes] == [TaskSuccessEvent] * 8
    assert all(name.startswith("tpu-migration-step") for name in names)
