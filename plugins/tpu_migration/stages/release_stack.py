"""Take down a stack that `deploy_all` set up, once its users have gone to another one and their last answers ended."""

from __future__ import annotations

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Object
from tpu_migration.clients.vllm import Vllm
from tpu_migration.domain.node_pools import Pool, PoolSpec
from tpu_migration.domain.routing import is_service, points_at, rules_of
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.names import RUN_LABEL, STACK_LABEL
from tpu_migration.stages.base import Context, Done, Outcome, Stage, Waiting
from tpu_migration.stages.left_behind import take_lease
from tpu_migration.stages.objects import is_ready, pods_of, still_ending
from tpu_migration.stages.pool import POLL_S

_BUDGET_S = 2 * 3600.0
_GATEWAY_FOLLOWS_S = 60.0  # GKE: up to 60 s until a backend gets nobody any more
_DRAIN_S = 600.0  # the longest answer that is waited for
_PORT = 8000
_KINDS = (k8s.POD_MONITORINGS, k8s.HPAS, k8s.PDBS, k8s.BACKEND_POLICIES, k8s.HEALTH_CHECK_POLICIES, k8s.SERVICES)


def releasing(service: str, route: str, pool: PoolSpec) -> Stage:
    """Return the stage that takes down the stack of this Service and its node pool."""
    return Stage(
        "release",
        lambda ctx: step(ctx, service, route, pool),
        lambda plan: _BUDGET_S,
        takes_lease=False,
        gives_lease_back=True,
    )


def is_of_stack(obj: Object | None, service: str) -> bool:
    """Tell whether `deploy_all` made an object for the stack of this Service; a migration's objects are not of it."""
    labels = (obj["metadata"].get("labels") or {}) if obj else {}
    return bool(labels.get(STACK_LABEL) == service and RUN_LABEL not in labels)


def is_pool_of_stack(found: Pool | None, spec: PoolSpec) -> bool:
    """Tell whether `deploy_all` made a node pool."""
    return found is not None and all(found.labels.get(key) == value for key, value in spec.labels.items())


def step(ctx: Context, service: str, route: str, pool: PoolSpec) -> Outcome:
    """Wait for the last answers, then remove in order: pods, the route's reference, objects, machines."""
    namespace = ctx.plan.namespace
    if not ctx.memory.get("mine"):
        if (waiting := take_lease(ctx)) is not None:
            return waiting
        ctx.memory["mine"] = True
    users = ctx.kube.get(k8s.HTTP_ROUTES, route, namespace)
    if users and points_at(users, service):
        raise PermanentError(f"HTTPRoute {route} sends users to {service}: nothing of it is taken down")
    if (waiting := _end_pods(ctx, service)) is not None:
        return waiting
    if users and (rules := rules_of(users)) != (left := [_without(rule, service) for rule in rules]):
        ctx.kube.replace({**users, "spec": {**users["spec"], "rules": left}})
    for resource in _KINDS:
        for each in ctx.kube.list(resource, namespace, labels=f"{STACK_LABEL}={service}"):
            if is_of_stack(each, service):
                ctx.kube.delete(resource, each["metadata"]["name"], namespace)
    found = ctx.pools.get(pool.name)
    if found is None or not is_pool_of_stack(found, pool):
        return Done({"released": service})
    if found.status != "STOPPING" and not ctx.pools.running_operations(pool.name):
        ctx.pools.delete(pool.name)
    return Waiting(POLL_S, f"node pool {pool.name} is being deleted")


def _end_pods(ctx: Context, service: str) -> Waiting | None:
    """Delete the stack's Deployment once its pods have ended with their grace; None when it is gone."""
    namespace = ctx.plan.namespace
    live = ctx.kube.get(k8s.DEPLOYMENTS, service, namespace)
    if live is None or not is_of_stack(live, service):
        return None
    if (waiting := _last_answers(ctx, live)) is not None:
        return waiting
    if live["spec"].get("replicas", 1):
        ctx.kube.scale(service, namespace, 0)
    labels = ",".join(f"{key}={value}" for key, value in live["spec"]["selector"]["matchLabels"].items())
    if pods := still_ending(ctx, ctx.kube.list(k8s.PODS, namespace, labels=labels)):
        return Waiting(POLL_S, f"{len(pods)} pods of {service} end with their own grace")
    ctx.kube.delete(k8s.DEPLOYMENTS, service, namespace)
    return None


def _last_answers(ctx: Context, deployment: Object) -> Waiting | None:
    """Wait until the Gateway has surely followed, and for answers that still run, though not for ever."""
    elapsed = ctx.clock.monotonic() - ctx.memory.setdefault("draining_since", ctx.clock.monotonic())
    if elapsed < _GATEWAY_FOLLOWS_S:
        return Waiting(2.0, "the Gateway may take a minute to follow everywhere")
    vllm, running = Vllm(ctx.kube, ctx.plan.namespace, _PORT), 0.0
    for pod in pods_of(ctx.kube, ctx.plan.namespace, deployment):
        if not is_ready(pod):
            continue
        try:
            counters = vllm.metrics(pod["metadata"]["name"])
        except TransientError:  # what does not answer serves nobody
            continue
        running += counters.running + counters.waiting
    if not running or elapsed > _DRAIN_S:
        return None
    return Waiting(2.0, f"{running:.0f} answers still run on {deployment['metadata']['name']}")


def _without(rule: dict[str, object], service: str) -> dict[str, object]:
    refs = rule.get("backendRefs")
    if not isinstance(refs, list) or not any(is_service(ref, service) for ref in refs):
        return rule
    return {**rule, "backendRefs": [ref for ref in refs if not is_service(ref, service)]}
