"""Compute weights on an HTTPRoute, and the safe route.

Everything here is a pure function over the route's JSON as the Kubernetes API gives it
(gateway.networking.k8s.io/v1). A share is what a backendRef gets: weight / sum of weights of
its rule (https://gateway-api.sigs.k8s.io/reference/spec/#httpbackendref).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpu_migration.domain.phases import AFTER_COMMIT, Phase
from tpu_migration.domain.values import copied

_EPOCH_PREFIX = "tpu-migration/epoch."
MAX_WEIGHT = 1_000_000  # HTTPRoute's own bound on a weight

Rule = dict[str, Any]


class RouteError(ValueError):
    """Report a route that this product cannot move users on; the message names the remedy."""


def epoch_annotation(workload: str) -> str:
    """Return the annotation that carries a workload's epoch: several workloads may share one route."""
    return _EPOCH_PREFIX + workload


def epoch_of(route: Mapping[str, Any], workload: str) -> int:
    """Return the epoch that the route carries for a workload; 0 if no migration of it has ever written it."""
    key = epoch_annotation(workload)
    value = (route.get("metadata", {}).get("annotations") or {}).get(key, "0")
    try:
        return int(value)
    except ValueError:
        name = route.get("metadata", {}).get("name", "?")
        raise RouteError(
            f"HTTPRoute {name} carries {key}={value!r}, which is no number; "
            "somebody edited it: set it to the record's epoch, or remove it if no migration is under way"
        ) from None


def is_service(ref: Mapping[str, Any], name: str) -> bool:
    """Tell whether a backendRef is the core Service called `name`."""
    return ref.get("name") == name and (ref.get("kind") or "Service") == "Service" and (ref.get("group") or "") == ""


def rules_of(route: Mapping[str, Any]) -> list[Rule]:
    """Return a copy of the route's rules."""
    return copied(route.get("spec", {}).get("rules") or [])


def names(route: Mapping[str, Any], service: str) -> bool:
    """Tell whether any rule of the route refers to the Service, whatever its weight."""
    return any(is_service(ref, service) for rule in rules_of(route) for ref in rule.get("backendRefs") or [])


def points_at(route: Mapping[str, Any], service: str) -> bool:
    """Tell whether any rule of the route sends a share of its requests to the Service."""
    return any(_sends(rule.get("backendRefs") or [], service) for rule in rules_of(route))


def _sends(refs: Sequence[Mapping[str, Any]], service: str) -> bool:
    return any(is_service(ref, service) and ref.get("weight", 1) > 0 for ref in refs)


def unsupported(route: Mapping[str, Any], service: str) -> str | None:
    """Return why users of the Service cannot be moved on this route, or None if they can."""
    metadata = route.get("metadata", {})
    name, namespace = metadata.get("name", "?"), metadata.get("namespace")
    for index, rule in enumerate(rules_of(route)):
        for ref in rule.get("backendRefs") or []:
            if ref.get("kind") == "InferencePool":
                return (
                    f"HTTPRoute {name} rule {index} points at InferencePool {ref.get('name')}: not yet "
                    "supported; point the rule at a Service, or migrate by hand"
                )
            if is_service(ref, service) and (ref.get("namespace") or namespace) != namespace:
                return (
                    f"HTTPRoute {name} rule {index} points at Service {service} of namespace {ref['namespace']}, which "
                    "has the name of the one to migrate: give one of them another name"
                )
    return None


