"""Whole migrations through the real Airflow scheduler, real Envoy and real clients, with users on them."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from tests.e2e.story import BACK, IDLE, LEASE_S, ORPHANED, RESUMED, SLOW, Story, play
from tpu_migration.domain.phases import Phase

pytestmark = pytest.mark.e2e

GUARD_MARGIN_S = 5.0
RESTORE_S = 5.0


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Story:
    return asyncio.run(play(tmp_path_factory.mktemp("story")))


@pytest.mark.parametrize("workload", [RESUMED, SLOW, ORPHANED])
def test_no_user_noticed_anything(story, workload):
    users = story.users[workload]
    assert users["requests"] > 300
    assert (users["failed"], users["truncated"]) == (0, 0), users["errors"]


def test_killed_in_mid_shift_and_started_again_within_the_lease_the_migration_finishes(story):
    assert story.runs[RESUMED] == "success"
    assert story.records[RESUMED].phase is Phase.MIGRATED
    assert story.summaries[RESUMED]["route"] == {RESUMED: 0, f"{RESUMED}-tpu": 100}
    assert story.summaries[RESUMED]["safe_route"] == f"{RESUMED}-tpu"
    assert story.records[RESUMED].fallback is None


def test_gpus_are_given_up_once_people_said_yes_in_airflow_and_not_before(story):
    assert story.asked.phase is Phase.COMMITTED
    assert story.asked.source_capacity == story.asked.source.replicas
    assert story.questions[RESUMED]["subject"] == f"Give up the GPUs of {RESUMED}?"
    said = story.records[RESUMED].approval("decommission")
    assert (said.approved, said.by, said.reason) == (True, "admin in Airflow", "all quiet")
    assert story.records[RESUMED].source_capacity == 0


def test_a_tpu_too_slow_for_the_gate_ends_on_gpu_with_the_pool_gone_and_the_run_red(story):
    record, summary = story.records[SLOW], story.summaries[SLOW]
    assert story.runs[SLOW] == "failed"
    assert record.phase is Phase.FALLEN_BACK
    assert summary["route"] == {SLOW: 100, f"{SLOW}-tpu": 0}
    assert summary["verdict"]["outcome"] == "fail"
    assert "TPOT" in summary["fallback"]["reason"]
    assert "limit" in summary["fallback"]["reason"]
    assert not story.pools[SLOW]


def test_left_dead_the_guard_has_users_back_on_gpu_within_its_bound(story):
    assert story.route_with_airflow_dead == {ORPHANED: 100, f"{ORPHANED}-tpu": 0}
    assert story.guard_took_s <= LEASE_S + GUARD_MARGIN_S + RESTORE_S


def test_a_later_start_ends_the_orphaned_run_red_and_releases_its_tpus(story):
    record = story.records[ORPHANED]
    assert story.runs[ORPHANED] == "failed"
    assert record.phase is Phase.FALLEN_BACK
    assert "the guard" in record.fallback.actor
    assert not story.pools[ORPHANED]


def test_a_migrated_workload_is_looked_after_and_other_hands_are_named(story):
    assert story.runs["all-well"] == "success", story.logs["all-well"]
    assert story.runs["other-hands"] == "failed"
    assert f"HTTPRoute {RESUMED} carries epoch 999" in story.logs["other-hands"]


def test_a_migrated_workload_comes_back_to_its_gpus_and_no_user_notices(story):
    assert story.runs[BACK] == "success"
    assert story.records[BACK].phase is Phase.FALLEN_BACK
    assert story.route_back == {RESUMED: 100, f"{RESUMED}-tpu": 0}
    assert not story.pools[BACK]
    users = story.users[BACK]
    assert users["requests"] > 50
    assert (users["failed"], users["truncated"]) == (0, 0), users["errors"]


def test_a_second_run_is_refused_naming_the_holder_and_leaves_the_first_ones_traffic_alone(story):
    assert story.runs["second"] == "failed"
    assert f"is being migrated by run {ORPHANED}" in story.logs["second"]
    assert story.route_before_refusal == story.route_after_refusal == {ORPHANED: 0, f"{ORPHANED}-tpu": 100}


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("workload", "there is no such Deployment in namespace inference; there are: "),
        ("route", f"HTTPRoute {RESUMED} does not point at {IDLE} but at"),
        ("cluster", "check project_id, location, cluster and the connection"),
        ("token", "check project_id, location, cluster and the connection revoked"),
        ("peak", "peak_rps is not given"),
        ("unknown", "unknown parameter 'workloads': did you mean workload?"),
    ],
)
def test_bad_input_is_refused_in_preflight_with_one_message_that_helps(story, run, words):
    assert story.runs[run] == "failed"
    assert words in story.logs[run]


def test_no_worker_slot_is_held_while_a_stage_waits(story):
    assert story.states_while_waiting["shift"] == "deferred"
    assert story.running_while_waiting == 0


def test_the_summary_is_strict_json_and_the_report_stands_alone(story):
    for workload in (RESUMED, SLOW, ORPHANED):
        assert json.loads(json.dumps(story.summaries[workload], allow_nan=False))["workload"] == workload
        report = story.reports[workload]
        assert not re.search(r"https?:|url\((?!#)|@import", report.replace("http://www.w3.org", ""), re.IGNORECASE)
        assert "Simulated engines" in report
