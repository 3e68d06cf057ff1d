"""The command line gives the same answers as the pipeline, with exit codes that scripts can trust."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import GPU, NAMESPACE, TPU, Cluster, record

from tpu_migration.bench.results import render
from tpu_migration.cli import COMMANDS, main
from tpu_migration.domain.gate import RequestResult
from tpu_migration.domain.phases import Phase
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.records import Records

ROOT = Path(__file__).parents[2]
HEALTH = {"loop_lag_p99_ms": 1.5, "schedule_delay_p99_ms": 2.0, "achieved_rate_ratio": 0.99, "void": False}


def exit_code(argv):
    """Run the command as a shell would; argparse leaves by SystemExit."""
    try:
        return main(argv)
    except SystemExit as leaving:
        return leaving.code


@pytest.fixture
def cluster(monkeypatch):
    made = Cluster()
    made.give_route({GPU: 50, TPU: 50})
    made.give_endpoints(GPU, 2)
    made.give_endpoints(TPU, 2)
    monkeypatch.setattr("tpu_migration.clients.kubernetes.from_environment", lambda: made.kube)
    return made


# ------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_a_help_that_ends_with_0(command, capsys):
    assert exit_code([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: tpu-migration {command}")
    assert " ".join(COMMANDS[command].what.split()) in " ".join(shown.split())


def test_the_help_of_all_names_every_command(capsys):
    assert exit_code(["--help"]) == 0
    shown = capsys.readouterr().out
    for command, each in COMMANDS.items():
        assert command in shown
        assert " ".join(each.what.split()) in " ".join(shown.split())


@pytest.mark.parametrize("argv", [[], ["migrate"], ["restore"], ["status", "--format", "xml"]])
def test_a_call_that_cannot_be_meant_ends_with_2(argv, capsys):
    assert exit_code(argv) == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["judge", "a", "b"], ["judge", "a", "b", "--policy", "chat", "--lok", "2"]])
def test_a_mistyped_judge_is_no_verdict(argv, capsys):
    assert exit_code(argv) == 64
    assert "usage:" in capsys.readouterr().err


def test_importing_the_command_line_loads_nothing_heavy():
    heavy = ("kubernetes", "numpy", "scipy", "aiohttp", "google.auth", "airflow", "grpc", "yaml")
    code = f"import sys, tpu_migration.cli; print([m for m in {heavy!r} if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "plugins")}
    shown = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


# ----------------------------------------------------------------------------------- status


def test_the_status_says_where_users_are_and_where_it_is_safe(cluster, capsys):
    cluster.records.begin(record().with_stage("gate", "done", 10.0, 75.5))
    assert main(["status", GPU, "--namespace", NAMESPACE]) == 0
    shown = capsys.readouterr().out
    for part in ("shifting", "run run-1, epoch 1", "vllm 50 %, vllm-tpu 50 %; safe: vllm", "gate", "65.5 s"):
        assert part in shown


def test_the_status_of_all_is_empty_where_there_is_none(cluster, capsys):
    assert main(["status"]) == 0
    assert f"no migrations in namespace {NAMESPACE}" in capsys.readouterr().out


def test_an_unknown_workload_ends_with_1_and_says_where_it_looked(cluster, capsys):
    assert main(["status", "other", "--namespace", NAMESPACE]) == 1
    assert f"other has no migration in namespace {NAMESPACE}" in capsys.readouterr().err


def test_the_status_as_json_is_the_record_itself(cluster, capsys):
    cluster.records.begin(record())
    assert main(["status", GPU, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [json.loads(record().to_json())]


def test_a_damaged_record_is_told_and_does_not_hide_the_others(cluster, capsys):
    cluster.records.begin(record())
    Records(cluster.kube, NAMESPACE, "other").begin(record(workload="other"))
    cluster.damage_record("{", workload="other")
    main(["status"])
    shown = capsys.readouterr()
    assert "other: the record is damaged" in shown.err
    assert "vllm  shifting" in shown.out


def test_a_damaged_record_that_was_asked_for_ends_with_1(cluster, capsys):
    cluster.records.begin(record())
    cluster.damage_record("{")
    assert main(["status", GPU]) == 1
    assert "the record is damaged" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- restore


def test_a_restore_at_a_terminal_sends_users_home_and_says_so(cluster, capsys):
    cluster.records.begin(record())
    assert main(["restore", GPU, "--reason", "pager: users complain"]) == 0
    assert "vllm: users are sent to the source" in capsys.readouterr().out
    assert cluster.weights() == {GPU: 1, TPU: 0}
    fallback = cluster.records.read().fallback
    assert fallback.reason == "pager: users complain"
    assert fallback.actor.endswith("at a terminal")


def test_a_restore_after_the_commit_says_that_the_target_is_the_safe_side(cluster, capsys):
    cluster.records.begin(record(Phase.MIGRATED, source_capacity=0))
    assert main(["restore", GPU]) == 0
    assert "users are sent to the target" in capsys.readouterr().out
    assert cluster.weights() == {GPU: 0, TPU: 100}


def test_a_restore_of_an_unknown_workload_ends_with_1_and_touches_nothing(cluster, capsys):
    before = cluster.route()
    assert main(["restore", "other"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("tpu-migration restore: other in inference has neither a record nor a snapshot")
    assert "Traceback" not in shown
    assert cluster.route() == before


@pytest.mark.parametrize(("argv", "approved"), [([], True), (["--reject", "--reason", "peak on Friday"], False)])
def test_people_answer_at_a_terminal(cluster, capsys, monkeypatch, argv, approved):
    monkeypatch.setenv("USER", "ada")
    cluster.records.begin(record(Phase.COMMITTED).with_question("decommission", 1.0))
    assert main(["approve", GPU, "--namespace", NAMESPACE, *argv]) == 0
    word = "approved" if approved else "rejected"
    assert f"{GPU}: the decommission is {word}" in capsys.readouterr().out
    said = cluster.records.read().approval("decommission")
    assert (said.approved, said.by) == (approved, "ada at a terminal")
    assert main(["status", GPU, "--namespace", NAMESPACE]) == 0
    assert f"approval   decommission: {word} by ada at a terminal" in capsys.readouterr().out


def test_where_nobody_is_asked_an_answer_ends_with_1(cluster, capsys):
    assert main(["approve", GPU, "--namespace", NAMESPACE]) == 1
    assert "has no migration in namespace" in capsys.readouterr().err
    cluster.records.begin(record(Phase.SHIFTING))
    assert main(["approve", GPU, "--namespace", NAMESPACE]) == 1
    assert f"{GPU} is shifting and waits for nobody's word" in capsys.readouterr().err


@pytest.mark.parametrize("error", [TransientError("no answer to GET"), PermanentError("401: refuses the token")])
def test_a_cluster_that_does_not_answer_is_one_clear_line(monkeypatch, capsys, error):
    def refuse():
        raise error

    monkeypatch.setattr("tpu_migration.clients.kubernetes.from_environment", refuse)
    for command in (["status"], ["restore", GPU], ["guard", "--namespace", NAMESPACE, "--once"]):
        assert main(command) == 1
        assert capsys.readouterr().err.strip() == f"tpu-migration {command[0]}: {error}"


def test_the_guard_looks_once_when_asked(cluster, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    cluster.records.begin(record())
    assert main(["guard", "--namespace", NAMESPACE, "--once"]) == 0
    assert cluster.client.get("leases", NAMESPACE, "tpu-migration-guard") is not None
    assert cluster.weights() == {GPU: 50, TPU: 50}, "one look proves no lease dead"


# ------------------------------------------------------------------------------------ judge


def results(n, *, slower=1.0):
    """Return requests at 5 a second that scatter a little; `slower` stretches each token."""
    made = []
    for i in range(n):
        ttft, tpot = 0.10 + 0.002 * (i % 20), slower * (0.018 + 0.0002 * (i % 17))
        at = i / 5
        e2e = ttft + 31 * tpot
        made.append(RequestResult(f"r{i}", at, at + 0.001, ttft, tpot, e2e, 64, 32, True, None, "length"))
    return made


@pytest.fixture
def judged(tmp_path, capsys):
    def run(candidate, health=HEALTH, policy="demo", form="text", html=None):
        (tmp_path / "baseline.jsonl").write_text(render(results(80), HEALTH))
        (tmp_path / "candidate.jsonl").write_text(render(candidate, health))
        files = [str(tmp_path / f"{each}.jsonl") for each in ("baseline", "candidate")]
        report = ["--html", str(html)] if html else []
        code = main(["judge", "--policy", policy, "--format", form, *report, *files])
        return code, capsys.readouterr()

    return run


def test_a_candidate_as_good_as_the_baseline_passes_with_0(judged):
    code, shown = judged(results(300))
    assert shown.out.startswith("PASS:"), shown.out
    assert code == 0
    assert "left out: capacity, cost, engine events" in shown.err


def test_the_judge_writes_its_report_as_one_page(judged, tmp_path):
    judged(results(300), html=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Gate: pass." in page
    assert page.count("<svg") == 2
    code, _ = judged(results(300), html=tmp_path / "no" / "folder" / "report.html")
    assert code == 64


def test_a_candidate_four_times_too_slow_fails_with_1_and_numbers(judged):
    code, shown = judged(results(300, slower=4.5))
    assert shown.out.startswith("FAIL:"), shown.out
    assert code == 1
    assert "> limit 70 ms" in shown.out


def test_too_few_requests_decide_nothing_and_end_with_2(judged):
    code, shown = judged(results(20))
    assert shown.out.startswith("INCONCLUSIVE:"), shown.out
    assert code == 2


def test_a_load_generator_that_lagged_makes_the_run_void_with_3(judged):
    code, shown = judged(results(300), health=HEALTH | {"loop_lag_p99_ms": 400.0})
    assert shown.out.startswith("VOID:"), shown.out
    assert code == 3


def test_the_verdict_as_json_carries_every_check(judged):
    code, shown = judged(results(300), form="json")
    verdict = json.loads(shown.out)
    assert (code, verdict["outcome"]) == (0, "pass")
    assert {"name", "outcome", "value", "limit", "unit"} <= set(verdict["checks"][0])


def test_a_policy_may_be_a_file_of_ones_own(judged, tmp_path):
    own = tmp_path / "own.yaml"
    text = (ROOT / "include" / "policies" / "demo.yaml").read_text()
    own.write_text(text.replace("tpot_limit_ms: 70", "tpot_limit_ms: 10"))
    code, shown = judged(results(300), policy=str(own))
    assert code == 1
    assert "> limit 10 ms" in shown.out


@pytest.mark.parametrize("spoil", [lambda t: t[:-200], lambda t: "", lambda t: t.replace('"ok":true', '"ok":false', 1)])
def test_a_spoilt_file_is_no_verdict_at_all(tmp_path, capsys, spoil):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text(render(results(80), HEALTH))
    bad.write_text(spoil(good.read_text()))
    code = main(["judge", "--policy", "demo", str(good), str(bad)])
    assert code == 64
    assert capsys.readouterr().out == ""


def test_a_missing_file_is_no_verdict_at_all(tmp_path, capsys):
    assert main(["judge", "--policy", "demo", str(tmp_path / "a"), str(tmp_path / "b")]) == 64
    assert "No such file" in capsys.readouterr().err