def with_target(live: Sequence[Rule], recorded: Sequence[Rule], source: str, target: str, percent: int) -> list[Rule]:
    """Return the live rules with `percent` of the source's recorded share moved to the target.

    Only rules that held the source when they were recorded are touched; one is known again by what
    it matches, not by its place. Both refs stay even at weight 0, so that a restore never has to
    wait for a load balancer to attach a backend. Other backends keep their exact share.
    """
    if not 0 <= percent <= 100:
        raise RouteError(f"a weight step must be within 0 and 100 %, got {percent}")
    rules = copied(list(live))
    for rule in rules:
        original = _recorded_refs(rule, recorded, source)
        if original is None:
            continue
        moved: list[dict[str, Any]] = []
        for ref in original:
            weight = ref.get("weight", 1)
            if not is_service(ref, source):
                moved.append({**ref, "weight": weight * 100})
                continue
            moved.append({**ref, "weight": weight * (100 - percent)})
            moved.append({**ref, "name": target, "weight": weight * percent})
        if any(ref["weight"] > MAX_WEIGHT for ref in moved):
            raise RouteError(
                f"a rule with weights {[r.get('weight', 1) for r in original]} cannot be split in steps of 1 %: "
                f"weights end at {MAX_WEIGHT}; divide the rule's weights by a common factor"
            )
        rule["backendRefs"] = moved + _strangers(rule, original, target)
    return rules


def restored(
    live: Sequence[Rule], recorded: Sequence[Rule], source: str, target: str, *, streaming: bool = False
) -> list[Rule]:
    """Return the live rules with the recorded backendRefs of the source's rules put back.

    With `streaming` the target's refs stay, at weight 0: a load balancer drains endpoints that leave a backend,
    and cuts the streams of a backend that no route names any more. What somebody added in the meantime stays:
    other rules, and other backends of a rule with the share that they had. A rule that is not in the record but
    sends users to the target is freed of it; if nothing else serves there it gets the source's recorded refs,
    because an empty rule answers 500.
    """
    rules = copied(list(live))
    home = next((r.get("backendRefs") or [] for r in recorded if _holds(r, source)), [])
    for rule in rules:
        refs = rule.get("backendRefs") or []
        original = _recorded_refs(rule, recorded, source)
        leaving = [{**ref, "weight": 0} for ref in refs if streaming and is_service(ref, target)]
        if original is not None:
            strangers = _strangers(rule, original, target)
            # Strangers were weighed against refs a hundred times as heavy.
            factor = 100 if strangers else 1
            rule["backendRefs"] = [_scaled(ref, factor) for ref in original] + leaving + strangers
        elif any(is_service(ref, target) for ref in refs):
            left = [ref for ref in refs if not is_service(ref, target)]
            serving = [ref for ref in left if ref.get("weight", 1) > 0]
            rule["backendRefs"] = (left if serving else copied(home)) + leaving
    return rules


def _recorded_refs(rule: Rule, recorded: Sequence[Rule], source: str) -> list[dict[str, Any]] | None:
    """Return the recorded refs of a rule that held the source, or None if this is no such rule."""
    found = next((each for each in recorded if each.get("matches") == rule.get("matches")), None)
    if found is None or not _holds(found, source):
        return None
    refs: list[dict[str, Any]] = copied(found["backendRefs"])
    return refs


def _holds(rule: Rule, service: str) -> bool:
    return any(is_service(ref, service) for ref in rule.get("backendRefs") or [])


def _strangers(rule: Rule, original: Sequence[Mapping[str, Any]], target: str) -> list[dict[str, Any]]:
    known = {str(ref.get("name")) for ref in original} | {target}
    return [ref for ref in rule.get("backendRefs") or [] if str(ref.get("name")) not in known]


def _scaled(ref: Mapping[str, Any], factor: int) -> dict[str, Any]:
    return dict(ref) if factor == 1 else {**ref, "weight": ref.get("weight", 1) * factor}


def target_percent(rules: Sequence[Rule], source: str, target: str) -> int:
    """Return the largest share, in whole per cent, of the source's traffic that any rule gives the target."""
    shares = [0]
    for rule in rules:
        refs = rule.get("backendRefs") or []
        to_target = sum(ref.get("weight", 1) for ref in refs if is_service(ref, target))
        to_source = sum(ref.get("weight", 1) for ref in refs if is_service(ref, source))
        if to_target:
            shares.append(round(100 * to_target / (to_target + to_source)))
    return max(shares)


