"""Remember endpoints that have left a backend and may finish their streams; pure."""

from __future__ import annotations

from sandbox.gateway.model import Endpoint, Program


class Draining:
    """Endpoints keep their hop for drainingTimeoutSec after they left; with 0 they lose it at once.

    A backend that no route names any more loses all of its endpoints at once: on GKE draining works
    when endpoints leave a network endpoint group, not when the group is detached.
    """

    def __init__(self) -> None:
        self._members: dict[str, frozenset[Endpoint]] = {}
        self._until: dict[str, dict[Endpoint, float]] = {}

    def update(self, program: Program, now: float) -> None:
        """Take note of who left, who came back, and whose time is over."""
        for name, backend in program.backends.items():
            until = self._until.setdefault(name, {})
            for endpoint in self._members.get(name, frozenset()) - backend.endpoints:
                until[endpoint] = now + backend.draining_s
            self._until[name] = {e: t for e, t in until.items() if e not in backend.endpoints and t > now}
            self._members[name] = backend.endpoints
        for gone in self._members.keys() - program.backends.keys():
            del self._members[gone], self._until[gone]

    def of(self, backend: str) -> list[Endpoint]:
        """Return the draining endpoints of a backend."""
        return list(self._until.get(backend, {}))

    def hops(self, program: Program) -> frozenset[Endpoint]:
        """Return every endpoint that must stay reachable."""
        members = {endpoint for backend in program.backends.values() for endpoint in backend.endpoints}
        return frozenset(members | {endpoint for until in self._until.values() for endpoint in until})

    def next_due(self) -> float | None:
        """Return when the next endpoint's time is over, None if none is draining."""
        return min((time for until in self._until.values() for time in until.values()), default=None)
