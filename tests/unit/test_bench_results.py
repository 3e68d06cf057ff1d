"""A result that was cut, mixed up or altered on its way is noticed."""

from __future__ import annotations

import json

import pytest

from tpu_migration.bench.results import BenchRun, ResultCorrupt, client_health, merge, parse, render
from tpu_migration.domain.gate import ClientHealth, RequestResult

GOOD = [
    RequestResult(f"r{i}", i * 0.5, i * 0.5 + 0.001, 0.12, 0.02, 0.74, 64, 32, True, None, "length") for i in range(5)
]
BAD = RequestResult("r9", 3.0, 3.0, None, None, None, None, 0, False, "http 503: no healthy upstream", None)
HEALTH = {"loop_lag_p99_ms": 1.5, "schedule_delay_p99_ms": 2, "achieved_rate_ratio": 0.99, "void": False}
TEXT = render([*GOOD, BAD], HEALTH)


def test_what_was_written_is_read_back():
    assert parse(TEXT) == BenchRun((*GOOD, BAD), HEALTH)


def test_each_line_has_the_fields_of_the_contract_and_the_last_the_checksum():
    lines = [json.loads(line) for line in TEXT.splitlines()]
    assert list(lines[0]) == [
        "id", "scheduled_s", "sent_s", "ttft_s", "tpot_s", "e2e_s", "prompt_tokens", "output_tokens", "ok",
        "error", "finish_reason",
    ]  # fmt: skip
    assert set(lines[-1]) == {"summary", "lines", "sha256"}
    assert lines[-1]["lines"] == 6


def test_a_pods_log_may_hold_other_lines():
    lines = TEXT.splitlines()
    assert parse("\n".join(["starting", lines[0], "", "WARNING: x", *lines[1:], "bye"])).results[-1] == BAD


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: "",
        lambda t: "\n".join(t.splitlines()[:-1]),
        lambda t: "\n".join(t.splitlines()[1:]),
        lambda t: t.replace('"ttft_s":0.12', '"ttft_s":0.11', 1),
        lambda t: t.replace('"ok":false', '"ok":true'),
        lambda t: t[: len(t) - 30],
        lambda t: t.replace("r1", "r0"),
        lambda t: "\n".join([t.splitlines()[1], t.splitlines()[0], *t.splitlines()[2:]]),
        lambda t: t.replace('"lines":6', '"lines":5'),
        lambda t: t.replace('{"id":"r3"', '{"id":"r3'),
        lambda t: t.replace(',"sha256"', ',"sha1"'),
    ],
)
def test_a_spoilt_result_is_corrupt(spoil):
    spoilt = spoil(TEXT)
    assert spoilt != TEXT
    with pytest.raises(ResultCorrupt):
        parse(spoilt)


def test_a_file_of_another_tool_may_lack_the_checksum_if_the_caller_says_so():
    last = json.loads(TEXT.splitlines()[-1])
    plain = "\n".join([*TEXT.splitlines()[:-1], json.dumps({"summary": last["summary"]})])
    assert len(parse(plain, require_checksum=False).results) == 6
    with pytest.raises(ResultCorrupt):
        parse(plain)
    with pytest.raises(ResultCorrupt):
        parse(TEXT.replace('"lines":6', '"lines":7'), require_checksum=False)


@pytest.mark.parametrize(
    "change",
    [{"ok": "yes"}, {"ttft_s": "fast"}, {"output_tokens": -1}, {"output_tokens": True}, {"extra": 1}, {"sent_s": None}],
)
def test_a_line_of_the_wrong_shape_is_named(change):
    line = {**json.loads(TEXT.splitlines()[0]), **change}
    text = f'{json.dumps(line)}\n{{"summary": {{}}}}'
    with pytest.raises(ResultCorrupt, match=next(iter(change))):
        parse(text, require_checksum=False)


def test_health_comes_from_the_summary_and_what_it_lacks_was_not_measured():
    assert client_health(parse(TEXT)) == ClientHealth(1.5, 2.0, 0.99)
    assert client_health(BenchRun((), {})) == ClientHealth(None, None, None)
    assert client_health(BenchRun((), {"void": True})).void_reasons
    assert client_health(BenchRun((), {"void_reasons": ["interrupted"]})).void_reasons == ("interrupted",)


def test_blocks_follow_each_other_and_the_worst_health_counts():
    worse = BenchRun(tuple(GOOD), {**HEALTH, "loop_lag_p99_ms": 9.0, "void_reasons": ["loop lag"]})
    run = merge([BenchRun(tuple(GOOD), HEALTH), worse])
    assert len({r.id for r in run.results}) == 10
    times = [r.scheduled_s for r in run.results]
    assert times == sorted(times)
    assert client_health(run) == ClientHealth(9.0, 2.0, 0.99, ("loop lag",))
    unmeasured = BenchRun(tuple(GOOD), {**HEALTH, "loop_lag_p99_ms": None})
    assert client_health(merge([worse, unmeasured])).loop_lag_p99_ms is None
