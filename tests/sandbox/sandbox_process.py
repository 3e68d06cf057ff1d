"""Run `python -m sandbox` in a process of its own, and look at it from outside."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest

from sandbox import watchdog
from sandbox.state import read_state

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 90.0
_LISTEN, _UNCONNECTED = "0A", "07"


def eventually(condition: Callable[[], Any], why: str, deadline_s: float = DEADLINE_S) -> Any:
    """Wait until a condition of another process holds; return its value."""
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"not within {deadline_s} s: {why}")


def sandbox(*arguments: str, **more: Any) -> subprocess.Popen:
    """Start `python -m sandbox`."""
    return subprocess.Popen([sys.executable, "-m", "sandbox", *arguments], cwd=ROOT, **more)


@contextlib.contextmanager
def running(
    tmp: Path, *options: str, ready_s: float = DEADLINE_S
) -> Iterator[tuple[subprocess.Popen, Path, dict[str, Any]]]:
    """Bring a sandbox up; give (process, directory, state) once it is ready, and leave nothing of it."""
    directory = tmp / "sb"
    with (tmp / "up.log").open("w") as log:
        process = sandbox("up", "--dir", str(directory), "--speed", "600", *options, stdout=log, stderr=log)

        def ready() -> bool:
            assert process.poll() is None, (tmp / "up.log").read_text()
            return (directory / "state.json").exists() and read_state(directory)["ready"]

        try:
            eventually(ready, "the sandbox is ready", ready_s)
            state = read_state(directory)
            yield process, directory, state
        finally:
            process.kill()
            process.wait()
            if (directory / "state.json").exists():
                watchdog.sweep(read_state(directory)["id"])


def everything(state: dict[str, Any]) -> set[int]:
    """Return the pids of a sandbox: its supervisor, and all that carry its identity."""
    return watchdog.members(state["id"]) | {state["pid"]}


def listening(pids: Iterable[int]) -> set[tuple[str, int]]:
    """Return (address, port) of each TCP socket that listens and each UDP socket that takes from anybody."""
    found = set()
    for pid in pids:
        mine = _sockets(pid)
        for table, wanted in (("tcp", _LISTEN), ("tcp6", _LISTEN), ("udp", _UNCONNECTED), ("udp6", _UNCONNECTED)):
            for line in _lines(pid, table):
                fields = line.split()
                if fields[3] == wanted and fields[9] in mine:
                    found.add(_address(fields[1]))
    return found


def _lines(pid: int, table: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    except OSError:
        return []  # the process has ended


def _sockets(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(descriptor.path)
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def _address(text: str) -> tuple[str, int]:
    """Read the kernel's form: words of four bytes in the machine's order, then the port."""
    host, _, port = text.partition(":")
    words = struct.pack(f"={len(host) // 8}I", *(int(host[i : i + 8], 16) for i in range(0, len(host), 8)))
    address = IPv4Address(words) if len(words) == 4 else IPv6Address(words)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None  # an IPv4 socket of a dual stack
    return str(mapped or address), int(port, 16)


def is_loopback(address: str) -> bool:
    """Tell whether an address of `listening` is this machine's own."""
    return ip_address(address).is_loopback
