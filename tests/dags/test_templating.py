"""What comes from a form, a cluster or a log is never a template: Jinja would run it beside Airflow's secrets."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import BaseOperator
from airflow.sdk.definitions._internal.mixins import ResolveMixin
from airflow.sdk.definitions.mappedoperator import MappedOperator

from tpu_migration.operators.notices import MigrationNotifier

ROOT = Path(__file__).parents[2]
HOSTILE = "{{ 7*7 }} {{ conn.google_cloud_default.password }} {% for x in ().__class__.__base__.__subclasses__() %}"
# Of these the text is our own, or set after Airflow has rendered.
KNOWN = {
    "AskOperator": {"subject", "body"},
    "AskBackOperator": {"subject", "body"},
    "GoBackOperator": {"item", "trigger_dag_id", "trigger_run_id", "logical_date", "conf", "run_after", "note",
                       "wait_for_completion", "skip_when_already_exists", "partition_key"},
    "WatchOperator": {"item"},
    "CanaryOperator": {"item"},
    "FeatureWatchOperator": {"items"},
}  # fmt: skip


@pytest.fixture(scope="module")
def dags():
    found = DagBag(ROOT / "dags")
    assert found.import_errors == {}
    return found.dags


def test_no_operator_renders_a_field_that_is_not_known_here(dags):
    for dag in dags.values():
        for task in dag.tasks:
            templated = set(task.template_fields)
            if task.task_type != "EmptyOperator":
                assert templated <= KNOWN.get(task.task_type, set()), f"{dag.dag_id}.{task.task_id}"


def test_the_only_templates_in_our_dags_are_our_own_words(dags):
    """Each names a value; Jinja puts it in, and does not look into it again."""
    for dag in dags.values():
        for task in dag.tasks:
            for field in ("subject", "body", "conf", "trigger_run_id"):
                assert "{{" not in str(getattr(task, field, "") or ""), f"{dag.dag_id}.{task.task_id}.{field}"


class Upstream:
    """What a mapped task knows of the one before it: XComs, pulled as Airflow's own resolver does."""

    map_index = 0
    run_id = "run-1"

    def __init__(self, value):
        self.value = value

    def xcom_pull(self, **_):
        return self.value

    def get_relevant_upstream_map_indexes(self, **_):
        return None


FOUND = {"place": {"cluster": HOSTILE}, "workload": "vllm", "trouble": HOSTILE}


def render(task, dag, seen):
    task._do_render_template_fields(task, task.template_fields, {}, dag.get_template_env(), seen)
    return task.item


def test_what_was_found_in_a_cluster_is_handed_on_and_not_rendered(dags):
    """The trouble with a cluster quotes its answer, and an answer of `{{ conn… }}` would fetch passwords."""
    (mapped,) = [each for each in dags["tpu_watch"].tasks if isinstance(each, MappedOperator)]
    given, seen = mapped.expand_input.resolve({"ti": Upstream([FOUND]), "expanded_ti_count": 1})
    assert render(mapped.unmap(given), dags["tpu_watch"], set(seen)) == FOUND


def test_what_a_mapped_group_is_given_is_not_rendered_either(dags):
    class Given(ResolveMixin):
        def iter_references(self):
            return iter(())

        def resolve(self, context):
            return FOUND

    dag = dags["tpu_canary_revalidation"]
    tasks = [each for each in dag.tasks if "item" in each.template_fields]
    assert {each.task_type for each in tasks} == {"CanaryOperator", "GoBackOperator"}
    for task in tasks:
        assert isinstance(task.item, ResolveMixin), "resolved by Airflow, which renders nothing of what it resolves"
        copied = copy(task)
        object.__setattr__(copied, "item", Given())
        assert render(copied, dag, set()) == FOUND


def test_a_reason_that_looks_like_a_template_is_told_as_it_is(dags):
    notifier = MigrationNotifier("{{ params.workload }}: back to the GPUs?", "{{ params.why or '' }}", "warning")
    context = {"params": {"workload": "vllm", "why": HOSTILE}, "dag": dags["gpu_fallback"]}
    notifier.render_template_fields(context, dags["gpu_fallback"].get_template_env())
    assert (notifier.title, notifier.body) == ("vllm: back to the GPUs?", HOSTILE)


def test_what_people_are_asked_is_set_after_airflow_has_rendered(monkeypatch):
    from tpu_migration.operators.ask import AskBackOperator

    asked = []
    parent = AskBackOperator.__mro__[1]
    monkeypatch.setattr(parent, "execute", lambda self, context: asked.append((self.subject, self.body)))
    task = AskBackOperator(task_id="ask")
    monkeypatch.setattr(AskBackOperator, "_history", lambda self, params, change: None)
    task.execute({"params": {"ask": True, "workload": "vllm", "why": HOSTILE}, "run_id": "r"})
    ((subject, body),) = asked
    assert subject == "Bring users of vllm back to their GPUs?"
    assert body.startswith(f"{HOSTILE}\n\nAt a terminal: ")


def test_a_stage_takes_its_parameters_as_they_are_and_renders_nothing():
    from tpu_migration.operators.stage import StageOperator

    assert tuple(StageOperator.template_fields) == tuple(BaseOperator.template_fields) == ()
    got = []
    task = StageOperator(task_id="preflight")
    task._run = lambda params, run_id, attempt: got.append(params)
    task.execute({"params": {"workload": HOSTILE}, "run_id": "r", "ti": SimpleNamespace(try_number=1)})
    assert got == [{"workload": HOSTILE}]
