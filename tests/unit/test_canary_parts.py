"""A canary's parts: what its looks conclude, what a trend is, how it is judged, and the history that it keeps."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.unit.cluster import GPU, NAMESPACE, Cluster, record
from tpu_migration.cli import main
from tpu_migration.clients import kubernetes
from tpu_migration.domain.canary import (
    FAIL,
    PASS,
    UNDECIDED,
    WARN,
    Look,
    Price,
    blind_for,
    concluded,
    engine_findings,
    price_findings,
    settled,
)
from tpu_migration.domain.gate import ArmEvents, ClientHealth, RequestResult, canary_block, judge_canary
from tpu_migration.domain.phases import Phase
from tpu_migration.domain.trend import DAY_S, towards
from tpu_migration.domain.warmth import WarmUp, padding_findings
from tpu_migration.errors import PermanentError
from tpu_migration.history import Canary, Figure, Histories, Identity, Question, _parse
from tpu_migration.names import history_name
from tpu_migration.resources import policy

GOOD = ClientHealth(1.0, 1.0, 1.0)


def looks(*outcomes):
    return [Look(outcome, f"{outcome} {number}") for number, outcome in enumerate(outcomes, 1)]


def test_other_paddings_than_those_that_were_warmed_are_told_and_a_log_without_them_is_not():
    warmed = WarmUp("16x1", "live", token_buckets=(16, 32), batch_buckets=(8,))
    (told,) = padding_findings(warmed, (16, 32, 64), (8,))
    assert told.startswith("steps are padded to 16, 32, 64 tokens, and were to 16, 32 when it was warmed up")
    assert padding_findings(warmed, (), ()) == []
    assert padding_findings(warmed, (16, 32), (8,)) == []


# -------------------------------------------------------------------------------------- conclusions


@pytest.mark.parametrize(
    ("outcomes", "over"),
    [
        ([], False), ([PASS], True), ([FAIL], False), ([FAIL, FAIL], True), ([FAIL, PASS], True),
        ([UNDECIDED], False), ([UNDECIDED, FAIL], False), ([UNDECIDED, FAIL, UNDECIDED], True),
    ],
)  # fmt: skip
def test_one_pass_settles_it_and_a_failure_must_be_seen_twice(outcomes, over):
    assert settled(looks(*outcomes)) is over


@pytest.mark.parametrize(
    ("outcomes", "findings", "outcome"),
    [
        ([PASS], [], PASS), ([PASS], ["the version moved"], WARN), ([FAIL, PASS], [], WARN), ([FAIL, FAIL], [], FAIL),
        ([UNDECIDED, FAIL, FAIL], [], FAIL), ([UNDECIDED, UNDECIDED, UNDECIDED], [], UNDECIDED),
        ([FAIL, UNDECIDED, UNDECIDED], [], UNDECIDED),
    ],
)  # fmt: skip
def test_a_failure_that_was_seen_once_moves_nobody(outcomes, findings, outcome):
    assert concluded(looks(*outcomes), findings)[0] == outcome


def test_missing_data_is_an_alarm_in_the_end():
    assert blind_for([PASS, UNDECIDED, UNDECIDED]) == 0
    assert blind_for([UNDECIDED, UNDECIDED, UNDECIDED]) == 3
    assert blind_for([UNDECIDED, UNDECIDED, UNDECIDED, WARN]) == 0


def test_what_was_not_observed_is_no_finding():
    assert engine_findings(ArmEvents(None, None, None), "since then") == []
    assert len(engine_findings(ArmEvents(2, 1, 5), "since then")) == 2  # beside users, preemptions are daily life


def test_a_price_that_moved_is_told_a_token_too_and_whether_it_still_pays():
    then = Price(19.2, 2.0)
    assert price_findings(Price(19.2, 2.0), then, 4.0, 0.9) == []
    (told,) = price_findings(Price(21.6, 2.25), then, 4.0, 0.9)
    assert told == "it costs $21.60 an hour, $19.20 at the pass ($2.25 a million tokens at the proven rate, $2 then)"
    assert "a token costs 0.95 of what it costs on the source, 0.9 was the limit" in price_findings(
        Price(38.0, 3.8), then, 4.0, 0.9
    )
    assert price_findings(Price(None, None), then, None, 0.9) == []


# -------------------------------------------------------------------------------------------- trend


def days(*values):
    return [(day * DAY_S, value) for day, value in enumerate(values)]


def test_a_line_towards_the_limit_says_when_it_gets_there():
    trend = towards(days(100, 110, 121, 129, 140), 200.0)
    assert trend.per_day == pytest.approx(10, abs=0.5)
    assert trend.reaches_in_s == pytest.approx(6 * DAY_S, rel=0.1)


@pytest.mark.parametrize(
    ("values", "limit"),
    [
        ((100, 110, 120, 130), 200), ((100, 99, 101, 100, 99, 101), 200), ((140, 130, 120, 110, 100), 200),
        ((100, 101, 102, 103, 104), 200), ((150, 170, 190, 200, 210), 200), ((100, 100, 100, 100, 190), 200), ((), 200),
    ],
    ids=["too few", "no direction", "away", "not within a week", "over already", "one outlier", "nothing"],
)  # fmt: skip
def test_what_is_no_trend_warns_nobody(values, limit):
    assert towards(days(*values), limit) is None


def test_a_line_is_not_drawn_further_than_twice_what_was_seen():
    hourly = [(3600.0 * n, 100.0 + n) for n in range(6)]
    assert towards(hourly, 120.0) is None
    assert towards(hourly, 112.0) is not None


# ------------------------------------------------------------------------------------------ verdict


def requests(ttft_ms, n=500, tpot_ms=20.0, failed=0):
    ttft, tpot = ttft_ms / 1000, tpot_ms / 1000
    good = RequestResult("", 0.0, 0.0, ttft, tpot, ttft + 63 * tpot, 100, 64, True, None, "length")
    bad = replace(good, ttft_s=None, tpot_s=None, e2e_s=None, output_tokens=0, ok=False, error="HTTP 500")
    times = [(str(i), i * 0.5, bad if i < failed else good) for i in range(n)]
    return [replace(each, id=name, scheduled_s=at, sent_s=at) for name, at, each in times]


PASSED = {"ttft_ms": [300.0] * 41, "tpot_ms": [20.0] * 41}


@pytest.mark.parametrize(
    ("changes", "outcome", "name"),
    [
        ({"ttft_ms": 300}, "pass", ""),
        ({"ttft_ms": 330}, "pass", ""),
        ({"ttft_ms": 400}, "fail", "ttft_p95_since_pass"),  # far within 2,000 ms, and a third slower than it was
        ({"ttft_ms": 300, "tpot_ms": 26.0}, "fail", "tpot_p95_since_pass"),
        ({"ttft_ms": 2100}, "fail", "ttft_p99"),
        ({"ttft_ms": 300, "failed": 20}, "fail", "errors"),
    ],
)
def test_it_is_held_to_the_limits_and_to_the_day_of_its_pass(changes, outcome, name):
    verdict = judge_canary(policy("chat"), PASSED, requests(**changes), GOOD)
    assert verdict.outcome == outcome, verdict.sentence
    assert not name or name in {check.name for check in verdict.checks if check.outcome == "fail"}


def test_a_pass_without_figures_never_lets_a_canary_pass():
    verdict = judge_canary(policy("chat"), {}, requests(300), GOOD)
    assert verdict.outcome == "inconclusive"
    assert "the record has none of the pass" in verdict.sentence


def test_a_client_that_lagged_voids_it():
    assert judge_canary(policy("chat"), PASSED, requests(300), ClientHealth(90.0, 1.0, 1.0)).outcome == "void"


@pytest.mark.parametrize("name", ["chat", "interactive", "batch", "demo", "rescue"])
def test_every_policy_has_a_canary_and_its_load_is_small(name):
    found = policy(name)
    assert judge_canary(found, PASSED, requests(10, tpot_ms=5.0), GOOD).outcome in ("pass", "inconclusive")
    block = canary_block(found, 40.0, "canary-1", 1)
    assert block.rate_rps == pytest.approx(2.0)


# ------------------------------------------------------------------------------------------ history


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def histories(cluster):
    return Histories(cluster.kube, NAMESPACE, GPU)


def canary(run="c", **changes):
    identity = Identity("abc", ("vllm/vllm-tpu@sha256:1",), "0.32.0", ("gemma",))
    made = Canary(1.0, run, "run-1", PASS, "well", (), {"ttft_p99": Figure(300.0, 2000.0)}, identity, 19.2, 2.0)
    return replace(made, **changes)


def test_what_is_written_is_read_back_whole(histories):
    assert histories.read().canaries == ()
    engines = {"pod-1": {"restarts": 0.0, "compiles": 24.0}}
    written = histories.update(lambda found: found.with_canary(canary(), engines))
    assert histories.read() == written
    assert written.of("c") == canary()
    assert written.since("another proof") == ()


def test_it_keeps_the_newest_two_hundred_and_never_outgrows_its_object(histories):
    for number in range(3):
        many = [canary(f"{number}-{i}") for i in range(100)]
        histories.update(
            lambda found, many=many: replace(found, canaries=(*found.canaries, *many)).with_canary(many[-1], {})
        )
    found = histories.read()
    assert len(found.canaries) == 200
    assert (found.canaries[0].run, found.canaries[-1].run) == ("1-2", "2-99")
    histories.update(lambda found: found.with_canary(canary("long", findings=("x" * 200_000,)), {}))
    histories.update(lambda found: found.with_canary(canary("longer", findings=("y" * 200_000,)), {}))
    assert [each.run for each in histories.read().canaries][-1] == "longer"


def test_two_who_write_at_once_both_are_in_it(cluster, histories):
    other = Histories(cluster.kube, NAMESPACE, GPU)
    done = []

    def between(method, path):
        if method == "PUT" and not done:
            done.append(True)
            other.update(lambda found: found.with_canary(canary("other"), {}))

    histories.update(lambda found: found.with_canary(canary("first"), {}))
    cluster.before = between
    histories.update(lambda found: found.with_canary(canary("mine"), {}))
    assert [each.run for each in histories.read().canaries] == ["first", "other", "mine"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", json.dumps({"schema_version": 2, "workload": GPU}),
     json.dumps({"schema_version": 1, "workload": GPU, "more": 1}),
     json.dumps({"schema_version": 1, "workload": GPU, "canaries": [{"at": "noon"}]})],
)  # fmt: skip
def test_one_that_cannot_be_read_is_not_written_over(cluster, histories, text):
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": history_name(GPU), "namespace": NAMESPACE}}
    cluster.kube.create({**body, "data": {"history.json": text}})
    with pytest.raises(PermanentError, match=r"cannot be read .* delete it"):
        histories.update(lambda found: found.with_canary(canary(), {}))


# ------------------------------------------------------------------------------- what people see and say


def kept(cluster, **changes):
    """Keep one canary that warned, and a question of the way back."""
    seen = Canary(0.0, "c-1", "run-1", WARN, "all within the limits, but ttft rises", ("ttft rises",), {}, None, 1, 2)
    histories = Histories(cluster.kube, NAMESPACE, GPU)
    histories.update(lambda found: replace(found.with_canary(seen, {}), **changes))
    return histories


@pytest.fixture
def terminal(monkeypatch):
    made = Cluster()
    made.records.begin(record(Phase.MIGRATED))
    monkeypatch.setattr(kubernetes, "from_environment", lambda: made.kube)
    monkeypatch.setenv("USER", "ada")
    return made


def test_status_shows_the_last_canary_what_has_drifted_and_what_people_are_asked(terminal, capsys):
    assert main(["status", GPU, "--namespace", NAMESPACE]) == 0
    assert "canary" not in capsys.readouterr().out
    kept(terminal, asked=Question(1.0, "c-1", "back-1"))
    assert main(["status", GPU, "--namespace", NAMESPACE]) == 0
    lines = [each.strip() for each in capsys.readouterr().out.splitlines()]
    assert "canary     1970-01-01T00:00:00Z warn: all within the limits, but ttft rises" in lines
    assert "drift      ttft rises" in lines
    assert "approval   way back: not answered yet (run back-1 of gpu_fallback)" in lines


def test_a_history_that_cannot_be_read_hides_no_migration(terminal, capsys):
    terminal.kube.create(
        {
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"history.json": "{"},
            "metadata": {"name": history_name(GPU), "namespace": NAMESPACE},
        }
    )  # fmt: skip
    assert main(["status", GPU, "--namespace", NAMESPACE]) == 0
    assert "cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "approved"), [([], True), (["--reject"], False)])
def test_the_way_back_is_answered_at_a_terminal_once(terminal, capsys, argv, approved):
    histories = kept(terminal, asked=Question(1.0, "c-1", "back-1"))
    assert main(["approve", GPU, "--namespace", NAMESPACE, "--reason", "slow", *argv]) == 0
    assert "run back-1 sees it" in capsys.readouterr().out
    said = histories.read().asked
    assert (said.approved, said.by, said.reason) == (approved, "ada at a terminal", "slow")
    assert main(["approve", GPU, "--namespace", NAMESPACE]) == 1
    assert "waits for nobody's word" in capsys.readouterr().err
    with pytest.raises(PermanentError, match="by ada at a terminal: slow already"):
        histories.update(lambda found: found.answered("back-1", approved=True, by="bob", reason="", now=2.0))
    with pytest.raises(PermanentError, match="run other of gpu_fallback asks nobody"):
        histories.update(lambda found: found.answered("other", approved=True, by="bob", reason="", now=2.0))


def test_a_question_of_a_workload_that_went_back_is_open_no_more(terminal, capsys):
    kept(terminal, asked=Question(1.0, "c-1", "back-1"))
    terminal.records.force(lambda found: replace(found, phase=Phase.FALLEN_BACK))
    assert main(["approve", GPU, "--namespace", NAMESPACE]) == 1
    assert "is fallen_back and waits for nobody's word" in capsys.readouterr().err


def test_a_question_that_an_older_version_kept_is_read():
    old = {"workload": GPU, "canaries": [], "engines": {}, "asked": {"at": 1.0, "run": "c-1"}, "schema_version": 1}
    assert _parse(json.dumps(old)).asked == Question(1.0, "c-1")
