"""A sandbox goes without a trace, however it ends, and while it is there only this machine can reach it."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
from sandbox_process import DEADLINE_S, eventually, everything, is_loopback, listening, running, sandbox

from sandbox import watchdog
from sandbox.state import NotUp, is_up, read_state

WITH_USERS = ("--users", "2")


def programs(pids: set[int]) -> str:
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):  # it has just ended
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
    return "\n".join(found)


def test_nothing_listens_beyond_loopback_and_down_leaves_no_process(tmp_path):
    with running(tmp_path, *WITH_USERS) as (process, directory, state):
        for part in ("envoy", "sandbox.engine", "tpu-migration guard", "sandbox.users"):
            eventually(lambda part=part: part in programs(everything(state)), f"{part} is one of its processes")
        sockets = listening(everything(state))
        # The look itself works: these three are known to be there.
        assert set(state["ports"].values()) <= {port for _, port in sockets}
        assert not [(address, port) for address, port in sockets if not is_loopback(address)]

        assert sandbox("down", "--dir", str(directory)).wait(DEADLINE_S) == 0
        assert process.wait(DEADLINE_S) == 0
        assert not watchdog.members(state["id"])
        with pytest.raises(NotUp):
            read_state(directory)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_gracefully_with_everything_it_started(tmp_path, number):
    with running(tmp_path, *WITH_USERS) as (process, _, state):
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == 0
        assert not watchdog.members(state["id"])


def test_its_sudden_death_leaves_neither_users_nor_engines_nor_envoy(tmp_path):
    with running(tmp_path, *WITH_USERS) as (process, directory, state):
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        eventually(lambda: not watchdog.members(state["id"]), "the watchdog has ended everything")
        assert not is_up(read_state(directory))
        # What it left on disk is no obstacle.
        assert sandbox("down", "--dir", str(directory)).wait(DEADLINE_S) == 0


def test_its_death_in_the_middle_of_the_start_leaves_nothing_either(tmp_path):
    directory = tmp_path / "sb"
    process = sandbox("up", "--dir", str(directory))
    eventually((directory / "state.json").exists, "it has begun to start")
    state = read_state(directory)
    eventually(lambda: watchdog.members(state["id"]), "it has started a process")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    eventually(lambda: not watchdog.members(state["id"]), "the watchdog has ended everything")


def test_a_look_at_sockets_sees_one_that_is_open_to_all():
    """The test above must be able to fail."""
    import socket

    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        tcp.bind(("0.0.0.0", 0))
        tcp.listen()
        udp.bind(("0.0.0.0", 0))
        seen = listening([os.getpid()])
        assert {("0.0.0.0", tcp.getsockname()[1]), ("0.0.0.0", udp.getsockname()[1])} <= seen
    assert not is_loopback("0.0.0.0")
    assert is_loopback("127.2.3.4")
    assert is_loopback("::1")
    assert not is_loopback("::")
