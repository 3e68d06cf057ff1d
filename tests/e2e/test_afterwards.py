"""A migrated workload is looked after, and comes back to its GPUs; people say no, or nothing."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.afterwards import AFTER, BACK, BEFORE, MIGRATED, REFUSED, SICK, SILENT, Afterwards, play
from tpu_migration.domain.phases import Phase

pytestmark = pytest.mark.afterwards


@pytest.fixture(scope="module")
def story(tmp_path_factory) -> Afterwards:
    return asyncio.run(play(tmp_path_factory.mktemp("afterwards")))


def test_a_migrated_workload_is_looked_after_and_other_hands_are_named(story):
    assert story.runs["all-well"] == "success", story.logs["all-well"]
    assert story.runs["other-hands"] == "failed"
    assert f"HTTPRoute {MIGRATED} carries epoch 999" in story.logs["other-hands"]


def test_the_schedule_starts_canaries_and_in_a_blackout_none_of_them_looks(story):
    assert {kind for _, kind in story.canaries} == {"scheduled"}
    for run, _ in story.canaries:
        assert story.runs[run] == "success"
        assert story.tasks[run]["workload.canary[0]"] == "skipped"
    assert {each.run for each in story.histories[BEFORE].canaries} == {f"{SICK}/{MIGRATED}"}


def test_a_degraded_workload_is_found_by_its_canary(story):
    assert story.runs[BEFORE] == "failed"
    assert story.tasks[BEFORE]["workload.canary[0]"] == "failed"
    (canary,) = story.histories[BEFORE].canaries
    assert canary.outcome == "fail"
    assert canary.sentence.startswith("failed 2 times, minutes apart: ")
    assert canary.sentence in story.logs[BEFORE]


def test_people_who_refuse_to_go_back_keep_their_users_on_tpu_and_the_run_green(story):
    (canary,) = story.histories[BEFORE].canaries
    assert story.questions[BACK]["subject"] == f"Bring users of {MIGRATED} back to their GPUs?"
    assert canary.sentence in story.questions[BACK]["body"]
    assert (story.runs["no"], story.tasks["no"]) == ("success", {"ask": "skipped", "gpu_fallback": "skipped"})
    assert story.routes["no"] == {MIGRATED: 0, f"{MIGRATED}-tpu": 100}


def test_what_a_canary_found_outlives_airflows_database_and_is_not_measured_again(story):
    assert story.runs_after_the_reset == 0
    assert story.runs[AFTER] == "failed"
    assert story.histories[AFTER].canaries == story.histories[BEFORE].canaries
    sentence = story.histories[AFTER].canaries[0].sentence
    assert sentence in story.logs[AFTER]
    assert f"fail: {sentence}" in story.logs["status"], "without any Airflow"
    assert "approval   way back: rejected by admin in Airflow" in story.logs["status"]


def test_the_gpus_come_back_for_what_was_found_and_no_user_notices(story):
    (canary,) = story.histories[BEFORE].canaries
    assert story.runs[BACK] == "success"
    record = story.records[BACK]
    assert record.phase is Phase.FALLEN_BACK
    assert record.fallback.reason == canary.sentence
    assert record.notes["rescue"]["outcome"] == "pass", "the GPUs were proven before"
    assert story.routes[BACK] == {MIGRATED: 100, f"{MIGRATED}-tpu": 0}
    assert not story.pools[BACK]
    users = story.users[BACK]
    assert users["requests"] > 300, "they were there all the time: degraded, asked, forgotten and brought back"
    assert (users["failed"], users["truncated"]) == (0, 0), users["errors"]


@pytest.mark.parametrize(("workload", "by"), [(REFUSED, "admin in Airflow"), (SILENT, "nobody")])
def test_a_shift_that_people_refuse_or_do_not_answer_moves_nobody_and_ends_green(story, workload, by):
    record = story.records[workload]
    said = record.approval("shift")
    assert (said.approved, said.by) == (False, by)
    assert (story.runs[workload], record.phase) == ("success", Phase.REJECTED)
    assert story.routes[workload] == {workload: 100, f"{workload}-tpu": 0}
    assert record.shift.written is None, "no weight was ever given to the TPU"
    assert not story.pools[workload]


def test_two_versions_of_a_matrix_make_one_event_that_names_the_workload(story):
    assert (story.runs["matrices-1"], story.runs["matrices-2"]) == ("success", "success")
    (event,) = story.events
    (news,) = event["news"]
    assert "google/gemma-3-27b-it is lost" in news
    assert f"concerns inference/{MIGRATED}" in news
