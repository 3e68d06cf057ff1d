"""Be the other controllers that write the routes: one that annotates them, one that puts back what is in git."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from sandbox.api.patch import APPLY, MERGE
from sandbox.clock import Clock
from sandbox.faults import FaultSource
from sandbox.kube import KubeClient, KubeError

LOOK_EVERY_S = 0.1
ANNOTATION = "example.com/annotated"

Object = dict[str, Any]


@dataclass(frozen=True)
class Write:
    """A patch of a route under a field manager; an apply takes what it names from others."""

    namespace: str
    name: str
    manager: str
    content_type: str
    body: Object


class Others:
    """Decide what the faults `conflict` and `gitops` have other controllers write; carried out by whoever asks.

    `in_git` are the routes as they were applied from manifests.
    """

    def __init__(self, faults: FaultSource, in_git: Sequence[Object]) -> None:
        self._faults = faults
        self._in_git = {_key(each): each for each in in_git if each["kind"] == "HTTPRoute"}
        self._annotated = 0
        self._annotate_at = 0.0
        self._differs_since: dict[tuple[str, str], float] = {}

    @property
    def busy(self) -> bool:
        """Tell whether there is anything to look at."""
        return self._faults.get("conflict") is not None or self._faults.get("gitops") is not None

    def writes(self, routes: Sequence[Object], now: float) -> list[Write]:
        """Return what is to be written at `now` (seconds), given the routes as they are."""
        return [*self._annotations(routes, now), *self._reverts(routes, now)]

    def _annotations(self, routes: Sequence[Object], now: float) -> Iterator[Write]:
        fault = self._faults.get("conflict")
        if fault is None or now < self._annotate_at:
            return
        self._annotate_at = now + float(fault["every_s"])
        self._annotated += 1
        body = {"metadata": {"annotations": {ANNOTATION: str(self._annotated)}}}
        for route in routes:
            namespace, name = _key(route)
            if name.startswith(fault["workload"]):
                yield Write(namespace, name, fault["manager"], MERGE, body)

    def _reverts(self, routes: Sequence[Object], now: float) -> Iterator[Write]:
        fault = self._faults.get("gitops")
        for route in routes:
            key, wanted = _key(route), self._in_git.get(_key(route))
            if fault is None or wanted is None or not differs(wanted["spec"], route["spec"]):
                self._differs_since.pop(key, None)
                continue
            waited = now - self._differs_since.setdefault(key, now)
            if key[1].startswith(fault["workload"]) and waited >= float(fault["after_s"]):
                yield Write(*key, fault["manager"], APPLY, wanted)


def differs(wanted: Any, live: Any) -> bool:
    """Tell whether `live` lacks something of `wanted`; what only `live` has may be a default."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        return any(differs(value, live.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(live, list):
        return len(wanted) != len(live) or any(map(differs, wanted, live))
    return bool(wanted != live)


def _key(route: Object) -> tuple[str, str]:
    return route["metadata"]["namespace"], route["metadata"]["name"]


async def run_others(kube: KubeClient, faults: FaultSource, in_git: Sequence[Object], clock: Clock) -> None:
    """Look again and again, and write, until cancelled; a refused write is made anew at the next look."""
    others = Others(faults, in_git)
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        if not others.busy:
            continue
        with contextlib.suppress(KubeError, aiohttp.ClientError, TimeoutError, OSError):
            for write in others.writes(await kube.list("httproutes"), clock.now()):
                await kube.patch(
                    "httproutes", write.namespace, write.name, write.body, write.content_type, manager=write.manager
                )
