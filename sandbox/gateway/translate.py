"""Read Gateway API objects and GKE policies as GKE does; pure."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field, replace
from typing import Any

from sandbox.gateway.backends import Backends
from sandbox.gateway.model import Backend, HeaderChange, Program, Rule, Share
from sandbox.gateway.status import condition

Object = dict[str, Any]
CLASS_PREFIX = "gke-l7-"
_GROUP = "gateway.networking.k8s.io"


class UnsupportedError(Exception):
    """A rule holds something that GKE's Gateway refuses; the message names it."""


@dataclass
class Translation:
    """What one Gateway should do, and what its routes must be told."""

    program: Program
    routes: list[tuple[Object, list[tuple[Object, list[Object]]]]] = field(default_factory=list)
    attached: dict[str, int] = field(default_factory=dict)


def is_ours(gateway: Object) -> bool:
    """Say whether a Gateway is of one of GKE's classes."""
    return str(gateway["spec"].get("gatewayClassName", "")).startswith(CLASS_PREFIX)


def translate(gateway: Object, routes: list[Object], backends: Backends) -> Translation:
    """Return the program of `gateway` and the conditions of every route that names it as a parent."""
    rules: dict[int, list[Rule]] = {
        listener["port"]: [] for listener in gateway["spec"].get("listeners", []) if listener["protocol"] == "HTTP"
    }
    used: dict[str, Backend] = {}
    result = Translation(Program())
    for route in routes:
        verdicts = []
        for parent in route["spec"].get("parentRefs") or []:
            if not _names(parent, route, gateway):
                continue
            listeners = _listeners(parent, route, gateway)
            translated, conditions = _translate_route(route, listeners, backends, used)
            verdicts.append((parent, conditions))
            for listener, hostname, rule in translated:
                rules[listener["port"]].append(replace(rule, hostname=hostname))
            for name in {listener["name"] for listener, _, _ in translated}:
                result.attached[name] = result.attached.get(name, 0) + 1
        if verdicts:
            result.routes.append((route, verdicts))
    ordered = {port: tuple(sorted(found, key=lambda rule: rule.precedence)) for port, found in rules.items()}
    result.program = Program(ordered, used)
    return result


def _names(parent: Object, route: Object, gateway: Object) -> bool:
    if parent.get("kind", "Gateway") != "Gateway" or parent.get("group", _GROUP) != _GROUP:
        return False
    namespace = parent.get("namespace") or route["metadata"]["namespace"]
    return (namespace, parent["name"]) == (gateway["metadata"]["namespace"], gateway["metadata"]["name"])


def _listeners(parent: Object, route: Object, gateway: Object) -> list[Object]:
    """Return the listeners that the parent reference means and that let this namespace in."""
    found = []
    for listener in gateway["spec"].get("listeners", []):
        if listener["protocol"] != "HTTP":
            continue
        if parent.get("sectionName") not in (None, listener["name"]):
            continue
        if parent.get("port") not in (None, listener["port"]):
            continue
        allowed = ((listener.get("allowedRoutes") or {}).get("namespaces") or {}).get("from", "Same")
        if allowed == "All" or gateway["metadata"]["namespace"] == route["metadata"]["namespace"]:
            found.append(listener)
    return found


def _translate_route(
    route: Object, listeners: list[Object], backends: Backends, used: dict[str, Backend]
) -> tuple[list[tuple[Object, str, Rule]], list[Object]]:
    if not listeners:
        refused = condition("Accepted", False, "NotAllowedByListeners", "no listener takes this route")
        return [], [refused, condition("ResolvedRefs", True, "ResolvedRefs")]
    hosts = [
        (listener, hostname)
        for listener in listeners
        for hostname in _hostnames(listener.get("hostname"), route["spec"].get("hostnames") or [])
    ]
    if not hosts:
        refused = condition("Accepted", False, "NoMatchingListenerHostname", "no listener has these hostnames")
        return [], [refused, condition("ResolvedRefs", True, "ResolvedRefs")]
    problems: list[tuple[str, str]] = []
    try:
        rules = [
            rule
            for index, spec in enumerate(route["spec"].get("rules") or [])
            for rule in _rules(route, index, spec, backends, used, problems)
        ]
    except UnsupportedError as error:
        # GKE programs nothing of a route that it does not accept.
        refused = condition("Accepted", False, "UnsupportedValue", str(error))
        return [], [refused, condition("ResolvedRefs", True, "ResolvedRefs")]
    resolved = condition("ResolvedRefs", not problems, *(problems[0] if problems else ("ResolvedRefs", "")))
    translated = [(listener, hostname, rule) for listener, hostname in hosts for rule in rules]
    return translated, [condition("Accepted", True, "Accepted"), resolved]


