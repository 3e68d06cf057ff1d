"""Set up a whole vLLM stack on one kind of accelerator: node pool, manifests, and the users' route where there is none.

No migration and no record: the stage of `deploy_all` for a cluster in which nobody is served yet, or none but by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Object, resource_of
from tpu_migration.clients.vllm import Vllm
from tpu_migration.domain.node_pools import Pool, PoolSpec
from tpu_migration.domain.routing import points_at, rules_of
from tpu_migration.domain.stack import deployment_of, secrets_of, with_service
from tpu_migration.errors import ConflictError, PermanentError, TransientError
from tpu_migration.restore import ready_endpoints
from tpu_migration.stages.base import Context, Done, Outcome, Stage, Waiting
from tpu_migration.stages.left_behind import take_lease
from tpu_migration.stages.pool import POLL_S, not_running, ready_nodes, under_way
from tpu_migration.stages.release_stack import is_of_stack, is_pool_of_stack
from tpu_migration.stages.replicas import ready_replicas

_BUDGET_S = 3 * 3600.0  # an hour for the pool, and a cold compile
_PORT = 8000


@dataclass(frozen=True)
class Stack:
    """What to set up. `gateway` and `route` are made only where there are none of their names."""

    manifests: Sequence[Object]  # each carries the label STACK_LABEL=service
    gateway: Object
    route: Object  # sends everything to `service`
    service: str
    pool: PoolSpec
    resource: str  # nvidia.com/gpu or google.com/tpu
    chips: int
    takes_users_from: str = ""  # the Service whose users are turned to this stack, once it is ready

    def stage(self) -> Stage:
        """Return the stage that sets this up."""
        return Stage(
            "stack", lambda ctx: step(ctx, self), lambda plan: _BUDGET_S, takes_lease=False, gives_lease_back=True
        )


def step(ctx: Context, stack: Stack) -> Outcome:
    """Make what is missing, wait until every replica answers, then let users come."""
    if not ctx.memory.get("checked"):
        _refuse_foreign(ctx, stack)
        _check_secrets(ctx, deployment_of(stack.manifests))
        if (waiting := take_lease(ctx)) is not None:
            return waiting
        ctx.memory["checked"] = True
    if not ctx.memory.get("applied"):
        if (waiting := machines(ctx, stack, stack.pool)) is not None:
            return waiting
        for manifest in stack.manifests:
            _apply(ctx, manifest)
        _write_route(ctx, stack, turned=False)
        ctx.memory["applied"] = True
    return _serve(ctx, stack)


def machines(ctx: Context, stack: Stack, spec: PoolSpec) -> Waiting | None:
    """Make the node pool where it is missing; None once its nodes can take a replica each."""
    asked: str | None = ctx.memory.get("operation")
    if asked and (error := ctx.pools.operation(asked).error):
        raise PermanentError(
            f"node pool {spec.name}: {error}; try another zone (--param tpu_zone=…) or another kind of capacity "
            "(--param capacity=spot), or ask for more"
        )

    found = ctx.pools.get(spec.name)
    if (waiting := _cleared_away(ctx, spec, found)) is not None:
        return waiting
    if found is None:
        if operation := under_way(ctx.pools, spec.name):
            return Waiting(POLL_S, f"node pool {spec.name}: {operation} is under way")
        if asked:
            raise PermanentError(f"node pool {spec.name} is gone though its creation ended well: somebody deletes it")
        ctx.memory["operation"] = ctx.pools.create(spec)
        return Waiting(
            POLL_S, f"node pool {spec.name} asked for: {spec.node_count} x {spec.machine_type} in {spec.zone}"
        )
    if (waiting := not_running(found, spec)) is not None:
        return waiting
    nodes = ready_nodes(ctx.kube, spec, stack.resource, stack.chips)
    return nodes if isinstance(nodes, Waiting) else None


def _cleared_away(ctx: Context, spec: PoolSpec, found: Pool | None) -> Waiting | None:
    """Delete a pool that an earlier call asked for and that GKE gave up on: it stays behind in ERROR, without nodes."""
    clearing = f"node pool {spec.name}, left behind in ERROR by an earlier call, is being deleted"
    if found is None:
        ctx.memory.pop("clearing", None)
    elif ctx.memory.get("clearing"):
        return Waiting(POLL_S, clearing)
    elif found.status == "ERROR" and is_pool_of_stack(found, spec) and not ctx.pools.running_operations(spec.name):
        if ctx.kube.list(k8s.NODES, labels=f"cloud.google.com/gke-nodepool={spec.name}"):
            return None
        ctx.pools.delete(spec.name)
        ctx.memory["clearing"] = True
        return Waiting(POLL_S, clearing)
    return None


def _serve(ctx: Context, stack: Stack) -> Outcome:
    deployment = deployment_of(stack.manifests)
    name, wanted = deployment["metadata"]["name"], deployment["spec"]["replicas"]
    live = ctx.kube.get(k8s.DEPLOYMENTS, name, ctx.plan.namespace)
    if live is None:
        raise PermanentError(f"Deployment {name} is gone since it was applied: somebody deletes it")
    models = serving(ctx, live, stack.service, _PORT, wanted)
    if isinstance(models, Waiting):
        return models
    return Done({"deployment": name, "models": models, "users": _let_users_come(ctx, stack)})


def serving(ctx: Context, deployment: Object, service: str, port: int, wanted: int) -> Waiting | list[str]:
    """Return the models that are served, once so many replicas are ready, behind their Service, and complete a prompt.

    A pod that is ready but not behind the Service, or that hangs, must not get users.
    """
    pods = ready_replicas(ctx, deployment, wanted)
    if isinstance(pods, Waiting):
        return pods
    there = ready_endpoints(ctx.kube, ctx.plan.namespace, service)
    if there < wanted:
        return Waiting(POLL_S, f"{there} of {wanted} endpoints of Service {service} are ready")
    vllm = Vllm(ctx.kube, ctx.plan.namespace, port)
    models: list[str] = []
    for pod in pods:
        name = pod["metadata"]["name"]
        models = sorted(vllm.models(name))
        if not vllm.complete(name, models[0], "Hello", 1):
            raise TransientError(f"pod {name} completes nothing")
    return models


def _refuse_foreign(ctx: Context, stack: Stack) -> None:
    """Look before anything is made: what somebody else made is never written over."""
    for manifest in stack.manifests:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        found = ctx.kube.get(resource_of(manifest), name, ctx.plan.namespace)
        if not found or kind == k8s.SERVICE_ACCOUNTS.kind:  # an account is used as it stands, with the rights it has
            continue
        if not is_of_stack(found, stack.service):
            raise PermanentError(
                f"{kind} {name} is in namespace {ctx.plan.namespace} already, and not of deploy_all's making: delete "
                "it, or deploy under another --workload; nothing was changed"
            )
    pool = ctx.pools.get(stack.pool.name)
    if pool is not None and not is_pool_of_stack(pool, stack.pool):
        raise PermanentError(
            f"node pool {stack.pool.name} is there already, and not of deploy_all's making: delete it, or deploy under "
            "another --workload; nothing was changed"
        )


def _check_secrets(ctx: Context, deployment: Object) -> None:
    for name, key in secrets_of(deployment):
        found = ctx.kube.get(k8s.SECRETS, name, ctx.plan.namespace)
        if found is None or key not in (found.get("data") or {}):
            raise PermanentError(
                f"Secret {name} with key {key} is not in namespace {ctx.plan.namespace}, and vLLM needs it: "
                f"kubectl create secret generic {name} --namespace {ctx.plan.namespace} --from-literal={key}=…"
            )


def _apply(ctx: Context, manifest: Object) -> None:
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    if kind == k8s.SERVICE_ACCOUNTS.kind and ctx.kube.get(k8s.SERVICE_ACCOUNTS, name, ctx.plan.namespace):
        return
    try:
        ctx.kube.apply(manifest)
    except ConflictError as error:
        raise PermanentError(
            f"{kind} {name} was changed by somebody else since deploy_all made it: {error}; undo that, or delete it"
        ) from error


def _let_users_come(ctx: Context, stack: Stack) -> str:
    """Make the Gateway and the users' route where there are none; return who serves users now."""
    if ctx.kube.get(k8s.GATEWAYS, stack.gateway["metadata"]["name"], ctx.plan.namespace) is None:
        ctx.kube.create(stack.gateway)
    route = _write_route(ctx, stack, turned=True)
    if route is None:
        route = ctx.kube.create(stack.route)
    return ", ".join(sorted({ref["name"] for rule in route["spec"]["rules"] for ref in _with_weight(rule)}))


def _write_route(ctx: Context, stack: Stack, *, turned: bool) -> Object | None:
    """Put the stack beside the one that it takes users from, or turn them to it; all else of a route is its owner's."""
    route = ctx.kube.get(k8s.HTTP_ROUTES, stack.route["metadata"]["name"], ctx.plan.namespace)
    if route is None or not points_at(route, stack.takes_users_from):
        return route
    rules = with_service(rules_of(route), stack.takes_users_from, stack.service, turned=turned)
    return ctx.kube.replace({**route, "spec": {**route["spec"], "rules": rules}})


def _with_weight(rule: dict[str, Any]) -> list[dict[str, Any]]:
    return [ref for ref in rule.get("backendRefs") or [] if ref.get("weight", 1) > 0]
