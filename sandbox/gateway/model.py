"""Say what a load balancer should do, in terms of neither Kubernetes nor Envoy."""

from __future__ import annotations

from dataclasses import dataclass, field

GKE_TIMEOUT_S = 30.0  # GCPBackendPolicy.timeoutSec when unset: it ends the *whole* response

Endpoint = tuple[str, int]  # address and port of a pod


@dataclass(frozen=True)
class HealthCheck:
    """How the load balancer probes a backend; the defaults are GKE's, and vLLM answers `/` with 404."""

    kind: str = "HTTP"  # or TCP
    path: str = "/"
    host: str = ""
    port: int | None = None  # None: the serving port
    interval_s: float = 15.0
    timeout_s: float = 15.0
    healthy: int = 1
    unhealthy: int = 2


@dataclass(frozen=True)
class Backend:
    """One Service port behind the load balancer (a network endpoint group and its settings)."""

    name: str  # NAMESPACE/SERVICE:PORT
    endpoints: frozenset[Endpoint]
    health_check: HealthCheck = HealthCheck()
    timeout_s: float = GKE_TIMEOUT_S
    draining_s: float = 0.0  # GCPBackendPolicy connectionDraining; 0 cuts streams when an endpoint leaves


@dataclass(frozen=True)
class Share:
    """A weight and where it goes; no backend means that the reference does not resolve: status 500."""

    weight: int
    backend: str | None


@dataclass(frozen=True)
class HeaderChange:
    """A RequestHeaderModifier or ResponseHeaderModifier filter."""

    on: str  # request or response
    put: tuple[tuple[str, str], ...] = ()  # replaces
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """One match of one HTTPRoute rule."""

    hostname: str  # "*" for any, "*.example.com" for a wildcard
    exact: bool
    path: str
    method: str
    headers: tuple[tuple[str, str], ...]
    shares: tuple[Share, ...]
    changes: tuple[HeaderChange, ...] = ()
    order: tuple[float | str | int, ...] = ()  # creation time, namespace/name, rule, match

    @property
    def precedence(self) -> tuple[object, ...]:
        """Sort key of the Gateway API: hostname, exact, longest path, method, most headers, oldest route."""
        specific = (self.hostname == "*", self.hostname.startswith("*"), -len(self.hostname))
        return (*specific, not self.exact, -len(self.path), not self.method, -len(self.headers), self.order)


@dataclass(frozen=True)
class Program:
    """All that one Gateway should do: rules by listening port, and the backends that they name."""

    ports: dict[int, tuple[Rule, ...]] = field(default_factory=dict)
    backends: dict[str, Backend] = field(default_factory=dict)
