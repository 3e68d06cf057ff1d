"""Measure the sandbox as `python -m sandbox up` starts it: one workload, two replicas, the default speed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sandbox import watchdog
from sandbox.state import STATE_FILE, read_state
from tests.bench.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
KUBECTL = Path(sys.executable).parent / "kubectl"
UP_S, SETTLE_S = 120.0, 5.0
START_LIMIT_S, MEMORY_LIMIT_MIB = 8.0, 400.0


def start_to_ready() -> Figure:
    """Measure from the start of the command until every workload answers through the gateway."""
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        with _up():
            seconds.append(time.monotonic() - began)
    return Figure("sandbox_start_to_ready", round(max(seconds), 2), "s", START_LIMIT_S)


def idle_memory() -> Figure:
    """Add up the proportional set sizes of all processes, once all pods run and nothing happens."""
    with _up() as state:
        for name in (state["workload"], "tpu-migration-guard"):
            rollout = ["rollout", "status", "--namespace", state["namespace"], f"deployment/{name}", "--timeout=60s"]
            subprocess.run(
                [KUBECTL, "--kubeconfig", state["kubeconfig"], *rollout], check=True, stdout=subprocess.DEVNULL
            )
        time.sleep(SETTLE_S)
        kib = sum(pss_kib(pid) for pid in _processes(state))
    return Figure("sandbox_idle_memory", round(kib / 1024, 1), "MiB", MEMORY_LIMIT_MIB)


@contextmanager
def _up() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as tmp:
        directory, log = Path(tmp) / "sandbox", Path(tmp) / "up.log"
        with log.open("w") as output:
            argv = [sys.executable, "-m", "sandbox", "up", "--dir", str(directory)]
            process = subprocess.Popen(argv, cwd=ROOT, stdout=output, stderr=output)
        try:
            yield _ready(process, directory, log)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _ready(process: subprocess.Popen[bytes], directory: Path, log: Path) -> dict[str, Any]:
    until = time.monotonic() + UP_S
    while time.monotonic() < until and process.poll() is None:
        if (directory / STATE_FILE).exists() and (state := read_state(directory))["ready"]:
            return state
        time.sleep(0.01)
    raise RuntimeError(f"the sandbox did not come up:\n{log.read_text()}")


def _processes(state: dict[str, Any]) -> set[int]:
    """Return the supervisor, its watchdog, and everything that carries its identity."""
    children = Path(f"/proc/{state['pid']}/task/{state['pid']}/children").read_text().split()
    return {state["pid"], *map(int, children), *watchdog.members(state["id"])}


def pss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError(f"no Pss of {pid}")


if __name__ == "__main__":
    # Where the memory goes, for whoever wants less of it.
    with _up() as up:
        time.sleep(SETTLE_S)
        for pid in sorted(_processes(up)):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
            print(f"{pss_kib(pid) / 1024:7.1f} MiB  {command}")
        print(json.dumps({"processors": os.cpu_count()}))
