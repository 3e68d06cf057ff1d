"""The users count every failed and every cut-short answer, and nothing twice."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
import time

import pytest
from aiohttp import web
from engine_harness import DEADLINE_S, H100, H100_FLAGS, MODEL, ROOT, running

from sandbox.users import Script, Users, body_of

CHUNK = 'data: {{"choices":[{{"index":0,"text":" a","finish_reason":{}}}]}}\n\n'
END = 'data: {{"choices":[],"usage":{{"prompt_tokens":3,"total_tokens":9,"completion_tokens":{}}}}}\n\n'
DONE = "data: [DONE]\n\n"


def answer(how: str, asked: int) -> str:
    """Return a stream that ends in a given way."""
    running_chunk, last = CHUNK.format("null"), CHUNK.format('"length"')
    return {
        "good": running_chunk + last + END.format(asked) + DONE,
        "abort": running_chunk + CHUNK.format('"abort"') + END.format(asked) + DONE,
        "few": running_chunk + last + END.format(asked - 1) + DONE,
        "no-done": running_chunk + last + END.format(asked),
        "empty": "",
    }[how]


class Once(Script):
    """A script of one completion with ignore_eos, at once."""

    def __init__(self, timeout_s: float | None = None) -> None:
        super().__init__(1.0, 1, 10, 10, 0.0)
        self._given = False

    def next(self):
        ask = super().next()
        at = 3600.0 if self._given else 0.0
        self._given = True
        return type(ask)(ask.number, at, False, 5, 6, True)


async def tally_of(handler, timeout_s: float = DEADLINE_S):
    """Serve `handler`, let one user come, return (counters, failure lines)."""
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    failures = io.StringIO()
    users = Users(f"http://127.0.0.1:{runner.addresses[0][1]}", "m", None, timeout_s, failures)
    stop = asyncio.Event()
    run = asyncio.create_task(users.run(Once(), stop, None))
    deadline = time.monotonic() + DEADLINE_S
    while not (users.tally.requests and not users.tally.in_flight):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    stop.set()
    await run
    await runner.cleanup()
    return users.tally.summary(time.time()), [json.loads(line) for line in failures.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("how", "completed", "truncated", "kind"),
    [
        ("good", 1, 0, None),
        ("abort", 0, 1, "finish-abort"),
        ("few", 0, 1, "too-few-tokens"),
        ("no-done", 0, 1, "no-done"),
        ("empty", 0, 1, "no-done"),
    ],
)
async def test_a_stream_counts_as_whole_only_if_it_ends_as_asked(how, completed, truncated, kind):
    async def handler(request):
        asked = json.loads(await request.read())["max_tokens"]
        return web.Response(text=answer(how, asked), content_type="text/event-stream")

    counts, failures = await tally_of(handler)
    assert (counts["requests"], counts["completed"], counts["failed"], counts["truncated"]) == (
        1,
        completed,
        0,
        truncated,
    )
    assert [line["kind"] for line in failures] == ([kind] if kind else [])
    assert counts["errors"] == ({kind: 1} if kind else {})


async def test_a_connection_cut_in_mid_stream_is_a_truncated_answer():
    async def handler(request):
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(CHUNK.format("null").encode())
        request.transport.close()
        return response

    counts, failures = await tally_of(handler)
    assert (counts["failed"], counts["truncated"]) == (0, 1)
    assert failures[0]["kind"] == "cut"


async def test_an_error_status_is_a_failed_request_with_its_body_in_the_log():
    async def handler(request):
        return web.Response(status=503, text="no healthy upstream")

    counts, failures = await tally_of(handler)
    assert (counts["failed"], counts["truncated"]) == (1, 0)
    assert (failures[0]["kind"], failures[0]["detail"]) == ("http-503", "no healthy upstream")


async def test_a_refused_connection_and_a_timeout_are_failed_requests():
    async def close(request):
        request.transport.close()
        return web.Response()

    async def never(request):
        await asyncio.Event().wait()

    assert (await tally_of(close))[0]["errors"] == {"connection": 1}
    assert (await tally_of(never, timeout_s=0.2))[0]["errors"] == {"timeout": 1}


async def test_an_open_loop_against_a_real_engine_completes_everything_it_started():
    async with running(H100_FLAGS, H100) as engine:
        failures = io.StringIO()
        users = Users(engine.base, MODEL, None, DEADLINE_S, failures)
        script = Script(rate=40, seed=3, prompt_tokens=30, output_tokens=10, natural_share=0.3)
        await users.run(script, asyncio.Event(), max_seconds=0.5)
        counts = users.tally.summary(time.time())
        served = sum(engine.core.metrics.finished.values())
    assert counts["completed"] == counts["requests"] == served > 5, failures.getvalue()
    assert counts["peak_streams"] > 1
    assert 0 < counts["p50_ttft_s"] <= counts["p99_ttft_s"]


def test_the_same_seed_asks_the_same_and_arrivals_have_the_rate_and_lengths_asked_for():
    first, second = (Script(5.0, 7, 200, 100, 0.2) for _ in range(2))
    asks = [first.next() for _ in range(4000)]
    assert asks == [second.next() for _ in range(4000)]
    assert asks[-1].at_s == pytest.approx(4000 / 5, rel=0.1)
    assert sum(ask.prompt_tokens for ask in asks) / 4000 == pytest.approx(200, rel=0.05)
    assert sum(ask.max_tokens for ask in asks) / 4000 == pytest.approx(100, rel=0.05)
    assert sum(ask.ignore_eos for ask in asks) / 4000 == pytest.approx(0.8, abs=0.03)
    body = body_of(asks[0], "m")
    assert body["stream_options"] == {"include_usage": True}


def test_sigterm_writes_the_final_counters_and_exits_0(tmp_path):
    out = tmp_path / "users.json"
    argv = ["--url", "http://127.0.0.1:9", "--model", "m", "--rate", "50", "--seed", "1", "--out", str(out)]
    users = subprocess.Popen([sys.executable, "-m", "sandbox.users", *argv], cwd=ROOT)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not (out.exists() and json.loads(out.read_text())["failed"] > 3):
            assert users.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        users.send_signal(signal.SIGTERM)
        assert users.wait(timeout=DEADLINE_S) == 0
    finally:
        if users.poll() is None:
            users.kill()
        users.wait()
    counts = json.loads(out.read_text())
    assert counts["requests"] == counts["failed"]
    assert counts["in_flight"] == 0
    lines = (tmp_path / "users.json.failures.jsonl").read_text().splitlines()
    assert len(lines) == counts["failed"]
    assert json.loads(lines[0])["kind"] == "connection"
