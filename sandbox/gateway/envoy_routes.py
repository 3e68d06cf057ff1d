"""Write rules down as Envoy's route configurations; pure.

A weighted split is a chain of routes with cumulative `runtime_fraction`s, not `weighted_clusters`: Envoy
draws one number a request, so the shares are the same, and each share can have its own timeout (GKE's
timeoutSec belongs to the backend) or its own 500 (a backendRef that does not resolve).
"""

from __future__ import annotations

from typing import Any

from sandbox.gateway.model import Program, Rule

Resource = dict[str, Any]
FAULT_FILTER = "envoy.filters.http.fault"
_TYPE = "type.googleapis.com/envoy."
_MILLION = 1_000_000


def route_configuration(port: int, rules: tuple[Rule, ...], program: Program, lb_errors: Resource | None) -> Resource:
    """Return the route configuration of a port: a virtual host a hostname, rules in order of precedence."""
    hostnames = sorted({rule.hostname for rule in rules}) or ["*"]
    hosts = []
    for hostname in hostnames:
        chosen = [rule for rule in rules if rule.hostname == "*" or _covers(rule.hostname, hostname)]
        host: Resource = {
            "name": hostname,
            "domains": [hostname],
            "routes": [route for rule in chosen for route in _routes(rule, program)],
        }
        if lb_errors is not None:
            host["typed_per_filter_config"] = {FAULT_FILTER: _abort(lb_errors)}
        hosts.append(host)
    return {
        "@type": _TYPE + "config.route.v3.RouteConfiguration",
        "name": f"port-{port}",
        "virtual_hosts": hosts,
        "ignore_port_in_host_matching": True,
    }


def _routes(rule: Rule, program: Program) -> list[Resource]:
    shares = [share for share in rule.shares if share.weight > 0]
    total = sum(share.weight for share in shares)
    if not total:  # nothing to send to: the Gateway API wants a 500
        return [{"match": _match(rule), **_refusal()}]
    routes, so_far = [], 0
    for share in shares:
        so_far += share.weight
        match = _match(rule)
        if so_far < total:
            numerator = round(so_far / total * _MILLION)
            match["runtime_fraction"] = {"default_value": {"numerator": numerator, "denominator": "MILLION"}}
        if share.backend is None:
            routes.append({"match": match, **_refusal()})
            continue
        timeout_s = program.backends[share.backend].timeout_s
        action = {"cluster": share.backend, "timeout": f"{timeout_s:.3f}s"}
        routes.append({"match": match, "route": action, **_header_changes(rule)})
    return routes


def _refusal() -> Resource:
    return {"direct_response": {"status": 500, "body": {"inline_string": "no valid backend\n"}}}


def _match(rule: Rule) -> Resource:
    match: Resource = {}
    if rule.exact:
        match["path"] = rule.path
    elif rule.path.rstrip("/"):
        match["path_separated_prefix"] = rule.path.rstrip("/")
    else:
        match["prefix"] = "/"
    headers = [*rule.headers, *([(":method", rule.method)] if rule.method else [])]
    if headers:
        match["headers"] = [{"name": name, "string_match": {"exact": value}} for name, value in headers]
    return match


def _header_changes(rule: Rule) -> Resource:
    result: Resource = {}
    for change in rule.changes:
        added = [
            {"header": {"key": name, "value": value}, "append_action": action}
            for pairs, action in ((change.put, "OVERWRITE_IF_EXISTS_OR_ADD"), (change.add, "APPEND_IF_EXISTS_OR_ADD"))
            for name, value in pairs
        ]
        result.setdefault(f"{change.on}_headers_to_add", []).extend(added)
        result.setdefault(f"{change.on}_headers_to_remove", []).extend(change.remove)
    return result


def _covers(pattern: str, hostname: str) -> bool:
    return pattern == hostname or (pattern.startswith("*.") and hostname.endswith(pattern[1:]))


def _abort(options: Resource) -> Resource:
    share = round(float(options["percent"]) / 100 * _MILLION)
    return {
        "@type": _TYPE + "extensions.filters.http.fault.v3.HTTPFault",
        "abort": {
            "http_status": int(options["status"]),
            "percentage": {"numerator": share, "denominator": "MILLION"},
        },
    }
