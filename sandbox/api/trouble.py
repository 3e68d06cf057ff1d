"""Be an API server in trouble: throttled, away, or one that cuts its watches; for some users, as faults say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from sandbox.faults import FaultSource

from .messages import ApiError, Request, Response, dumps

_TEXT = {"content-type": "text/plain; charset=utf-8"}


@dataclass(frozen=True)
class WatchCut:
    """When a watch breaks off, and whether it is told at once that its version is forgotten."""

    after_s: float
    expired: bool


class Trouble:
    """What the faults `api-throttled`, `api-down` and `watch-cut` do to a request; `now` in seconds, of any clock."""

    def __init__(self, faults: FaultSource, now: Callable[[], float]) -> None:
        self._faults = faults
        self._now = now
        self._since: dict[str, float] = {}
        self._random: dict[str, tuple[int, Random]] = {}

    def down(self, user: str) -> bool:
        """Tell whether the server cuts a user's connection instead of an answer."""
        fault = self._away(user)
        return fault is not None and fault["status"] is None

    def refusal(self, user: str) -> Response | None:
        """Return what the server answers before it looks at a request, or None."""
        if (away := self._away(user)) is not None and away["status"] is not None:
            return Response(int(away["status"]), dict(_TEXT), b"the API server is not ready\n")
        fault = self._on("api-throttled", user)
        if fault is None or self._draw("api-throttled", fault) >= float(fault["share"]):
            return None
        headers = {**_TEXT, "retry-after": f"{fault['retry_after_s']:g}"}
        return Response(429, headers, b"Too many requests, please try again later.\n")

    def watch(self, request: Request) -> WatchCut | None:
        """Return how a watch that is opened now ends; None: as it would anyway."""
        fault = self._on("watch-cut", request.user)
        if fault is None:
            return None
        resumes = request.query.get("resourceVersion", "") not in ("", "0")
        expired = resumes and self._draw("watch-cut", fault) < float(fault["expired"])
        return WatchCut(float(fault["every_s"]) * (0.2 + 0.8 * self._draw("watch-cut", fault)), expired)

    def _away(self, user: str) -> dict[str, Any] | None:
        fault = self._on("api-down", user)
        if fault is None:
            return None
        away_s = self._now() - self._since["api-down"]
        return fault if fault["for_s"] is None or away_s < float(fault["for_s"]) else None

    def _on(self, name: str, user: str) -> dict[str, Any] | None:
        """Return a fault's options if it hits `user`; its time counts from the first request that it meets."""
        fault = self._faults.get(name)
        if fault is None:
            self._since.pop(name, None)
            return None
        if not user.startswith(str(fault["user"])):
            return None
        self._since.setdefault(name, self._now())
        return fault

    def _draw(self, name: str, fault: dict[str, Any]) -> float:
        seed = int(fault["seed"])
        if name not in self._random or self._random[name][0] != seed:
            self._random[name] = seed, Random(seed)
        return self._random[name][1].random()


def forgotten(version: str, oldest: int) -> bytes:
    """Return the one event of a watch whose version is too old, as the server's watch cache sends it."""
    status = ApiError(410, "Expired", f"too old resource version: {version} ({oldest})").status()
    return dumps({"type": "ERROR", "object": status}) + b"\n"
