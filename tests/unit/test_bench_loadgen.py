"""The load generator sends on schedule whatever the server does, and writes down what came of it."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import math
import os
import signal
import statistics
import sys
from pathlib import Path

import pytest
from bench_fakes import serving, until

from tpu_migration.bench import loadgen
from tpu_migration.bench.lengths import LengthError, Lengths, fingerprint, loops_for, prompt_text, schedule
from tpu_migration.bench.loadgen import Load, run_load
from tpu_migration.bench.results import client_health, parse
from tpu_migration.bench.summary import Limits, summarize
from tpu_migration.domain.gate import RequestResult

ROOT = Path(__file__).parents[2]
NO_LIMITS = Limits(1e9, 1e9, 0.0)
SHORT = {"prompt": Lengths.parse("5"), "output": Lengths.parse("4")}


def load(url, **options):
    return Load(url=url, model="m", seed=3, limits=NO_LIMITS, **{"requests": 20, **SHORT, **options})


def arguments(*extra):
    parser = argparse.ArgumentParser()
    loadgen.add_arguments(parser)
    return parser.parse_args(["--url", "http://127.0.0.1:9", "--model", "m", "--out", "-", *extra])


async def test_every_scheduled_request_is_sent_once_and_written_down():
    async with serving() as server:
        run = await run_load(load(server.url, rate_rps=200, ignore_eos=True, headers={"x-arm": "target"}))
    assert [r.ok for r in run.results] == [True] * 20
    assert {r.id for r in run.results} == {h["X-Request-Id"] for h in server.headers}
    assert {h["x-arm"] for h in server.headers} == {"target"}
    assert [r.scheduled_s for r in run.results] == sorted(r.scheduled_s for r in run.results)
    for r in run.results:
        assert (r.prompt_tokens, r.output_tokens, r.finish_reason) == (5, 4, "length")
        assert 0 < r.ttft_s <= r.e2e_s
        assert r.malformed() is None
    body = server.bodies[0]
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert body["ignore_eos"] is True
    assert run.summary["void"] is False
    assert run.summary["system_fingerprints"] == ["fake-1"]
    assert run.summary["loop_lag_p99_ms"] is not None


async def test_the_chat_endpoint_is_measured_from_its_first_token_not_its_role():
    async with serving() as server:
        run = await run_load(load(server.url, rate_rps=200, endpoint="chat", requests=3))
    assert [r.output_tokens for r in run.results] == [4, 4, 4]
    assert "messages" in server.bodies[0]


async def test_a_server_that_hangs_delays_no_later_request():
    async with serving(misbehave=lambda body, headers: "hang") as server:
        stop = asyncio.Event()
        running = asyncio.create_task(run_load(load(server.url, rate_rps=500, requests=30), stop))
        await until(lambda: len(server.bodies) == 30)
        stop.set()
        run = await running
    assert run.summary["void"] is True
    assert "interrupted after 0 of 30" in run.summary["void_reasons"][0]


async def test_the_wait_before_sending_counts_against_the_answer():
    async with serving() as server:
        run = await run_load(load(server.url, rate_rps=200))
    for r in run.results:
        assert r.ttft_s >= r.sent_s - r.scheduled_s


@pytest.mark.parametrize(
    ("fault", "error", "truncated"),
    [
        ("503", "http 503: no healthy upstream", 0),
        ("cut", "truncated: ", 5),
        ("abort", "truncated: aborted after 3 tokens", 5),
        ("hang", "timeout after", 0),
    ],
)
async def test_each_way_of_failing_is_a_failure_and_says_which(fault, error, truncated):
    async with serving(misbehave=lambda body, headers: fault) as server:
        run = await run_load(load(server.url, rate_rps=500, requests=5, timeout_s=0.2))
    assert all(not r.ok and r.error.startswith(error) for r in run.results), run.results
    assert (run.summary["failed"], run.summary["truncated"]) == (5, truncated)
    assert run.summary["ttft_p99_s"] is None
    assert run.summary["void"] is False


async def test_a_server_that_is_not_there_fails_every_request_and_voids_nothing():
    async with serving() as server:
        pass
    run = await run_load(load(server.url, rate_rps=500, requests=4))
    assert [r.error.partition(":")[0] for r in run.results] == ["connection"] * 4
    assert run.summary["void"] is False


async def test_fewer_tokens_than_ignore_eos_asked_for_is_a_failure():
    def stop_early(body, headers):
        body["max_tokens"] -= 1

    async with serving(misbehave=stop_early) as server:
        asked = await run_load(load(server.url, rate_rps=500, requests=2, ignore_eos=True))
        free = await run_load(load(server.url, rate_rps=500, requests=2))
    assert [r.error for r in asked.results] == ["truncated: 3 tokens of 4"] * 2
    assert all(r.ok for r in free.results)


async def test_a_closed_loop_never_exceeds_its_concurrency():
    async with serving(token_s=0.001) as server:
        run = await run_load(load(server.url, concurrency=3, requests=12))
    assert run.summary["peak_streams"] == 3
    assert len(run.results) == 12
    assert client_health(run).achieved_rate_ratio is None


async def test_each_warm_up_shape_is_sent_once_at_its_width():
    async with serving(token_s=0.001) as server:
        run = await run_load(load(server.url, requests=0, shapes=((32, 1), (8, 4))))
    assert sorted(len(b["prompt"].split()) for b in server.bodies) == [8, 8, 8, 8, 32]
    assert [(s["shape"], s["failed"]) for s in run.summary["shapes"]] == [("32x1", 0), ("8x4", 0)]
    assert run.summary["peak_streams"] == 4


async def test_the_command_writes_a_result_that_can_be_verified(tmp_path):
    async with serving() as server:
        args = ["bench", "--url", f"{server.url}/v1/", "--model", "m", "--rate", "300", "--requests", "10"]
        args += ["--seed", "5", "--prompt-tokens", "uniform:3:9", "--output-tokens", "4", "--out"]
        lenient = ["--policy-void-loop-lag-ms", "100000", "--policy-void-schedule-delay-ms", "100000",
                   "--policy-void-achieved-rate", "0.0001"]  # fmt: skip
        code, printed = await command(*args, "-", *lenient)
        assert code == 0
        assert len(parse(printed).results) == 10
        code, printed = await command(*args, str(tmp_path / "out.jsonl"), *lenient)
        assert (code, printed) == (0, "")
        assert len(parse((tmp_path / "out.jsonl").read_text()).results) == 10
        code, printed = await command(*args, "-", "--policy-void-loop-lag-ms", "0.000001")
        assert code == 3
        assert "loop lag" in parse(printed).summary["void_reasons"][0]
    assert list(tmp_path.iterdir()) == [tmp_path / "out.jsonl"]


async def test_sigterm_ends_a_run_with_a_result_that_is_void():
    async with serving(misbehave=lambda body, headers: "hang") as server:
        process = await start("bench", "--url", server.url, "--model", "m", "--rate", "300", "--requests", "5",
                              "--out", "-")  # fmt: skip
        await until(lambda: len(server.bodies) == 5)
        process.send_signal(signal.SIGTERM)
        printed, _ = await process.communicate()
    assert process.returncode == 3
    assert "interrupted" in parse(printed.decode()).summary["void_reasons"][-1]


LENIENT = ["--policy-void-loop-lag-ms", "1e6", "--policy-void-schedule-delay-ms", "1e6",
           "--policy-void-achieved-rate", "0.0001"]  # fmt: skip


async def test_two_processes_send_one_schedule_and_make_one_result():
    async with serving() as server:
        code, printed = await command("bench", "--url", server.url, "--model", "m", "--rate", "300", "--requests", "21",
                                      "--processes", "2", "--out", "-", "--output-tokens", "4", *LENIENT)  # fmt: skip
        run = parse(printed)
        ids = [headers["X-Request-Id"] for headers in server.headers]
    assert code == 0
    assert (run.summary["processes"], run.summary["ok"], run.summary["planned"]) == (2, 21, 21)
    assert [r.id.rpartition("-")[2] for r in run.results] == [str(i) for i in range(21)]
    assert sorted(ids) == sorted(r.id for r in run.results)
    one = schedule(21, 300, 1, Lengths.parse("512"), Lengths.parse("4"))
    assert [r.scheduled_s for r in run.results] == [pytest.approx(p.at_s, abs=1e-5) for p in one]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_load_process_that_ends_early_voids_the_whole_run(number):
    async with serving(misbehave=lambda body, headers: "hang") as server:
        process = await start("bench", "--url", server.url, "--model", "m", "--rate", "300", "--requests", "8",
                              "--processes", "2", "--out", "-", *LENIENT)  # fmt: skip
        await until(lambda: len(server.bodies) == 8)
        if number == signal.SIGTERM:
            process.send_signal(number)
        else:
            for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                os.kill(int(child), number)
        printed, _ = await process.communicate()
    assert process.returncode == 3
    assert "interrupted" in "".join(parse(printed.decode()).summary["void_reasons"])


async def test_a_sample_of_the_requests_is_written_but_all_are_summed_up():
    async with serving() as server:
        run = await run_load(load(server.url, rate_rps=300, requests=20, write_every=5))
    assert [r.id.rpartition("-")[2] for r in run.results] == ["0", "5", "10", "15"]
    assert (run.summary["requests"], run.summary["written"]) == (20, 4)


def test_more_event_loops_are_used_only_where_the_tokens_need_them():
    rates = (0.0, 20.0, 26.0, 60.0, 5000.0)
    assert [loops_for(rate, Lengths.parse("uniform:100:300")) for rate in rates] == [1, 1, 2, 3, 8]


def test_the_live_histogram_becomes_the_lengths_that_are_sent():
    buckets = {1.0: 0, 10.0: 50, 20.0: 50, 50.0: 80, 10_000.0: 98, math.inf: 100}
    made = Lengths.of_histogram(buckets, 1000)
    assert made.text == "bins:2-10=50,21-50=30,51-1000=18,1000-1000=2"
    assert Lengths.of_histogram({1.0: 0, math.inf: 0}, 1000) is None
    assert Lengths.of_histogram({}, 1000) is None


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--rate", "5"],
        ["--rate", "5", "--concurrency", "2", "--requests", "9"],
        ["--shapes", "32x1", "--rate", "5", "--requests", "9"],
        ["--rate", "5", "--requests", "9", "--out", "/nowhere/at/all/out.jsonl"],
    ],
)
def test_options_that_contradict_each_other_are_refused_before_anything_is_sent(extra, capsys):
    assert loadgen.main(arguments(*extra)) == 2
    assert capsys.readouterr().err.startswith("bench: ")


@pytest.mark.parametrize(
    "extra",
    [
        ["--shapes", "32"], ["--shapes", "0x1"], ["--rate", "0"], ["--rate", "nan"], ["--requests", "0"],
        ["--header", "x"], ["--header", "a=b\r\nc: d"], ["--prompt-tokens", "many"],
    ],
)  # fmt: skip
def test_an_option_that_makes_no_sense_is_refused(extra):
    with pytest.raises(SystemExit) as refused:
        arguments(*extra)
    assert refused.value.code == 2


def test_the_schedule_follows_from_the_seed_alone():
    lengths = Lengths.parse("lognormal:256:0.6:2048"), Lengths.parse("bins:1-64=3,65-128=1")
    first, same, other = (schedule(4000, 10.0, seed, *lengths) for seed in (1, 1, 2))
    assert first == same
    assert fingerprint(first) != fingerprint(other)
    gaps = [b.at_s - a.at_s for a, b in itertools.pairwise(first)]
    assert statistics.mean(gaps) == pytest.approx(0.1, rel=0.08)
    assert statistics.stdev(gaps) == pytest.approx(0.1, rel=0.1)  # exponential: as wide as it is long
    assert statistics.mean(p.prompt_tokens for p in first) == pytest.approx(256, rel=0.08)
    assert max(p.prompt_tokens for p in first) <= 2048
    assert sum(p.output_tokens <= 64 for p in first) == pytest.approx(3000, rel=0.05)


def test_a_known_seed_always_gives_the_known_schedule():
    fixed = Lengths.parse("uniform:10:20")
    assert fingerprint(schedule(50, 4.0, 7, fixed, fixed)) == "b642b83385e1684e"


@pytest.mark.parametrize("text", ["", "0", "x", "uniform:5", "uniform:9:3", "lognormal:0:1:9", "bins:1-2=0", "-3"])
def test_a_length_that_cannot_be_read_shows_the_forms(text):
    with pytest.raises(LengthError, match="write 256"):
        Lengths.parse(text)


def test_no_two_prompts_share_the_prefix_that_a_cache_would_answer():
    prompts = [prompt_text(1, i, 64) for i in range(300)]
    assert all(len(p.split()) == 64 for p in prompts)
    assert len({tuple(p.split()[:16]) for p in prompts}) == 300
    assert prompt_text(1, 0, 64) == prompts[0]
    assert prompt_text(2, 0, 64) != prompts[0]


@pytest.mark.parametrize(
    ("late_s", "stretch", "lag_ms", "said"),
    [
        (0.0, 1.0, 4.9, None),
        (0.0, 1.0, 5.1, "loop lag p99 5.1 ms > 5 ms"),
        (0.0, 1.0, None, "loop lag was not measured"),
        (0.021, 1.0, 1.0, "schedule delay p99 21.0 ms > 20 ms"),
        (0.0, 1.03, 1.0, "achieved rate 97.1 % < 98 %"),
    ],
)
def test_a_client_that_fell_behind_voids_the_run(late_s, stretch, lag_ms, said):
    limits = Limits(5.0, 20.0, 0.98) if stretch == 1.0 else Limits(5.0, 1e9, 0.98)
    base = RequestResult("", 0.0, 0.0, 0.1, 0.02, 0.5, 5, 20, True, None, "length")
    results = [
        dataclasses.replace(base, id=str(i), scheduled_s=i * 0.1, sent_s=i * 0.1 * stretch + late_s) for i in range(100)
    ]
    summary = summarize(results, open_loop=True, loop_lag_p99_ms=lag_ms, interrupted=False, planned=100, limits=limits)
    assert len(summary["void_reasons"]) == (said is not None)
    assert (said or "") in "".join(summary["void_reasons"])
    json.dumps(summary, allow_nan=False)


async def start(name, *args):
    """Start the bench or the prober as the command line does."""
    module = "loadgen" if name == "bench" else name
    script = (
        "import argparse, sys; from tpu_migration.bench import " + module + " as m;"
        "p = argparse.ArgumentParser(); m.add_arguments(p); sys.exit(m.main(p.parse_args()))"
    )
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *args,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT / "plugins"), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip


async def command(name, *args):
    process = await start(name, *args)
    out, err = await process.communicate()
    assert not err, err.decode()
    return process.returncode, out.decode()
