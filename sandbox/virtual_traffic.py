"""Be the Gateway and the users of a virtual world: routes that are followed late, requests that are counted."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from sandbox.virtual_engine import EnginePod

if TYPE_CHECKING:
    from sandbox.world import World

DELAY_S = 8.0  # what a weight takes on GKE (argoproj/argo-rollouts#4710)

Backends = dict[str, tuple[int, list[EnginePod]]]


class Violation(NamedTuple):
    """Something that users noticed, or nearly did; `at` in seconds of the world's clock."""

    at: float
    what: str


def _named(rules: list[dict[str, Any]]) -> set[str]:
    return {ref["name"] for rule in rules for ref in rule.get("backendRefs") or []}


class Traffic:
    """Send users through the Gateway at a steady rate, and keep account of what happens to them."""

    def __init__(self, world: World, rate_rps: float, answer_s: float) -> None:
        self._world = world
        self.rate_rps, self.answer_s = rate_rps, answer_s
        self.violations: list[Violation] = []
        self.users = {"requests": 0, "failed": 0, "truncated": 0}
        self._due = 0.0
        self._routes: deque[tuple[float, list[dict[str, Any]]]] = deque()
        self._applied: list[dict[str, Any]] = []

    def begin(self) -> None:
        """Forget what was counted so far."""
        self.users = {"requests": 0, "failed": 0, "truncated": 0}
        self.violations.clear()

    # -------------------------------------------------------------- gateway

    def follow_routes(self) -> None:
        """Apply the routes' rules after the time that a load balancer takes."""
        world = self._world
        routes = sorted(world.objects("httproutes"), key=lambda route: str(route["metadata"]["name"]))
        rules = [rule for route in routes for rule in route["spec"].get("rules") or []]
        now = world.clock.now()
        newest = self._routes[-1][1] if self._routes else self._applied
        if rules != newest:
            slow = world.faults.get("gateway-slow") or {"factor": 1.0}
            delay_s = DELAY_S * slow["factor"] / world.speed if self._applied else 0.0
            self._routes.append((now + delay_s, rules))
        while self._routes and self._routes[0][0] <= now:
            before, self._applied = self._applied, self._routes.popleft()[1]
            for service in _named(before) - _named(self._applied):
                self._detach(service)

    def _detach(self, service: str) -> None:
        """Cut the streams of a backend that no route names any more: only endpoints that leave one are drained."""
        now = self._world.clock.now()
        for one in self._world.objects("endpointslices"):
            if one["metadata"]["labels"].get("kubernetes.io/service-name") == service:
                for endpoint in one.get("endpoints") or []:
                    if (pod := self._world.pod_named(endpoint["targetRef"]["name"])) is not None:
                        self.cut(pod.name, pod.cut(now))

    def weights(self, arm: str | None = None) -> dict[str, int]:
        """Return the weights in force at the Gateway, for users or for one arm of the probe route."""
        for rule in self._applied:
            headers = [h for match in rule.get("matches") or [] for h in match.get("headers") or []]
            if (arm is None and not headers) or any(header["value"] == arm for header in headers):
                return {ref["name"]: ref.get("weight", 1) for ref in rule.get("backendRefs") or []}
        return {}

    def ready_engines(self, service: str) -> list[EnginePod]:
        """Return the engines behind a Service that are ready to take requests."""
        found = []
        for one in self._world.objects("endpointslices"):
            if one["metadata"]["labels"].get("kubernetes.io/service-name") != service:
                continue
            for endpoint in one.get("endpoints") or []:
                if (endpoint.get("conditions") or {}).get("ready"):
                    pod = self._world.pod_named(endpoint["targetRef"]["name"])
                    if isinstance(pod, EnginePod):
                        found.append(pod)
        return found

    def backends(self, arm: str | None = None) -> Backends:
        """Return the backends with weight: what each gets, and its engines that are ready."""
        return {name: (weight, self.ready_engines(name)) for name, weight in self.weights(arm).items() if weight > 0}

    def balancer_fails(self) -> bool:
        """Tell whether the load balancer itself refuses a request."""
        fault = self._world.faults.get("lb-errors")
        return fault is not None and self._world.random.random() * 100 < fault["percent"]

    def send(self, backends: Backends, seconds: float) -> str:
        """Send one request that streams for so long, 0: a probe's; return why it failed, or an empty string."""
        if not backends or self.balancer_fails():
            return "the load balancer has no answer"
        world = self._world
        (chosen,) = world.random.choices(list(backends), [weight for weight, _ in backends.values()])
        now = world.clock.now()
        engines = [each for each in backends[chosen][1] if each.serves(now)]
        if not engines:
            return f"no engine of {chosen} takes it"
        engine = min(engines, key=lambda each: each.in_flight(now))
        if not engine.take(now, seconds):
            return f"{engine.name} fails it"
        return "" if seconds or engine.computes() else f"{engine.name} gives no token"

    # ---------------------------------------------------------------- users

    def arrive(self, elapsed_s: float) -> None:
        """Let the users of the last moments come."""
        backends = self.backends()
        for service, (weight, ready) in backends.items():
            if not ready:
                self._note(f"{service} has weight {weight} and no ready endpoint")
        self._due += self.rate_rps * elapsed_s
        while self._due >= 1:
            self._due -= 1
            self.users["requests"] += 1
            if why := self.send(backends, self.answer_s):
                self.users["failed"] += 1
                self._note(f"a request failed: {why}")

    def cut(self, pod: str, streams: int) -> None:
        """Count users' streams that ended with their engine."""
        if streams:
            self.users["truncated"] += streams
            self._note(f"{streams} streams ended with {pod}")

    def _note(self, what: str) -> None:
        self.violations.append(Violation(self._world.clock.now(), what))
