"""What a container and its pod tell each other."""

from __future__ import annotations

import datetime
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sandbox.supervisor import PODS, Supervisor

Object = dict[str, Any]
_serial = itertools.count(1)


def timestamp() -> str:
    """Return the time as Kubernetes writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class ImageUnavailable(Exception):
    """The image cannot be pulled now."""


@dataclass(frozen=True)
class Prepared:
    """What starting the container needs once its references are resolved."""

    argv: list[str]
    env: dict[str, str]
    cwd: Path
    log: Path


class Surroundings(Protocol):
    """What a container asks of its pod."""

    supervisor: Supervisor
    speed: float
    ip: str
    grace_s: float  # terminationGracePeriodSeconds

    async def pull(self, container: Object) -> None:
        """Pull the image; raises ImageUnavailable."""

    async def prepare(self, container: Object) -> Prepared:
        """Resolve environment and command; raises ConfigError."""

    def changed(self) -> None:
        """Take note that the container's status is another one now."""

    def event(self, kind: str, reason: str, message: str) -> None:
        """Publish an event about the pod."""


@dataclass
class Status:
    """What is published about a container; `state` and `last` are as in the API."""

    state: Object = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last: Object = field(default_factory=dict)
    restarts: int = 0
    started: bool = False
    ready: bool = False
    container_id: str = ""


async def run_beside(supervisor: Supervisor, name: str, command: list[str], prepared: Prepared) -> int:
    """Run one command in a container's environment, its output dropped; return its exit code."""
    unique = f"{name}-{next(_serial)}"
    child = await supervisor.start(
        unique, command, env=prepared.env, cwd=prepared.cwd, log=Path("/dev/null"), order=PODS
    )
    try:
        return await child.wait()
    finally:
        await child.kill()
        supervisor.forget(child)
