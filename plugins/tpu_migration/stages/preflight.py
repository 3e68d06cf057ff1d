"""Look at everything before anything is made; refuse with one message that names thing and remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Object
from tpu_migration.clients.vllm import Vllm
from tpu_migration.domain import routing
from tpu_migration.domain.phases import AFTER_COMMIT, Phase
from tpu_migration.domain.translation import describe_source
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.record import Record, Snapshots, Source
from tpu_migration.resources import policy
from tpu_migration.stages.base import Context, Done, Outcome, Waiting
from tpu_migration.stages.heartbeat import guard_heartbeat
from tpu_migration.stages.left_behind import end_what_was_left_behind, wait_for_dead_lease
from tpu_migration.stages.objects import (
    config_maps_of,
    other_routes,
    pods_of,
    refuse_foreign_target,
    source_objects,
    stripped,
    translated,
)

_RIGHTS = (
    ("get", k8s.PODS, ""),
    ("get", k8s.PODS, "log"),
    ("get", k8s.PODS, "proxy"),
    ("create", k8s.PODS, "proxy"),
    ("patch", k8s.DEPLOYMENTS, ""),
    ("delete", k8s.DEPLOYMENTS, ""),
    ("patch", k8s.DEPLOYMENTS, "scale"),
    ("patch", k8s.SERVICES, ""),
    ("update", k8s.HTTP_ROUTES, ""),
    ("create", k8s.JOBS, ""),
    ("create", k8s.CONFIG_MAPS, ""),
    ("update", k8s.CONFIG_MAPS, ""),
    ("create", k8s.SECRETS, ""),
    ("update", k8s.LEASES, ""),
    ("patch", k8s.HPAS, ""),
    ("patch", k8s.PDBS, ""),
)


def step(ctx: Context) -> Outcome:
    """Check the plan against the live cluster, then write the record and the snapshot."""
    existing = ctx.records.read()
    if existing is not None and existing.run_id == ctx.run_id:
        ctx.expect(Phase.PLANNED)
        ctx.lease.acquire()
        return Done({"source": existing.source.accelerator})
    if existing is not None and existing.active:
        if existing.phase is not Phase.FALLING_BACK:
            _refuse_a_second_run(ctx, existing)
        return end_what_was_left_behind(ctx, existing)
    plan = ctx.plan
    _refuse_a_thin_plan(ctx)
    ctx.pools.check_access()
    if (waiting := guard_heartbeat(ctx, early_look=True)) is not None:
        return waiting
    deployment = _deployment(ctx)
    refuse_foreign_target(ctx)
    objects = source_objects(ctx.kube, plan.namespace, deployment)
    config = config_maps_of(ctx.kube, plan.namespace, deployment)
    source, snapshot = _source(ctx, deployment, objects, config, existing)
    _check_rights(ctx)
    source = replace(source, max_model_len=_check_pods(ctx, deployment, source))
    if blockers := translated(ctx, [deployment, *objects], config, source.max_model_len).blockers:
        told = "; ".join(f"{each.path}: {each.message} {each.remedy}".strip() for each in blockers)
        raise PermanentError(f"{plan.workload} cannot run on {plan.target}: {told}")
    above = max(existing.epoch if existing else 0, routing.epoch_of(_route_in(snapshot), plan.workload))
    epoch = Snapshots(ctx.kube, plan.namespace, plan.workload).next_epoch(ctx.run_id, above)
    return _begin(ctx, source, snapshot, epoch)


def _begin(ctx: Context, source: Source, snapshot: list[Object], epoch: int) -> Outcome:
    plan = ctx.plan
    if (waiting := _take_lease(ctx)) is not None:
        return waiting
    Snapshots(ctx.kube, plan.namespace, plan.workload).take(epoch, ctx.run_id, snapshot, source)
    ctx.records.begin(
        Record(
            workload=plan.workload,
            namespace=plan.namespace,
            run_id=ctx.run_id,
            epoch=epoch,
            phase=Phase.PLANNED,
            plan=plan.to_dict(),
            plan_hash=plan.hash,
            source=source,
            source_capacity=source.replicas,
            target=ctx.names.target,
            pool=ctx.names.pool,
        )
    )
    ctx.epoch = epoch
    ctx.log(
        "%s: %d replica(s) of %s on %s, to %s",
        plan.workload,
        source.replicas,
        source.model,
        source.accelerator,
        plan.target,
    )
    return Done({"source": source.accelerator, "replicas": source.replicas, "model": source.model, "epoch": epoch})


def _take_lease(ctx: Context) -> Waiting | None:
    """Take the lease; one that a run left behind which never wrote a record is taken once it surely is dead."""
    holder = ctx.lease.other_holder()
    if holder is not None and (waiting := wait_for_dead_lease(ctx, holder.run_id)) is not None:
        return waiting
    ctx.lease.acquire(from_the_dead=holder is not None)
    return None


def _refuse_a_second_run(ctx: Context, existing: Record) -> None:
    if existing.phase in AFTER_COMMIT:
        raise PermanentError(
            f"{ctx.plan.workload} is {existing.phase} by run {existing.run_id}: users are on TPU and the GPUs are "
            "being given up; clear the task `decommission` of that run to go on; nothing was changed by this run"
        )
    raise PermanentError(
        f"{ctx.plan.workload} is being migrated by run {existing.run_id} (phase {existing.phase}): wait for its "
        f"end, or send users home with `tpu-migration restore {ctx.plan.workload}` and start again; nothing was "
        "changed by this run"
    )


def _refuse_a_thin_plan(ctx: Context) -> None:
    plan = ctx.plan
    if plan.peak_rps <= 0:
        raise PermanentError(
            "peak_rps is not given: a migration in a quiet hour proves nothing about the peak; give the workload's "
            "highest rate of the last weeks in requests a second"
        )
    if plan.target_replicas < 2 and not plan.accept_single_replica:
        raise PermanentError(
            "target_replicas=1 leaves one TPU replica, which restarts in tens of minutes; give 2, or set "
            "accept_single_replica"
        )
    policy(plan.policy)


def _deployment(ctx: Context) -> Object:
    plan = ctx.plan
    found = ctx.kube.get(k8s.DEPLOYMENTS, plan.workload, plan.namespace)
    if found is None:
        there = sorted(each["metadata"]["name"] for each in ctx.kube.list(k8s.DEPLOYMENTS, plan.namespace))
        raise PermanentError(
            f"workload={plan.workload!r}: there is no such Deployment in namespace {plan.namespace}; "
            f"there are: {', '.join(there) or 'none'}"
        )
    ready = (found.get("status") or {}).get("readyReplicas", 0)
    wanted = found["spec"].get("replicas", 1)
    if not wanted or ready < wanted:
        raise PermanentError(
            f"Deployment {plan.workload} has {ready} of {wanted} replicas ready: the way back must be sound "
            "before anything moves; wait until it is, or mend it"
        )
    return found


def _source(
    ctx: Context,
    deployment: Object,
    objects: list[Object],
    config: Mapping[str, Object],
    existing: Record | None,
) -> tuple[Source, list[Object]]:
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
    if reason := routing.unsupported(route):
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
    return source, [stripped(each) for each in (deployment, *objects, route)]


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
    if others := other_routes(ctx, service_name, name):
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


def _check_rights(ctx: Context) -> None:
    missing = [
        f"{verb} {resource.plural}{'/' + sub if sub else ''}"
        for (verb, resource, sub), allowed in zip(
            _RIGHTS,
            ctx.together(
                [
                    lambda v=verb, r=resource, s=sub: ctx.kube.may(v, r, ctx.plan.namespace, s)  # type: ignore[misc]
                    for verb, resource, sub in _RIGHTS
                ]
            ),
            strict=True,
        )
        if not allowed
    ]
    if missing:
        raise PermanentError(
            f"the service account lacks rights in namespace {ctx.plan.namespace}: {', '.join(missing)}; "
            "apply include/manifests/rbac.yaml"
        )


def _check_pods(ctx: Context, deployment: Object, source: Source) -> int | None:
    """Prove that the pod proxy reaches vLLM and that it serves the names that clients use.

    Returns the context length in tokens that the live servers report.
    """
    longest: int | None = None
    vllm = Vllm(ctx.kube, ctx.plan.namespace, source.port)
    for pod in pods_of(ctx.kube, ctx.plan.namespace, deployment):
        name = pod["metadata"]["name"]
        try:
            served = vllm.models(name)
            vllm.metrics(name)
        except TransientError as error:
            raise PermanentError(
                f"vLLM on pod {name} port {source.port} does not answer through the API server's pod proxy: {error}; "
                "check the port and that the cluster allows the proxy"
            ) from error
        lost = set(source.served_names) - set(served)
        if lost:
            raise PermanentError(
                f"pod {name} serves {sorted(served)}, but its arguments say {sorted(source.served_names)}: "
                "the Deployment was edited and not rolled out"
            )
        longest = served[source.served_names[0]] or longest
    return longest or source.max_model_len


def _route_in(snapshot: list[Object]) -> Object:
    return next(each for each in snapshot if each["kind"] == "HTTPRoute")
