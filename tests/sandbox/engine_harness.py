"""Run engines for tests: in this process, or as a child that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from sandbox.engine.compilation import Cache, Compiled, programs
from sandbox.engine.config import EngineConfig, build_config, find_accelerator
from sandbox.engine.core import EngineCore
from sandbox.engine.faults import Faults
from sandbox.engine.flags import parse_flags
from sandbox.engine.server import ApiServer

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = ROOT.parent / "shared" / "recordings" / "vllm-0.32"
TPU = {"SANDBOX_ACCELERATOR": "tpu-v5-lite-podslice", "SANDBOX_CHIPS": "8"}
H100 = {"SANDBOX_ACCELERATOR": "nvidia-h100-80gb", "SANDBOX_CHIPS": "1"}
MODEL = "google/gemma-3-27b-it"
COMMON_FLAGS = [MODEL, "--max-model-len", "8192", "--max-num-seqs", "64"]
TPU_FLAGS = [*COMMON_FLAGS, "--tensor-parallel-size", "8"]
H100_FLAGS = [*COMMON_FLAGS, "--quantization", "fp8"]
DEADLINE_S = 60.0

needs_recordings = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="needs ../shared/recordings/vllm-0.32")


def recorded(name: str) -> tuple[int, dict[str, str], str]:
    """Return (status, headers, body) of a recorded exchange."""
    text = (RECORDINGS / name).read_text()
    head, _, body = text.partition("\n\n")
    lines = head.splitlines()[1:]
    status = int(lines[0].split(" ")[1])
    return status, dict(line.split(": ", 1) for line in lines[1:]), body


def shape(value: object) -> object:
    """Return a JSON value with its leaves replaced by their types, key order kept."""
    if isinstance(value, dict):
        return [(key, shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [shape(value[0])] if value and isinstance(value[0], dict | list) else "list"
    return type(value).__name__


def events(text: str) -> list[dict | str]:
    """Return the data of each SSE event; [DONE] stays text."""
    found = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in found]


def config_of(flags: list[str], env: dict[str, str]) -> EngineConfig:
    accelerator = find_accelerator(env)
    parsed = parse_flags(flags, lenient=accelerator.kind == "gpu")
    return build_config(parsed, accelerator, env)


class Running:
    """An engine in this process and a client for it."""

    def __init__(self, core: EngineCore, session: aiohttp.ClientSession, base: str, log: list[str]) -> None:
        self.core, self.session, self.base, self.log = core, session, base, log

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(self.base + path) as response:
            return response.status, await response.text()

    async def post(self, path: str, body: object, **headers: str) -> tuple[int, str]:
        data = body if isinstance(body, (str, bytes)) else json.dumps(body)
        async with self.session.post(self.base + path, data=data, headers=headers) as response:
            return response.status, await response.text()


@contextlib.asynccontextmanager
async def running(flags: list[str], env: dict[str, str], *, cold: bool = False) -> AsyncIterator[Running]:
    """Serve an engine that has booted (or, `cold`, whose programs are all still to be compiled)."""
    config = config_of(flags, {"SANDBOX_SPEED": "2000", **env})
    log: list[str] = []
    listed = programs(config.model.layers, config.max_num_seqs, config.max_num_batched_tokens)
    compiled = Compiled(listed, Cache(None, ""))
    if not cold:
        compiled.ready.update(program.name for program in listed)
    faults = Faults(config.faults_path, config.accelerator.kind, config.pod)
    core = EngineCore(config, faults, compiled, log.append)
    server = web.Server(ApiServer(core).handle, handler_cancellation=True)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    stepper = asyncio.create_task(core.run())
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(DEADLINE_S)) as session:
            yield Running(core, session, base, log)
    finally:
        stepper.cancel()
        await runner.cleanup()


async def until(condition, what: str) -> None:
    """Poll until a condition holds; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_S} s"
        await asyncio.sleep(0.01)


class Child:
    """An engine process with its log."""

    def __init__(self, argv: list[str], env: dict[str, str], tmp_path: Path) -> None:
        self.log_path = tmp_path / "engine.log"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("SANDBOX_")}
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sandbox.engine", *argv],
                cwd=ROOT,
                env={**inherited, "SANDBOX_SPEED": "2000", **env},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.log:
            assert self.process.poll() is None, f"engine ended before {text!r}:\n{self.log}"
            assert time.monotonic() < deadline, f"no {text!r} within {DEADLINE_S} s:\n{self.log}"
            time.sleep(0.02)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def exit_status(self) -> int:
        return self.process.wait(timeout=DEADLINE_S)


@contextlib.contextmanager
def child(argv: list[str], env: dict[str, str], tmp_path: Path) -> Iterator[Child]:
    """Run an engine process; it is gone afterwards."""
    engine = Child(argv, env, tmp_path)
    try:
        yield engine
    finally:
        if engine.process.poll() is None:
            engine.process.kill()
        engine.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
