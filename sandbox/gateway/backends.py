"""Resolve backendRefs: Service, its ready endpoints, and the GKE policies attached to it."""

from __future__ import annotations

from typing import Any

from sandbox.gateway.model import GKE_TIMEOUT_S, Backend, Endpoint, HealthCheck
from sandbox.gateway.status import condition

Object = dict[str, Any]
Problem = tuple[str, str]  # reason and message of ResolvedRefs=False


class Backends:
    """The Services of a cluster as a load balancer sees them, at one moment."""

    def __init__(
        self, services: list[Object], slices: list[Object], health_policies: list[Object], policies: list[Object]
    ) -> None:
        self._services = {_key(service): service for service in services}
        self._slices: dict[tuple[str, str], list[Object]] = {}
        for piece in slices:
            name = (piece["metadata"].get("labels") or {}).get("kubernetes.io/service-name", "")
            self._slices.setdefault((piece["metadata"]["namespace"], name), []).append(piece)
        self._health, self.health_conflicts = _by_target(health_policies)
        self._policies, self.conflicts = _by_target(policies)

    def resolve(self, reference: Object, namespace: str) -> tuple[Backend | None, Problem | None]:
        """Return the backend that a backendRef means, or why it means none."""
        kind = (reference.get("group") or "", reference.get("kind") or "Service")
        if kind != ("", "Service"):
            return None, ("InvalidKind", f"backendRef kind {kind[1]} is not served here")
        if reference.get("namespace") not in (None, namespace):
            return None, ("RefNotPermitted", "backendRef to another namespace without a ReferenceGrant")
        service = self._services.get((namespace, reference["name"]))
        if service is None:
            return None, ("BackendNotFound", f"Service {namespace}/{reference['name']} not found")
        port = next((p for p in service["spec"].get("ports") or [] if p["port"] == reference.get("port")), None)
        if port is None:
            wanted = reference.get("port")
            return None, ("BackendNotFound", f"Service {namespace}/{reference['name']} has no port {wanted}")
        return self._backend(namespace, reference["name"], port), None

    def target_exists(self, policy: Object) -> bool:
        """Say whether the Service that a policy targets is there."""
        return target_of(policy) in self._services

    def _backend(self, namespace: str, name: str, port: Object) -> Backend:
        policy = ((self._policies.get((namespace, name)) or {}).get("spec") or {}).get("default") or {}
        return Backend(
            name=f"{namespace}/{name}:{port['port']}",
            endpoints=self._endpoints(namespace, name, port),
            health_check=_health_check(self._health.get((namespace, name))),
            timeout_s=float(policy.get("timeoutSec") or GKE_TIMEOUT_S),
            draining_s=float((policy.get("connectionDraining") or {}).get("drainingTimeoutSec") or 0),
        )

    def _endpoints(self, namespace: str, name: str, port: Object) -> frozenset[Endpoint]:
        found: set[Endpoint] = set()
        for piece in self._slices.get((namespace, name), []):
            numbers = [p["port"] for p in piece.get("ports") or [] if (p.get("name") or "") == (port.get("name") or "")]
            for endpoint in piece.get("endpoints") or []:
                # Terminating endpoints leave a network endpoint group at once: "ready" is false for them.
                if (endpoint.get("conditions") or {}).get("ready", True) is not False:
                    found.update((address, number) for address in endpoint["addresses"] for number in numbers)
        return frozenset(found)


def target_of(policy: Object) -> tuple[str, str]:
    """Return namespace and name of the Service that a policy targets, ("", "") if it targets no Service."""
    reference = policy["spec"].get("targetRef") or {}
    if (reference.get("group") or "", reference.get("kind")) != ("", "Service"):
        return ("", "")
    return (policy["metadata"]["namespace"], reference.get("name", ""))


def attachment(policy: Object, exists: bool, conflicted: bool, used: bool) -> list[Object]:
    """Return a policy's conditions; none while no Gateway uses its Service: there is nothing to attach to."""
    if not exists:
        return [condition("Attached", False, "TargetNotFound", "the target Service does not exist")]
    if conflicted:
        return [condition("Attached", False, "Conflicted", "an older policy targets the same Service")]
    return [condition("Attached", True, "Attached")] if used else []


def _key(resource: Object) -> tuple[str, str]:
    return (resource["metadata"]["namespace"], resource["metadata"]["name"])


def _by_target(policies: list[Object]) -> tuple[dict[tuple[str, str], Object], set[tuple[str, str]]]:
    """Return the oldest policy of each Service, and the keys of those that came too late."""
    chosen: dict[tuple[str, str], Object] = {}
    late = set()
    for policy in sorted(policies, key=lambda p: (p["metadata"].get("creationTimestamp") or "", _key(p))):
        if target_of(policy) in chosen:
            late.add(_key(policy))
        else:
            chosen[target_of(policy)] = policy
    return chosen, late


def _health_check(policy: Object | None) -> HealthCheck:
    spec = ((policy or {}).get("spec") or {}).get("default") or {}
    config = spec.get("config") or {}
    kind = config.get("type") or "HTTP"
    detail = config.get("tcpHealthCheck" if kind == "TCP" else "httpHealthCheck") or {}
    fixed = detail.get("portSpecification", "USE_FIXED_PORT" if detail.get("port") else "") == "USE_FIXED_PORT"
    default = HealthCheck()
    return HealthCheck(
        kind="TCP" if kind == "TCP" else "HTTP",
        path=detail.get("requestPath") or default.path,
        host=detail.get("host") or "",
        port=int(detail["port"]) if fixed and detail.get("port") else None,
        interval_s=float(spec.get("checkIntervalSec") or default.interval_s),
        timeout_s=float(spec.get("timeoutSec") or default.timeout_s),
        healthy=int(spec.get("healthyThreshold") or default.healthy),
        unhealthy=int(spec.get("unhealthyThreshold") or default.unhealthy),
    )
