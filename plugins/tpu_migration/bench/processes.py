"""Send one schedule from several processes, where one event loop would be the bottleneck."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from tpu_migration.bench.lengths import Planned
from tpu_migration.bench.load import LEAD_S, Load, Part, run_part


def run_in_processes(load: Load, planned: Sequence[Planned], processes: int) -> list[Part]:
    """Send every n-th request from each process, all by one clock; SIGTERM and SIGINT end the run early.

    A process that dies leaves a part without results that says it was interrupted: the run is void.
    """
    context = multiprocessing.get_context("spawn")  # nothing of this process's state, and no locks held
    name = f"bench-{secrets.token_hex(4)}"
    children: list[tuple[BaseProcess, Connection]] = []
    for index in range(processes):
        ours, theirs = context.Pipe()
        child: BaseProcess = context.Process(target=_child, args=(load, planned[index::processes], name, theirs))
        child.start()
        theirs.close()
        children.append((child, ours))
    with _passing_on([child for child, _ in children]):
        ready = [_received(pipe) is not None for _, pipe in children]
        start = time.monotonic() + LEAD_S
        for (_, pipe), is_ready in zip(children, ready, strict=True):
            if is_ready:
                pipe.send(start if all(ready) else None)
        parts = [_received(pipe) for _, pipe in children]
        for child, _ in children:
            child.join()
    dead = Part(start, start, {}, None, True, 0, frozenset())
    return [part if isinstance(part, Part) else dead for part in parts]


def _child(load: Load, planned: Sequence[Planned], name: str, pipe: Connection) -> None:
    stopped: list[int] = []  # a signal that comes before the loop runs
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: stopped.append(received))
    pipe.send("ready")
    start = pipe.recv()
    if start is not None:
        pipe.send(asyncio.run(_part(load, planned, name, start, stopped)))


async def _part(load: Load, planned: Sequence[Planned], name: str, start: float, stopped: list[int]) -> Part:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if stopped:
        stop.set()
    return await run_part(load, planned, stop, name=name, start=start)


def _received(pipe: Connection) -> object:
    try:
        received: object = pipe.recv()
    except (EOFError, ConnectionError):
        return None
    return received


@contextlib.contextmanager
def _passing_on(children: Sequence[BaseProcess]) -> Iterator[None]:
    """Pass a signal to stop on to the children, which end their parts and report."""

    def pass_on(number: int, _frame: object) -> None:
        for child in children:
            if child.pid is not None and child.is_alive():
                os.kill(child.pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