def least_percent(live: Sequence[Rule], recorded: Sequence[Rule], source: str, target: str) -> int:
    """Return the smallest share in whole per cent that any rule gives the target which had users for the source.

    A rule that was recorded with the source at weight 0 has none, whatever the step.
    """
    ours = [rule for rule in live if _sends(_recorded_refs(rule, recorded, source) or [], source)]
    return min((target_percent([rule], source, target) for rule in ours), default=0)


@dataclass(frozen=True)
class SafeRoute:
    """Where users can be sent without harm, and why."""

    target_percent: int
    reason: str


def safe_route(
    phase: Phase, source_ready: int, target_ready: int, source_capacity: int, *, stays: int = 0
) -> SafeRoute:
    """Compute the safe route from the record's phase and what is observed.

    `source_ready` and `target_ready` count ready endpoints; `source_capacity` is the recorded
    number of source replicas that have not been given up yet (it is lowered *before* each
    scale-down). A side without ready endpoints never gets users while the other has some.
    `stays` is the share in per cent that a target which is well may keep, as far as the source's replicas that are
    ready do not carry it; 0 where nobody has seen that it is well.
    """
    if phase not in AFTER_COMMIT:
        if stays and target_ready and 0 < source_ready < source_capacity:
            fits = 100 * source_ready // source_capacity
            left = min(stays, 100 - fits)
            return SafeRoute(
                left,
                f"{source_ready} of the source's {source_capacity} replicas are ready and carry {fits} %: {left} % of "
                "the users stay on the target until the others are back",
            )
        if source_ready or not target_ready:
            return SafeRoute(0, f"{phase}: the source serves")
        return SafeRoute(100, f"{phase}: the source has no ready endpoint, the target has {target_ready}")
    if target_ready:
        return SafeRoute(100, f"{phase}: the target serves")
    if min(source_ready, source_capacity) > 0:
        return SafeRoute(0, f"{phase}: the target has no ready endpoint, the source still has {source_ready}")
    return SafeRoute(100, f"{phase}: neither side has ready endpoints; the target is the one to bring back")


def base_path(route: Mapping[str, Any], service: str) -> str:
    """Return what clients put before /v1 to reach the Service through the route; empty for most."""
    for rule in rules_of(route):
        if not any(is_service(ref, service) for ref in rule.get("backendRefs") or []):
            continue
        for match in rule.get("matches") or []:
            path = match.get("path") or {}
            prefix = str(path.get("value", "/")).rstrip("/")
            if path.get("type", "PathPrefix") == "PathPrefix" and not "/v1/completions".startswith(prefix):
                return prefix
    return ""


def arm_probe_route(route: Mapping[str, Any], name: str, arms: Mapping[str, str], header: str) -> dict[str, Any]:
    """Return a route that reaches each arm by a header, beside the users' route and never inside it.

    `arms` maps a header value to the Service that answers it. The users' matches are copied,
    because a longer path wins before more headers do
    (https://gateway-api.sigs.k8s.io/reference/spec/#httprouterule).
    """
    rules: list[Rule] = []
    for rule in rules_of(route):
        port = next((ref.get("port") for ref in rule.get("backendRefs") or [] if ref.get("port")), 8000)
        for value, service in arms.items():
            matches = [
                {**match, "headers": [*(match.get("headers") or []), {"name": header, "value": value}]}
                for match in rule.get("matches") or [{"path": {"type": "PathPrefix", "value": "/"}}]
            ]
            arm: Rule = {"matches": matches, "backendRefs": [{"name": service, "port": port, "weight": 1}]}
            if rule.get("filters"):  # a path that is rewritten for users must be rewritten here, too
                arm["filters"] = rule["filters"]
            rules.append(arm)
    spec: dict[str, Any] = {"parentRefs": copied(route["spec"].get("parentRefs") or []), "rules": rules}
    if route["spec"].get("hostnames"):
        spec["hostnames"] = list(route["spec"]["hostnames"])
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": route["metadata"]["namespace"]},
        "spec": spec,
    }
