"""Find what serves users today: the workload, its Service, its route and its Gateway."""

from __future__ import annotations

from collections.abc import Mapping

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Object
from tpu_migration.domain import routing
from tpu_migration.domain.translation import describe_source
from tpu_migration.errors import PermanentError
from tpu_migration.record import Record, Source
from tpu_migration.stages.base import Context
from tpu_migration.stages.objects import other_routes, pods_of, stripped


def find_source(
    ctx: Context,
    deployment: Object,
    objects: list[Object],
    config: Mapping[str, Object],
    existing: Record | None,
) -> tuple[Source, list[Object], Object]:
    """Return the source, the objects of its snapshot, and its route as it is.

    Raises PermanentError if users cannot be moved off it.
    """
    plan = ctx.plan
    described = describe_source(deployment, config)
    if not described.accelerator or "tpu" in described.accelerator:
        raise PermanentError(
            f"Deployment {plan.workload} asks for no GPU (accelerator: {described.accelerator or 'none'}): "
            "there is nothing to migrate"
        )
    if not described.model or not described.served_names:
        raise PermanentError(
            f"Deployment {plan.workload} does not say which model it serves: give --model or --served-model-name in "
            "its arguments, so that the target can answer to the same names"
        )
    services = [each for each in objects if each["kind"] == "Service"]
    if not services:
        raise PermanentError(
            f"no Service in namespace {plan.namespace} selects the pods of Deployment {plan.workload}; "
            "create one and point an HTTPRoute at it"
        )
    route, service = _route_and_service(ctx, services)
    if reason := routing.unsupported(route, service["metadata"]["name"]):
        raise PermanentError(reason)
    _check_route(ctx, route, service, existing)
    hpa = next((each for each in objects if each["kind"] == "HorizontalPodAutoscaler"), None)
    source = Source(
        deployment=plan.workload,
        service=service["metadata"]["name"],
        port=described.port,
        route=route["metadata"]["name"],
        replicas=_peak_replicas(ctx, deployment, hpa),
        accelerator=described.accelerator,
        chips=described.chips,
        model=described.model,
        served_names=tuple(described.served_names),
        gateway_url=_gateway_url(ctx, route) + routing.base_path(route, service["metadata"]["name"]),
        rules=tuple(routing.rules_of(route)),
        host=(route["spec"].get("hostnames") or [""])[0],
        node_pools=_node_pools(ctx, deployment),
        max_model_len=described.max_model_len,
        hpa=hpa["metadata"]["name"] if hpa else "",
        hpa_min_replicas=hpa["spec"].get("minReplicas", 1) if hpa else None,
    )
    return source, [stripped(each) for each in (deployment, *objects, route)], route


def _peak_replicas(ctx: Context, deployment: Object, hpa: Object | None) -> int:
    """Return how many replicas the source must hold while users move: enough for all of them at the peak."""
    live, asked = int(deployment["spec"].get("replicas", 1)), ctx.plan.source_peak_replicas
    most = int(hpa["spec"].get("maxReplicas", live)) if hpa else live
    if not asked and most > live:
        raise PermanentError(
            f"{ctx.plan.workload} runs {live} replicas now, and its autoscaler may take it to {most}: give "
            "source_peak_replicas, how many it needs at the peak, so that all users can come back at any time"
        )
    if asked > most:
        raise PermanentError(
            f"source_peak_replicas={asked}, but {ctx.plan.workload} cannot have more than {most}: scale it, or raise "
            "its autoscaler's maximum, before the migration"
        )
    return max(live, asked)


