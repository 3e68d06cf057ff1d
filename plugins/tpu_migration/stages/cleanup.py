"""Remove what a run made: the scaffolding always, the target only when it is given up."""

from __future__ import annotations

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.domain.routing import names, restored, rules_of
from tpu_migration.names import MANAGED_BY, RUN_LABEL, WORKLOAD_LABEL, run_hash
from tpu_migration.record import Record
from tpu_migration.stages.base import Context
from tpu_migration.stages.objects import still_ending


def _selector(ctx: Context) -> str:
    labels = {**MANAGED_BY, WORKLOAD_LABEL: ctx.plan.workload, RUN_LABEL: run_hash(ctx.run_id)}
    return ",".join(f"{key}={value}" for key, value in labels.items())


def remove_scaffolding(ctx: Context) -> None:
    """Delete the prober, the probe route and the benchmark Jobs; users never depend on them."""
    namespace = ctx.plan.namespace
    ctx.kube.delete(k8s.HTTP_ROUTES, ctx.names.probe_route, namespace)
    ctx.kube.delete(k8s.DEPLOYMENTS, ctx.names.prober, namespace)
    remove_jobs(ctx)


def remove_jobs(ctx: Context) -> None:
    """Delete this run's Jobs, those that run among them."""
    for job in ctx.kube.list(k8s.JOBS, ctx.plan.namespace, labels=_selector(ctx)):
        ctx.kube.delete(k8s.JOBS, job["metadata"]["name"], ctx.plan.namespace)


def end_target(ctx: Context) -> bool:
    """Delete the target's Deployment, if it is this run's; False while its pods are still there."""
    namespace = ctx.plan.namespace
    target = ctx.kube.get(k8s.DEPLOYMENTS, ctx.names.target, namespace)
    if target and target["metadata"].get("labels", {}).get(RUN_LABEL) == run_hash(ctx.run_id):
        if target["spec"].get("replicas", 1):
            ctx.kube.scale(ctx.names.target, namespace, 0)
        labels = ",".join(f"{k}={v}" for k, v in target["spec"]["selector"]["matchLabels"].items())
        if still_ending(ctx, ctx.kube.list(k8s.PODS, namespace, labels=labels)):
            return False
        ctx.kube.delete(k8s.DEPLOYMENTS, ctx.names.target, namespace)
    return True


def leave_route(ctx: Context, record: Record) -> None:
    """Take the target's refs, which a restore left at weight 0, out of the users' route: nothing streams there.

    By compare-and-swap, at the epoch that the route has.
    """
    source = record.source
    route = ctx.kube.get(k8s.HTTP_ROUTES, source.route, ctx.plan.namespace)
    if route is not None and names(route, record.target):
        rules = restored(rules_of(route), source.rules, source.service, record.target)
        ctx.kube.replace({**route, "spec": {**route["spec"], "rules": rules}})


def remove_target(ctx: Context) -> None:
    """Delete what is left of the target, of what carries this run's label, once its pods have ended.

    The Service and its policies come after the pods and after the route: a load balancer drains endpoints that
    leave, not a backend that vanishes, and a ref to nothing is an error.
    """
    namespace, selector = ctx.plan.namespace, _selector(ctx)
    for resource in (
        k8s.HPAS,
        k8s.PDBS,
        k8s.POD_MONITORINGS,
        k8s.BACKEND_POLICIES,
        k8s.HEALTH_CHECK_POLICIES,
        k8s.SERVICES,
        k8s.CONFIG_MAPS,
    ):
        for each in ctx.kube.list(resource, namespace, labels=selector):
            ctx.kube.delete(resource, each["metadata"]["name"], namespace)
