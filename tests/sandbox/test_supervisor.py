"""No process of the sandbox outlives its supervisor: held with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox import watchdog
from sandbox.supervisor import GATEWAY, PODS, REST, USERS, Supervisor, end, start_time

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 30.0

# A process that starts a grandchild in a session of its own, and ignores SIGTERM like it.
STUBBORN = "trap '' TERM; setsid sh -c \"trap '' TERM; while :; do sleep 1; done\" & while :; do sleep 1; done"

HOST = """
import asyncio, json, os, sys
from pathlib import Path
from sandbox.supervisor import Supervisor

async def main():
    async with Supervisor(Path(sys.argv[1]), sys.argv[2]) as supervisor:
        await supervisor.start("stubborn", ["sh", "-c", sys.argv[3]])
        print(json.dumps({"identity": supervisor.identity, "watchdog": supervisor.watchdog_pid}), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def eventually(condition, why: str):
    """Poll until the condition holds; its value is returned."""
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.02)
    pytest.fail(f"not within {DEADLINE_S} s: {why}")


@pytest.fixture
def identity():
    """Return a fresh sandbox id, and end whatever a failing test leaves behind."""
    name = f"test-{secrets.token_hex(4)}"
    yield name
    watchdog.sweep(name)


@pytest.fixture
def host(tmp_path, identity):
    """Start a supervisor in a process of its own; its grandchild called setsid and ignores SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOST, str(tmp_path), identity, STUBBORN],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    state = json.loads(process.stdout.readline())
    eventually(lambda: len(watchdog.members(identity)) >= 4, "two shells and their sleeps run")
    yield process, state
    process.kill()
    process.wait()
    process.stdout.close()


def test_sigkill_of_the_supervisor_leaves_no_process_behind(host, identity):
    process, state = host
    process.send_signal(signal.SIGKILL)
    process.wait()
    eventually(lambda: not watchdog.members(identity), "the watchdog ended every descendant")
    eventually(lambda: start_time(state["watchdog"]) is None, "the watchdog itself went away")


def _state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_end_from_outside_ends_a_supervisor_that_does_not_answer(host, identity):
    process, _ = host
    process.send_signal(signal.SIGSTOP)
    # Until it stands still, a SIGTERM that comes after may be seen first.
    eventually(lambda: _state(process.pid) == "T", "the supervisor stands still")
    killed = await end(identity, process.pid, start_time(process.pid), deadline_s=0.2)
    assert process.pid in killed
    assert not watchdog.members(identity)


async def test_end_never_signals_a_pid_that_now_belongs_to_another_process(identity):
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        assert await end(identity, bystander.pid, started=1, deadline_s=0.2) == set()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_the_watchdog_stays_under_ten_mebibytes(host):
    _, state = host
    status = Path(f"/proc/{state['watchdog']}/smaps_rollup").read_text()
    pss_kib = int(next(line for line in status.splitlines() if line.startswith("Pss:")).split()[1])
    assert pss_kib < 10 * 1024


async def test_a_descendant_with_a_cleaned_environment_is_found_through_its_parent(tmp_path):
    async with Supervisor(tmp_path) as supervisor:
        child = await supervisor.start("parent", ["sh", "-c", "env -i sleep 1000 & wait"])
        eventually(lambda: len(watchdog.members(child.identity)) == 2, "the shell and its sleep run")
        await supervisor.stop("parent", grace_s=0)
        assert not watchdog.members(child.identity)


async def test_a_title_that_overwrites_the_environment_does_not_hide_a_process(tmp_path):
    titled = (
        "import setproctitle, time; setproctitle.setproctitle('x' * 4000);print('set', flush=True); time.sleep(1000)"
    )
    async with Supervisor(tmp_path) as supervisor:
        child = await supervisor.start("titled", [sys.executable, "-c", titled])
        eventually(lambda: b"set" in (tmp_path / "titled.log").read_bytes(), "the title is set")
        assert child.pid in watchdog.members(supervisor.identity)


async def test_users_stop_first_then_pods_then_the_gateway_then_the_rest(tmp_path):
    ended = tmp_path / "ended"
    script = f'trap "echo $0 >> {ended}; exit" TERM; echo up; while :; do sleep 0.05; done'
    names = {"api": REST, "envoy": GATEWAY, "pod": PODS, "users": USERS}
    async with Supervisor(tmp_path) as supervisor:
        for name, order in names.items():
            await supervisor.start(name, ["sh", "-c", script, name], order=order)
        for name in names:
            eventually(lambda name=name: (tmp_path / f"{name}.log").read_bytes(), f"{name} has set its trap")
    assert ended.read_text().split() == ["users", "pod", "envoy", "api"]


async def test_one_child_ends_without_its_siblings(tmp_path):
    async with Supervisor(tmp_path) as supervisor:
        first = await supervisor.start("first", ["sleep", "1000"])
        second = await supervisor.start("second", ["sleep", "1000"])
        assert await supervisor.stop("first", grace_s=5) == 128 + signal.SIGTERM
        assert not first.running
        assert second.running


async def test_a_nested_supervisor_ends_only_what_is_its_own(tmp_path, monkeypatch):
    async with Supervisor(tmp_path) as outer:
        sibling = await outer.start("sibling", ["sleep", "1000"])
        monkeypatch.setenv("SANDBOX_ID", f"{outer.identity}/99")
        async with Supervisor(tmp_path) as inner:
            nested = await inner.start("nested", ["sleep", "1000"])
            async with asyncio.timeout(DEADLINE_S):  # its environment can be read once it is no fork of ours any more
                while nested.pid not in watchdog.members(outer.identity):
                    await asyncio.sleep(0)
        assert not nested.running
        assert sibling.running


async def test_a_second_process_of_a_running_name_is_refused(tmp_path):
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start("one", ["sleep", "1000"])
        with pytest.raises(ValueError, match="still runs"):
            await supervisor.start("one", ["sleep", "1000"])


async def test_exit_codes_are_those_that_a_shell_shows(tmp_path):
    async with Supervisor(tmp_path) as supervisor:
        child = await supervisor.start("dies", ["sh", "-c", "kill -9 $$"])
        assert await asyncio.wait_for(child.wait(), DEADLINE_S) == 137
        assert not child.killed
