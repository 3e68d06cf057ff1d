"""Bring the embedded cloud up and down: directory, signals, watchdog."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sandbox import watchdog
from sandbox.embedded import Options, Sandbox
from sandbox.pods import cancel
from sandbox.state import (
    FAULTS_FILE,
    STATE_FILE,
    is_up,
    read_state,
)
from sandbox.supervisor import Supervisor

STOP_S = 12.0
# What a run leaves in its directory, for the next one to remove.
LEFTOVERS = (
    "pods",
    "volumes",
    "envoy",
    "cluster-ca.crt",
    "cluster-client.crt",
    "cluster-client.key",
    "logs",
    FAULTS_FILE,
    STATE_FILE,
    "users.json",
    "users.json.failures.jsonl",
)


class AlreadyUp(Exception):
    """A sandbox runs in this directory."""


def _clear(directory: Path) -> None:
    """Remove what an earlier run has left; raises AlreadyUp if that run is still there."""
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / STATE_FILE).exists():
        state = read_state(directory)
        if is_up(state):
            raise AlreadyUp(
                f"a sandbox (pid {state['pid']}) runs in {directory}: end it with "
                f"`python -m sandbox down --dir {directory}` or use another --dir"
            )
        watchdog.sweep(state["id"])
    for name in LEFTOVERS:
        path = directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def running(options: Options) -> AsyncIterator[Sandbox]:
    """Run a sandbox in this event loop until the block is left; nothing of it stays."""
    directory = options.directory.resolve()
    _clear(directory)
    before = os.environ.get("SANDBOX_ID")
    async with Supervisor(directory / "logs") as supervisor:
        # Envoy is started by the gateway itself and gets this process's environment.
        os.environ["SANDBOX_ID"] = supervisor.identity
        sandbox = Sandbox(options, supervisor)
        try:
            await sandbox.start()
            yield sandbox
        finally:
            try:
                await sandbox.stop()
            finally:
                os.environ.pop("SANDBOX_ID")
                if before is not None:
                    os.environ["SANDBOX_ID"] = before


async def run(options: Options) -> int:
    """Bring a sandbox up, say where it is, and stay until SIGINT or SIGTERM; return the exit code.

    A second signal, or a stop that takes longer than STOP_S, ends everything at once: the process kills
    itself and the watchdog does the rest.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os.kill(os.getpid(), signal.SIGKILL)
        stop.set()
        loop.call_later(STOP_S, os.kill, os.getpid(), signal.SIGKILL)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    async with running(options) as sandbox:
        ready = asyncio.create_task(sandbox.wait_ready())
        ended = [asyncio.create_task(event.wait()) for event in (stop, sandbox.failed)]
        await asyncio.wait({ready, *ended}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done() and not stop.is_set() and not sandbox.failed.is_set():
            ready.result()
            if options.users_rate:
                await sandbox.start_users(options.users_rate, options.seed)
            print(summary(sandbox.state, loop.time() - began), flush=True)
            await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        await cancel(ready, *ended)
        if sandbox.failed.is_set():
            print(f"sandbox: a part has ended: {sandbox.error!r}", file=sys.stderr, flush=True)
            return 1
    return 0


def summary(state: dict[str, Any], seconds: float) -> str:
    """Return the few lines that a person needs."""
    return "\n".join(
        [
            f"The sandbox is up ({seconds:.1f} s, {state['engine']} engine, speed {state['speed']:g}).",
            f"  kubectl      export KUBECONFIG={state['kubeconfig']}",
            f"  gateway      {state['gateway_url']}/v1/models",
            f"  GKE API      {state['gke_endpoint']} (TLS, authority {state['ca_file']})",
            f"  workloads    {', '.join(w['name'] for w in state['workloads'])} in {state['namespace']}",
            f"  state        {Path(state['faults_file']).parent / STATE_FILE}",
            "Ctrl-C or `python -m sandbox down` ends it.",
        ]
    )
