"""Read and follow the log files of containers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

POLL_S = 0.1


def log_file(directory: Path, namespace: str, pod: str, container: str, *, previous: bool = False) -> Path:
    """Return where a container's output is; `previous`: that of the run before its last restart."""
    return directory / f"{namespace}_{pod}_{container}{'.previous' if previous else ''}.log"


def initial_log(path: Path, query: Mapping[str, str]) -> tuple[bytes, int]:
    """Return the log as ?tailLines= and ?limitBytes= ask for it, and the offset where it ends."""
    data = path.read_bytes()
    position = len(data)
    if query.get("tailLines", "").isdigit():
        data = _tail(data, int(query["tailLines"]))
    if query.get("limitBytes", "").isdigit():
        data = data[: int(query["limitBytes"])]
    return data, position


def _tail(data: bytes, lines: int) -> bytes:
    if lines == 0:
        return b""
    at = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(lines):
        at = data.rfind(b"\n", 0, at)
        if at < 0:
            return data
    return data[at + 1 :]


async def follow(path: Path, position: int, alive: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Yield what is appended to a log until its container has ended and all of it is read."""
    with path.open("rb") as file:
        file.seek(position)
        while True:
            running = alive()
            chunk = file.read()
            if chunk:
                yield chunk
            elif not running:
                return
            else:
                await asyncio.sleep(POLL_S)