def _check_route(ctx: Context, route: Object, service: Object, existing: Record | None) -> None:
    """Refuse a route that an earlier migration left half done, that cannot be split, or that is not the only one."""
    workload, rules = ctx.plan.workload, routing.rules_of(route)
    name, service_name = route["metadata"]["name"], service["metadata"]["name"]
    to_target = any(ref.get("name") == ctx.names.target for rule in rules for ref in rule.get("backendRefs") or [])
    if to_target or (routing.epoch_of(route, workload) and existing is None):
        what = f"points at {ctx.names.target}" if to_target else f"carries {routing.epoch_annotation(workload)}"
        raise PermanentError(
            f"HTTPRoute {name} {what}, but no record says why: an earlier migration was not "
            "ended cleanly; take it out of the route by hand, once users are where they should be"
        )
    if others := other_routes(ctx.kube, ctx.plan.namespace, service_name, (name, ctx.names.probe_route)):
        raise PermanentError(
            f"besides {name}, HTTPRoute {', '.join(others)} sends users to {service_name}: they would stay behind and "
            "lose their backend with the GPUs; move their rules into one route"
        )
    routing.with_target(rules, rules, service_name, ctx.names.target, 1)


def _route_and_service(ctx: Context, services: list[Object]) -> tuple[Object, Object]:
    plan = ctx.plan
    names = [each["metadata"]["name"] for each in services]
    if plan.route:
        route = ctx.kube.get(k8s.HTTP_ROUTES, plan.route, plan.namespace)
        if route is None:
            raise PermanentError(f"route={plan.route!r}: there is no such HTTPRoute in namespace {plan.namespace}")
        routes = [route]
    else:
        routes = [
            each
            for each in ctx.kube.list(k8s.HTTP_ROUTES, plan.namespace)
            if not each["metadata"]["name"].startswith("tpu-migration-")
        ]
    found = [(r, s) for r in routes for s in services if routing.points_at(r, s["metadata"]["name"])]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(sorted({r["metadata"]["name"] for r, _ in found}))
        raise PermanentError(
            f"several HTTPRoutes ({several}) or Services ({', '.join(names)}) lead to {plan.workload}: only one can be "
            "shifted, and the users of the others would lose their backend with the GPUs; put them into one"
        )
    if plan.route:
        points_at = sorted(
            {str(ref.get("name")) for rule in routing.rules_of(routes[0]) for ref in rule.get("backendRefs") or []}
        )
        raise PermanentError(
            f"HTTPRoute {plan.route} does not point at {', '.join(names)} but at {', '.join(points_at) or 'nothing'}: "
            "moving its weights would move other users; name the route of this workload"
        )
    raise PermanentError(
        f"no HTTPRoute in namespace {plan.namespace} points at {', '.join(names)}: users reach the workload by "
        "another way, and their traffic cannot be shifted; put a Gateway and an HTTPRoute before it"
    )


def _gateway_url(ctx: Context, route: Object) -> str:
    parents = [each for each in route["spec"].get("parentRefs") or [] if each.get("kind", "Gateway") == "Gateway"]
    for parent in parents:
        namespace = parent.get("namespace") or ctx.plan.namespace
        gateway = ctx.kube.get(k8s.GATEWAYS, parent["name"], namespace)
        addresses = (gateway.get("status") or {}).get("addresses") or [] if gateway else []
        if not gateway or not addresses:
            continue
        section = parent.get("sectionName")
        listeners = [e for e in gateway["spec"]["listeners"] if not section or e.get("name") == section]
        for listener in listeners:
            if listener.get("protocol") == "HTTP":
                return f"http://{addresses[0]['value']}:{listener['port']}"
        raise PermanentError(
            f"Gateway {parent['name']} has no HTTP listener for HTTPRoute {route['metadata']['name']}: load and probes "
            "over HTTPS are not yet supported; add an internal HTTP listener that the route hangs on"
        )
    names = ", ".join(str(each.get("name")) for each in parents) or "none"
    raise PermanentError(
        f"HTTPRoute {route['metadata']['name']} hangs on no Gateway with an address (parents: {names}): wait until "
        "the Gateway is programmed"
    )


def _node_pools(ctx: Context, deployment: Object) -> tuple[str, ...]:
    pods = pods_of(ctx.kube, ctx.plan.namespace, deployment)
    pools = set()
    for pod in pods:
        node = ctx.kube.get(k8s.NODES, pod["spec"].get("nodeName", ""), None) if pod["spec"].get("nodeName") else None
        if node:
            pools.add(node["metadata"].get("labels", {}).get("cloud.google.com/gke-nodepool", ""))
    return tuple(sorted(pools - {""}))
