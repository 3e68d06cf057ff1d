"""The prober tells a route that answers from one that fails, and from one that never answered."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from bench_fakes import serving, until

from tpu_migration.bench import prober
from tpu_migration.bench.probe_stats import ArmStats, Probe
from tpu_migration.bench.prober import Prober, Settings

ROOT = Path(__file__).parents[2]
OK = Probe(ok=True, ttft_s=0.1, tpot_s=0.02)
BROKEN = Probe(ok=False, error="http 503")


class Time:
    now = 1000.0

    def __call__(self):
        return self.now


def stats(*events):
    """Return a clock and an arm's counters after some probes, a second apart."""
    clock = Time()
    arm = ArmStats(clock, window_s=60.0)
    for event in events:
        number = arm.begin(long=event.long)
        clock.now += 1
        arm.finish(number, event)
    return clock, arm


def test_an_arm_that_never_answered_is_visible_as_such():
    _, arm = stats()
    assert (arm.snapshot()["ok"], arm.snapshot()["last_ok_s_ago"], arm.snapshot()["failed"]) == (0, None, 0)
    _, arm = stats(BROKEN, BROKEN)
    seen = arm.snapshot()
    assert (seen["last_ok_s_ago"], seen["consecutive_failures"], seen["last_error"]) == (None, 2, "http 503")


def test_an_answer_ends_a_row_of_failures_but_not_their_count():
    _, arm = stats(BROKEN, BROKEN, OK, Probe(ok=False, truncated=True, error="truncated: x"), OK)
    seen = arm.snapshot()
    assert (seen["ok"], seen["failed"], seen["truncated"], seen["consecutive_failures"]) == (2, 3, 1, 0)
    assert seen["last_error"] == "truncated: x"


def test_silence_shows_as_age_and_the_window_forgets():
    clock, arm = stats(OK)
    clock.now += 61
    seen = arm.snapshot()
    assert seen["last_ok_s_ago"] == 61
    assert seen["ttft_p99_s"] is None
    assert seen["recent"] == {"window_s": 60.0, "ok": 0, "failed": 0}
    assert seen["ok"] == 1


def test_a_failure_in_the_window_makes_the_p99_unknown_not_better():
    _, arm = stats(OK, OK)
    assert arm.snapshot()["ttft_p99_s"] == 0.1
    _, arm = stats(OK, BROKEN)
    assert arm.snapshot()["ttft_p99_s"] is None
    assert arm.snapshot()["recent"]["failed"] == 1


def test_a_probe_that_hangs_is_visible_before_it_fails():
    clock, arm = stats(OK)
    arm.begin()
    clock.now += 7
    seen = arm.snapshot()
    assert (seen["in_flight"], seen["oldest_in_flight_s"]) == (1, 7)


@asynccontextmanager
async def probing(url, **options):
    stop = asyncio.Event()
    probe = Prober(Settings(url=url, model="m", every_s=0.01, arm_every_s=0.01, tokens=4, **options))
    running = asyncio.create_task(probe.probe(stop))
    try:
        yield probe
    finally:
        stop.set()
        await running


def arm_of(probe, name):
    return probe.snapshot()["arms"][name]


async def test_each_arm_is_probed_through_its_header_and_counted_alone():
    def faulty_target(body, headers):
        return "503" if headers.get("x-tpu-arm") == "target" else None

    async with (
        serving(misbehave=faulty_target) as server,
        probing(server.url, arm_header="x-tpu-arm", long_every_s=1e6) as probe,
    ):
        await until(lambda: arm_of(probe, "source")["ok"] > 3 and arm_of(probe, "target")["failed"] > 3)
        await until(lambda: arm_of(probe, "main")["ok"] > 3)
        target = arm_of(probe, "target")
        assert target["ok"] == 0
        assert target["last_ok_s_ago"] is None
        assert target["consecutive_failures"] == target["failed"]
        assert target["last_error"].startswith("http 503")
        assert arm_of(probe, "source")["failed"] == 0
        assert all(h.get("x-tpu-arm") in (None, "source", "target") for h in server.headers)
        assert len({h["X-Request-Id"] for h in server.headers}) == len(server.headers)


