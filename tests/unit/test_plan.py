"""A plan is checked whole before anything is made."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpu_migration.domain.plan import Plan, PlanError


def test_defaults_make_a_valid_plan():
    plan = Plan.from_params({})
    assert plan == Plan()
    assert plan.source_release == "keep"
    assert plan.steps == (1, 5, 25, 50, 100)


def test_an_unknown_parameter_is_refused_with_the_name_that_was_meant():
    with pytest.raises(PlanError, match="unknown parameter 'workloads': did you mean workload"):
        Plan.from_params({"workloads": "vllm"})


def test_every_problem_is_told_at_once():
    with pytest.raises(PlanError) as refused:
        Plan.from_params({"workload": "Bad_Name", "target": "tpu-v4", "steps": [5, 1], "capacity": "free"})
    for part in ("Bad_Name", "tpu-v4", "[5, 1]", "capacity='free'"):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    "params",
    [
        {"steps": []},
        {"steps": [50]},
        {"steps": [0, 100]},
        {"steps": [5, 5, 100]},
        {"steps": [5, 101]},
        {"steps": [True, 100]},
        {"peak_rps": -1},
        {"peak_rps": "12"},
        {"bake_s": 0},
        {"target_replicas": 0},
        {"target_replicas": True},
        {"capacity": "reservation"},
        {"policy": "../secret"},
        {"workload": "x" * 41},
        {"workload": "1st"},
        {"namespace": "a/b"},
    ],
)
def test_nonsense_is_refused(params):
    with pytest.raises(PlanError):
        Plan.from_params(params)


def test_an_optional_text_may_be_left_empty_in_the_form():
    assert Plan.from_params({"route": None, "reservation": None}) == Plan()
    with pytest.raises(PlanError, match="workload=None must be a str"):
        Plan.from_params({"workload": None})


def test_a_plan_survives_json_and_keeps_its_hash():
    plan = Plan.from_params({"peak_rps": 12, "steps": [10, 100]})
    again = Plan.from_params(plan.to_dict())
    assert again == plan
    assert again.hash == plan.hash


def test_the_hash_changes_with_every_field_but_the_connection():
    plan = Plan()
    for field in dataclasses.fields(Plan):
        value = getattr(plan, field.name)
        other = {bool: lambda v: not v, tuple: lambda v: (100,), str: lambda v: v + "x"}.get(
            type(value), lambda v: v + 1
        )
        changed = dataclasses.replace(plan, **{field.name: other(value)})
        assert (changed.hash == plan.hash) is (field.name == "gcp_conn_id"), field.name


@given(
    st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=8), max_size=4)
)
def test_no_input_makes_anything_but_a_plan_or_a_plan_error(params):
    try:
        assert isinstance(Plan.from_params(params), Plan)
    except PlanError as error:
        assert str(error)
