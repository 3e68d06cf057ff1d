"""The record is written by compare-and-swap only, and read only by a version that knows it."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import replace

import pytest
from cluster import GPU, NAMESPACE, TPU, Cluster, once, record, source

from tpu_migration.domain.phases import Phase
from tpu_migration.errors import ConflictError, PermanentError, SupersededError, TransientError
from tpu_migration.names import run_hash
from tpu_migration.record import (
    SCHEMA_VERSION,
    Fallback,
    Record,
    RecordError,
    Shift,
)
from tpu_migration.records import Records, all_records
from tpu_migration.snapshot import Snapshots

NAME = f"tpu-migration-{GPU}"


@pytest.fixture
def cluster():
    return Cluster()


def note(key, value):
    return lambda r: replace(r, notes={**r.notes, key: value})


# ------------------------------------------------------------------------ reading and writing


def test_what_was_written_is_read_back_to_the_last_field(cluster):
    full = record(
        verdict={"outcome": "pass", "sentence": "all good", "checks": []},
        shift=Shift(2, 25, 10.0, 20.0),
        fallback=Fallback("p99 too high", "the keeper", 1.0, 2.0, 3.5),
        notes={"warm_up": "12 shapes"},
        source=source(node_pools=("h100-pool",), hpa="vllm", hpa_min_replicas=1, max_model_len=32768),
        way_back=("tpu-migration deploy --accelerator gpu",),
    ).with_stage("gate", "done", 5.0, 9.0, "pass")
    full = full.with_question("shift", 3.0).with_answer("shift", approved=True, by="ada", reason="why", now=4.0)
    cluster.records.begin(full)
    assert cluster.records.read() == full


def test_no_record_is_none_and_not_an_error(cluster):
    assert cluster.records.read() is None
    assert all_records(cluster.kube, NAMESPACE) == {}


def test_a_person_sees_phase_and_epoch_without_reading_json(cluster):
    cluster.records.begin(record(Phase.WARM, epoch=3))
    data = cluster.client.get("configmaps", NAMESPACE, NAME)["data"]
    assert (data["phase"], data["epoch"]) == ("warm", "3")


def test_an_unanswered_read_is_an_error_and_never_an_absent_record(cluster):
    cluster.records.begin(record())
    cluster.cut_off()
    with pytest.raises(TransientError, match="no answer"):
        cluster.records.read()


def test_a_forbidden_read_is_an_error_and_never_an_absent_record(cluster):
    cluster.records.begin(record())
    cluster.user = "somebody"
    with pytest.raises(PermanentError, match="403"):
        cluster.records.read()


def test_a_record_too_big_for_a_config_map_is_refused_before_it_is_sent(cluster):
    cluster.records.begin(record())
    with pytest.raises(RecordError, match="more than 262144"):
        cluster.records.update("run-1", 1, note("log", "x" * 300_000))
    assert cluster.records.read() == record()


# ----------------------------------------------------------------------------- damaged records


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[:-40],
        lambda text: "[]",
        lambda text: "null",
        lambda text: text.replace('"phase":"shifting"', '"phase":"sprinting"'),
        lambda text: text.replace('"epoch":1,', ""),
        lambda text: text.replace('"deployment":"vllm",', '"deplyoment":"vllm",'),
        lambda text: text.replace('"stages":[]', '"stages":[{}]'),
    ],
    ids=["empty", "cut", "list", "null", "phase", "missing", "unknown-in-source", "stage"],
)
def test_a_damaged_record_is_said_to_be_damaged_and_names_the_way_back(cluster, spoil):
    cluster.records.begin(record())
    spoilt = spoil(record().to_json())
    assert spoilt != record().to_json()
    cluster.damage_record(spoilt)
    with pytest.raises(RecordError, match="tpu-migration restore"):
        cluster.records.read()


def test_a_config_map_without_the_record_in_it_is_a_damaged_record(cluster):
    cluster.client.create("configmaps", {"metadata": {"name": NAME, "namespace": NAMESPACE}})
    with pytest.raises(RecordError, match="damaged"):
        cluster.records.read()


def test_a_record_of_an_unknown_schema_version_is_refused_with_the_remedy(cluster):
    cluster.records.begin(record())
    cluster.damage_record(json.dumps({**json.loads(record().to_json()), "schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(RecordError, match="use the version of tpu-migration that wrote it"):
        cluster.records.read()


def test_an_unknown_field_is_refused_and_not_dropped(cluster):
    data = {**json.loads(record().to_json()), "approved_by": "ops"}
    with pytest.raises(RecordError, match=r"unknown fields \['approved_by'\]"):
        Record.from_json(json.dumps(data))


def test_a_new_run_never_writes_over_a_record_that_it_cannot_read(cluster):
    cluster.records.begin(record())
    cluster.damage_record("{")
    with pytest.raises(RecordError):
        cluster.records.begin(record(run_id="run-2", epoch=2))
    assert cluster.client.get("configmaps", NAMESPACE, NAME)["data"]["record.json"] == "{"


# ---------------------------------------------------------------------------------- two writers


def test_a_second_run_cannot_begin_while_the_first_is_under_way(cluster):
    cluster.records.begin(record(Phase.SOAKING))
    with pytest.raises(SupersededError, match=r"belongs to run run-1 \(phase soaking\).*tpu-migration restore vllm"):
        cluster.records.begin(record(Phase.PLANNED, run_id="run-2", epoch=2))
    assert cluster.records.read().run_id == "run-1"


@pytest.mark.parametrize("ended", [Phase.MIGRATED, Phase.PROVEN, Phase.FALLEN_BACK, Phase.REJECTED, Phase.HELD])
def test_a_new_run_begins_over_one_that_has_ended(cluster, ended):
    cluster.records.begin(record(ended))
    cluster.records.begin(record(Phase.PLANNED, run_id="run-2", epoch=2))
    assert cluster.records.read().run_id == "run-2"


def test_a_run_that_crashed_after_its_first_write_begins_again(cluster):
    cluster.records.begin(record(Phase.PLANNED))
    cluster.records.begin(record(Phase.PLANNED))
    assert cluster.records.read().phase is Phase.PLANNED


def test_of_two_runs_that_begin_at_once_only_one_gets_the_workload(cluster):
    def other_run():
        cluster.client.create("configmaps", cluster.records._config_map(record(Phase.PLANNED, run_id="run-2")))

    cluster.before = once(other_run, "POST", "configmaps")
    with pytest.raises(ConflictError):
        cluster.records.begin(record(Phase.PLANNED))
    assert cluster.records.read().run_id == "run-2"


def test_of_two_runs_that_begin_over_an_ended_one_only_one_gets_the_workload(cluster):
    cluster.records.begin(record(Phase.PROVEN, run_id="run-0"))
    other = cluster.records
    cluster.before = once(lambda: other.begin(record(Phase.PLANNED, run_id="run-2", epoch=2)), "PUT", "configmaps")
    with pytest.raises(ConflictError):
        cluster.records.begin(record(Phase.PLANNED, epoch=2))
    assert cluster.records.read().run_id == "run-2"


def test_two_writers_of_one_run_lose_nothing_of_each_other(cluster):
    cluster.records.begin(record())
    cluster.before = once(lambda: cluster.records.update("run-1", 1, note("theirs", 2)), "PUT", "configmaps")
    written = cluster.records.update("run-1", 1, note("mine", 1))
    assert written.notes == {"mine": 1, "theirs": 2}
    assert cluster.records.read() == written


def test_a_writer_that_loses_every_time_gives_up_for_now_and_says_so(cluster):
    cluster.records.begin(record())

    def other(method, path):
        if method == "PUT":
            cluster.client.patch("configmaps", NAMESPACE, NAME, {"data": {"beat": str(len(cluster.calls))}})

    cluster.before = other
    with pytest.raises(TransientError, match="lost 8 times"):
        cluster.records.update("run-1", 1, note("mine", 1))
    assert cluster.records.read() == record()


def test_a_stale_epoch_cannot_write_however_late_it_comes(cluster):
    cluster.records.begin(record(epoch=2, fallback=Fallback("errors 3 %", "the guard", 1.0, 2.0)))
    with pytest.raises(SupersededError, match="at epoch 2, this worker knows 1: the guard restored it, errors 3 %"):
        cluster.records.update("run-1", 1, lambda r: r.moved_to(Phase.SOAKING))
    assert cluster.records.read().phase is Phase.SHIFTING


def test_an_epoch_raised_between_read_and_write_stops_the_writer(cluster):
    cluster.records.begin(record())
    cluster.before = once(lambda: cluster.records.force(lambda r: replace(r, epoch=2)), "PUT", "configmaps")
    with pytest.raises(SupersededError, match="at epoch 2"):
        cluster.records.update("run-1", 1, lambda r: r.moved_to(Phase.SOAKING))
    assert cluster.records.read() == record(epoch=2)


def test_another_run_cannot_write_even_with_the_right_epoch(cluster):
    cluster.records.begin(record())
    with pytest.raises(SupersededError, match="belongs to run run-1 now"):
        cluster.records.update("run-2", 1, note("mine", 1))


def test_a_record_that_vanishes_in_mid_run_is_an_error_and_is_not_made_anew(cluster):
    with pytest.raises(RecordError, match="gone in the middle of run run-1"):
        cluster.records.update("run-1", 1, note("mine", 1))
    assert cluster.records.read() is None


def test_a_change_that_changes_nothing_is_not_written(cluster):
    cluster.records.begin(record())
    cluster.calls.clear()
    cluster.records.update("run-1", 1, lambda r: r)
    assert [call.split()[0] for call in cluster.calls] == ["GET"]


def test_a_restore_writes_whoever_owns_the_record(cluster):
    cluster.records.begin(record(run_id="run-7", epoch=9))
    assert cluster.records.force(lambda r: replace(r, epoch=10)).epoch == 10


def test_a_forced_write_that_loses_is_made_again_on_what_is_there_now(cluster):
    cluster.records.begin(record())
    cluster.before = once(
        lambda: cluster.client.patch("configmaps", NAMESPACE, NAME, {"data": {"beat": "1"}}), "PUT", "configmaps"
    )
    assert cluster.records.force(lambda r: replace(r, epoch=r.epoch + 1)).epoch == 2
    assert cluster.records.read().epoch == 2


def test_a_forced_write_without_a_record_makes_none(cluster):
    assert cluster.records.force(lambda r: replace(r, epoch=2)) is None
    assert cluster.records.read() is None


# ------------------------------------------------------------------------------------ the phases


def test_a_record_never_skips_a_phase_and_never_goes_back_after_the_commit():
    with pytest.raises(PermanentError, match="planned cannot become shifting"):
        record(Phase.PLANNED).moved_to(Phase.SHIFTING)
    with pytest.raises(PermanentError, match="committed cannot become falling_back"):
        record(Phase.COMMITTED).moved_to(Phase.FALLING_BACK)
    assert record(Phase.SOAKING).moved_to(Phase.COMMITTED).phase is Phase.COMMITTED


def test_a_stage_taken_up_by_a_second_worker_keeps_its_beginning():
    running = record(waiting="for nodes").with_stage("provision", "running", 10.0, 10.0)
    assert running.waiting == "for nodes"
    [stage] = running.with_stage("provision", "done", 50.0, 60.0).stages
    assert (stage.started, stage.ended) == (10.0, 60.0)


def test_a_stage_that_ended_and_is_run_again_begins_anew():
    first = record().with_stage("gate", "failed", 10.0, 20.0, "void")
    [stage] = first.with_stage("gate", "running", 30.0, 31.0).stages
    assert (stage.state, stage.started, stage.ended, stage.detail) == ("running", 30.0, None, "")


def test_a_stage_that_ends_waits_for_nothing_any_more():
    assert record(waiting="for nodes").with_stage("provision", "done", 1.0, 2.0).waiting == ""


# ---------------------------------------------------------------------------------- many records


def test_every_record_of_the_namespace_is_found_and_nothing_else(cluster):
    cluster.client.create("configmaps", {"metadata": {"name": "tpu-migration-notes", "namespace": NAMESPACE}})
    for name in ("vllm", "other"):
        Records(cluster.kube, NAMESPACE, name).begin(record(workload=name))
    found = all_records(cluster.kube, NAMESPACE)
    assert {name: each.workload for name, each in found.items()} == {"vllm": "vllm", "other": "other"}


def test_one_damaged_record_does_not_hide_the_others(cluster):
    for name in ("aaa", "vllm", "zzz"):
        Records(cluster.kube, NAMESPACE, name).begin(record(workload=name))
    cluster.damage_record("{")
    found = all_records(cluster.kube, NAMESPACE)
    assert isinstance(found["vllm"], RecordError)
    assert (found["aaa"].workload, found["zzz"].workload) == ("aaa", "zzz")


# ---------------------------------------------------------------------------------- the snapshot


def test_the_snapshot_gives_back_the_objects_and_the_routing(cluster):
    route = {"kind": "HTTPRoute", "spec": {"rules": []}}
    cluster.snapshots.take(1, "run-1", [route], source(hpa="vllm"))
    assert cluster.snapshots.read(1) == ([route], source(hpa="vllm"))


def test_the_snapshot_cannot_be_edited_by_anybody(cluster):
    cluster.snapshots.take(1, "run-1", [], source())
    secret = cluster.client.get("secrets", NAMESPACE, cluster.snapshots.name(1))
    secret["data"] = {}
    with pytest.raises(PermanentError, match="immutable"):
        cluster.kube.replace({**secret, "apiVersion": "v1", "kind": "Secret"})


def test_a_crashed_preflight_that_snapshots_again_keeps_the_first_snapshot(cluster):
    cluster.snapshots.take(1, "run-1", [], source(replicas=2))
    cluster.snapshots.take(1, "run-1", [], source(replicas=7))
    assert cluster.snapshots.read(1)[1].replicas == 2


def test_the_snapshot_of_another_run_is_never_taken_for_ones_own(cluster):
    cluster.snapshots.take(1, "run-0", [], source())
    with pytest.raises(PermanentError, match="snapshot of another run"):
        cluster.snapshots.take(1, "run-1", [], source())


def test_a_snapshot_that_is_gone_is_named(cluster):
    with pytest.raises(RecordError, match="tpu-migration-vllm-snapshot-4"):
        cluster.snapshots.read(4)


def test_the_newest_snapshot_is_the_one_of_the_highest_epoch_and_not_of_the_longest_name(cluster):
    for epoch in (2, 10, 9):
        cluster.snapshots.take(epoch, f"run-{epoch}", [], source(replicas=epoch))
    assert cluster.snapshots.newest()[1].replicas == 10
    assert cluster.snapshots.newest_is_of("run-10")
    assert not cluster.snapshots.newest_is_of("run-9")


def test_another_workloads_snapshot_is_never_the_newest(cluster):
    Snapshots(cluster.kube, NAMESPACE, "other").take(5, "run-1", [], source())
    assert cluster.snapshots.newest() is None
    assert not cluster.snapshots.newest_is_of("run-1")


def test_the_snapshot_is_a_secret_labelled_with_its_run_and_packed(cluster):
    cluster.snapshots.take(1, "run-1", [], source())
    secret = cluster.client.get("secrets", NAMESPACE, cluster.snapshots.name(1))
    assert secret["immutable"] is True
    assert secret["metadata"]["labels"]["tpu-migration/run"] == run_hash("run-1")
    packed = base64.b64decode(secret["data"]["snapshot.json.gz"])
    assert json.loads(gzip.decompress(packed))["source"]["service"] == GPU
    assert TPU not in secret["metadata"]["name"]


# ------------------------------------------------------------------------ the way back after the commit


@pytest.mark.parametrize("phase", [Phase.COMMITTED, Phase.DECOMMISSIONING, Phase.MIGRATED])
def test_a_migration_that_is_taken_back_counts_on_the_whole_source_again(phase):
    gone = replace(record(phase), source_capacity=0, intent="delete node pool h100", fallback=Fallback("x", "y", 1, 2))
    back = gone.taken_back()
    assert (back.phase, back.source_capacity) == (Phase.FALLING_BACK, back.source.replicas)
    assert (back.intent, back.operation, back.fallback) == ("", "", None)


@pytest.mark.parametrize("phase", [Phase.SOAKING, Phase.HELD, Phase.FALLEN_BACK])
def test_before_the_commit_nothing_is_taken_back_but_restored(phase):
    with pytest.raises(PermanentError, match=f"a migration that is {phase}"):
        record(phase).taken_back()


def test_a_target_that_no_gate_has_judged_is_told_from_one_that_it_could_not_decide_on():
    assert record(Phase.HELD).stands_unjudged
    assert not record(Phase.HELD, verdict={"outcome": "inconclusive"}).stands_unjudged
    assert not record(Phase.WARM).stands_unjudged


# ---------------------------------------------------------------------------------- approvals


def test_a_question_is_asked_once_and_its_time_does_not_begin_anew():
    asked = record(Phase.COMMITTED).with_question("decommission", 10.0)
    assert asked.with_question("decommission", 99.0) == asked
    assert not asked.said_no("decommission"), "silence is no answer yet"


def test_an_answer_to_what_was_not_asked_or_is_over_is_refused():
    with pytest.raises(PermanentError, match="vllm is shifting and asks nobody about decommission"):
        record().with_answer("decommission", approved=True, by="ada", reason="", now=1.0)
    ended = record(Phase.MIGRATED).with_question("decommission", 1.0)
    with pytest.raises(PermanentError, match="vllm is migrated and asks nobody"):
        ended.with_answer("decommission", approved=True, by="ada", reason="", now=2.0)


def test_a_record_from_before_there_were_questions_is_read():
    old = json.loads(record().to_json())
    del old["approvals"], old["way_back"]
    assert Record.from_json(json.dumps(old)) == record()