async def test_without_an_arm_header_only_the_main_route_is_probed():
    async with serving() as server, probing(server.url) as probe:
        await until(lambda: arm_of(probe, "main")["ok"] > 2)
        assert list(probe.snapshot()["arms"]) == ["main"]


async def test_a_long_answer_is_as_long_as_the_servers_speed_makes_it_last():
    async with (
        serving(token_s=0.01) as server,
        probing(server.url, long_seconds=0.5, long_every_s=0.05) as probe,
    ):
        await until(lambda: arm_of(probe, "main")["long"]["ok"] > 0)
        longest = max(body["max_tokens"] for body in server.bodies)
        assert 4 < longest <= 51  # a token takes 10 ms or, on a busy machine, more
        assert all(body["ignore_eos"] for body in server.bodies)


async def test_a_long_answer_never_asks_for_more_than_the_model_allows():
    async with serving(max_model_len=100) as server, probing(server.url, long_every_s=0.02) as probe:
        await until(lambda: arm_of(probe, "main")["long"]["ok"] > 1)
        assert max(body["max_tokens"] for body in server.bodies) == 100 - 16 - 64


async def test_a_long_answer_that_is_cut_counts_as_truncated():
    def cut_long(body, headers):
        return "cut" if body["max_tokens"] > 4 else None

    async with serving(misbehave=cut_long) as server, probing(server.url, long_every_s=0.02) as probe:
        await until(lambda: arm_of(probe, "main")["long"]["failed"] > 0)
        assert arm_of(probe, "main")["truncated"] > 0


async def test_a_route_that_dies_and_comes_back_is_followed():
    dead = False
    async with (
        serving(misbehave=lambda body, headers: "503" if dead else None) as server,
        probing(server.url, long_every_s=1e6) as probe,
    ):
        await until(lambda: arm_of(probe, "main")["ok"] > 2)
        dead = True
        await until(lambda: arm_of(probe, "main")["consecutive_failures"] > 2)
        dead = False
        await until(lambda: arm_of(probe, "main")["consecutive_failures"] == 0)
        assert arm_of(probe, "main")["failed"] > 2


async def test_probes_keep_their_beat_while_earlier_ones_hang():
    async with serving(misbehave=lambda body, headers: "hang") as server, probing(server.url) as probe:
        await until(lambda: arm_of(probe, "main")["in_flight"] > 5)


async def test_the_process_serves_its_counters_on_the_pods_address_and_stops_on_sigterm():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = (
        "import argparse, sys; from tpu_migration.bench import prober as m;"
        "p = argparse.ArgumentParser(); m.add_arguments(p); sys.exit(m.main(p.parse_args()))"
    )
    async with serving() as server, aiohttp.ClientSession() as client:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, "--url", server.url, "--model", "m", "--every-s", "0.02",
            "--routes-header", "x-arm", "--port", str(port), stderr=asyncio.subprocess.PIPE,
            env={"PYTHONPATH": str(ROOT / "plugins"), "PATH": os.environ["PATH"], "POD_IP": "127.0.0.1"},
        )  # fmt: skip
        seen = {}

        async def answered():
            try:
                async with client.get(f"http://127.0.0.1:{port}/stats") as response:
                    seen.update(json.loads(await response.text()))
            except aiohttp.ClientError:
                return False
            return seen["arms"]["main"]["ok"] > 2

        async with asyncio.timeout(20):
            while not await answered():
                await asyncio.sleep(0.02)
        async with client.get(f"http://127.0.0.1:{port}/health") as response:
            assert response.status == 200
        assert seen["schema"] == 1
        assert set(seen["arms"]) == {"main", "source", "target"}
        assert {"ok", "failed", "truncated", "consecutive_failures", "last_ok_s_ago", "last_error",
                "ttft_p99_s"} <= set(seen["arms"]["main"])  # fmt: skip
        process.send_signal(signal.SIGTERM)
        _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")


@pytest.mark.parametrize("extra", [["--every-s", "0"], ["--tokens", "-1"], ["--header", "x"]])
def test_an_option_that_makes_no_sense_is_refused(extra):
    parser = argparse.ArgumentParser()
    prober.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--url", "http://x", "--model", "m", *extra])