def _hostnames(listener: str | None, route: list[str]) -> list[str]:
    """Return the hostnames that a listener and a route have in common, "*" for any."""
    if not listener:
        return list(route) or ["*"]
    if not route:
        return [listener]
    common = []
    for hostname in route:
        if hostname == listener or _covers(listener, hostname):
            common.append(hostname)
        elif _covers(hostname, listener):
            common.append(listener)
    return common


def _covers(wildcard: str, hostname: str) -> bool:
    return wildcard.startswith("*.") and hostname.endswith(wildcard[1:])


def _rules(
    route: Object,
    index: int,
    spec: Object,
    backends: Backends,
    used: dict[str, Backend],
    problems: list[tuple[str, str]],
) -> list[Rule]:
    for name in ("timeouts", "retry", "sessionPersistence"):
        if spec.get(name):
            raise UnsupportedError(f"spec.rules[{index}].{name} is not supported; use a GCPBackendPolicy.")
    changes = tuple(_filter(entry, f"spec.rules[{index}]") for entry in spec.get("filters") or [])
    shares = []
    for reference in spec.get("backendRefs") or []:
        if reference.get("filters"):
            raise UnsupportedError(f"spec.rules[{index}].backendRefs[].filters is not supported.")
        backend, problem = backends.resolve(reference, route["metadata"]["namespace"])
        if problem is not None:
            problems.append(problem)
        if backend is not None:
            used[backend.name] = backend
        shares.append(Share(reference.get("weight", 1), backend.name if backend else None))
    created = _seconds(route["metadata"].get("creationTimestamp"))
    name = f"{route['metadata']['namespace']}/{route['metadata']['name']}"
    return [
        _match(match, (created, name, index, number), tuple(shares), changes, index)
        for number, match in enumerate(spec.get("matches") or [{}])
    ]


def _match(
    match: Object, order: tuple[Any, ...], shares: tuple[Share, ...], changes: tuple[HeaderChange, ...], index: int
) -> Rule:
    if match.get("queryParams"):
        raise UnsupportedError(f"spec.rules[{index}].matches[].queryParams is not supported.")
    path = match.get("path") or {}
    kind = path.get("type", "PathPrefix")
    if kind not in ("Exact", "PathPrefix"):
        raise UnsupportedError(f"spec.rules[{index}].matches[].path.type {kind} is not supported.")
    headers = []
    for header in match.get("headers") or []:
        if header.get("type", "Exact") != "Exact":
            raise UnsupportedError(f"spec.rules[{index}].matches[].headers[].type is not supported.")
        headers.append((header["name"].lower(), header["value"]))
    return Rule(
        hostname="*",
        exact=kind == "Exact",
        path=path.get("value", "/"),
        method=match.get("method") or "",
        headers=tuple(headers),
        shares=shares,
        changes=changes,
        order=order,
    )


def _filter(entry: Object, where: str) -> HeaderChange:
    for kind, field_name, on in (
        ("RequestHeaderModifier", "requestHeaderModifier", "request"),
        ("ResponseHeaderModifier", "responseHeaderModifier", "response"),
    ):
        if entry.get("type") == kind:
            spec = entry.get(field_name) or {}
            pairs = {
                key: tuple((header["name"], header["value"]) for header in spec.get(key) or [])
                for key in ("set", "add")
            }
            return HeaderChange(on, pairs["set"], pairs["add"], tuple(spec.get("remove") or []))
    raise UnsupportedError(f"{where}.filters[].type {entry.get('type')} is not supported.")


def _seconds(stamp: str | None) -> float:
    return datetime.datetime.fromisoformat(stamp).timestamp() if stamp else 0.0
