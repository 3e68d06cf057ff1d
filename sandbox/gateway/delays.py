"""Let changes take effect as late as they do on GKE.

Figures of shared facts (traffic-routing): weights about 8 s, a new network endpoint group 18 s and
more. All are divided by `--speed`, and the fault `gateway-slow` multiplies them.
"""

from __future__ import annotations

from dataclasses import replace

from sandbox.faults import FaultSource
from sandbox.gateway.model import Backend, Endpoint, Program

ROUTES_S = 8.0
ENDPOINTS_S = 3.0
NEW_BACKEND_S = 18.0


class Propagation:
    """Hold back what was asked for until the load balancer would have got it."""

    def __init__(self, speed: float, faults: FaultSource) -> None:
        self._speed = speed
        self._faults = faults
        self._asked: Program | None = None
        self._routes: list[tuple[float, Program]] = []
        self._endpoints: dict[str, list[tuple[float, frozenset[Endpoint]]]] = {}
        self._in_force: Program = Program()
        self._endpoints_in_force: dict[str, frozenset[Endpoint]] = {}

    def ask(self, program: Program, now: float) -> None:
        """Take note of a wanted program at `now`; the very first one is in force at once."""
        if self._asked is None:
            self._in_force = program
            self._endpoints_in_force = {name: b.endpoints for name, b in program.backends.items()}
            self._asked = program
            return
        fault = self._faults.get("gateway-slow")
        scale = (float(fault["factor"]) if fault else 1.0) / self._speed
        if _without_endpoints(program) != _without_endpoints(self._asked):
            self._routes.append((max([now + ROUTES_S * scale, *(due for due, _ in self._routes)]), program))
        for name, backend in program.backends.items():
            before = self._asked.backends.get(name)
            if before is None or before.endpoints != backend.endpoints:
                queue = self._endpoints.setdefault(name, [])
                delay = NEW_BACKEND_S if before is None else ENDPOINTS_S
                # Never before an earlier change: a new group's first endpoints are not overtaken.
                due = max([now + delay * scale, *(due for due, _ in queue)])
                queue.append((due, backend.endpoints))
        self._asked = program

    def in_force(self, now: float) -> Program:
        """Return the program that is in force at `now`."""
        while self._routes and self._routes[0][0] <= now:
            self._in_force = self._routes.pop(0)[1]
        for name, queue in self._endpoints.items():
            while queue and queue[0][0] <= now:
                self._endpoints_in_force[name] = queue.pop(0)[1]
        for gone in [
            name
            for name in self._endpoints_in_force
            if name not in self._in_force.backends and not self._endpoints.get(name) and not self._routes
        ]:
            del self._endpoints_in_force[gone]
        return Program(
            self._in_force.ports,
            {
                name: _with_endpoints(backend, self._endpoints_in_force.get(name, frozenset()))
                for name, backend in self._in_force.backends.items()
            },
        )

    def next_due(self) -> float | None:
        """Return when the next change comes into force, None if none is on its way."""
        due = [self._routes[0][0]] if self._routes else []
        due += [queue[0][0] for queue in self._endpoints.values() if queue]
        return min(due) if due else None


def _with_endpoints(backend: Backend, endpoints: frozenset[Endpoint]) -> Backend:
    return replace(backend, endpoints=endpoints)


def _without_endpoints(program: Program) -> Program:
    stripped = {name: _with_endpoints(backend, frozenset()) for name, backend in program.backends.items()}
    return Program(program.ports, stripped)
