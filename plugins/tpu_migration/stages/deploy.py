"""Put vLLM-TPU beside the source: translated from what is live, reached by no user."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Object
from tpu_migration.domain.phases import Phase
from tpu_migration.domain.routing import arm_probe_route
from tpu_migration.errors import PermanentError
from tpu_migration.names import ARM_HEADER, SOURCE_ARM, TARGET_ARM
from tpu_migration.record import Record
from tpu_migration.resources import manifests
from tpu_migration.stages.base import Context, Done, Outcome
from tpu_migration.stages.load import host_arguments
from tpu_migration.stages.objects import (
    claims_around,
    config_maps_of,
    refuse_foreign_target,
    source_objects,
    template_hash,
    translated,
)
from tpu_migration.stages.pool import POOL_LABEL


def step(ctx: Context) -> Outcome:
    """Apply the target's objects, the probe route and the prober; what exists already stays as it is."""
    record = ctx.expect(Phase.PROVISIONED)
    if record is None:
        return Done({"deployment": ctx.names.target})
    plan = ctx.plan
    source = ctx.kube.get(k8s.DEPLOYMENTS, plan.workload, plan.namespace)
    if source is None:
        raise PermanentError(f"Deployment {plan.workload} is gone since preflight: nothing is left to translate")
    refuse_foreign_target(ctx)
    objects = source_objects(ctx.kube, plan.namespace, source)
    config = config_maps_of(ctx.kube, plan.namespace, source)
    claims = claims_around(ctx.kube, plan.namespace, source)
    around = [source, *objects, *(each for each in claims.values() if each)]
    translation = translated(ctx, around, config, record.source.max_model_len)
    if translation.blockers:
        told = "; ".join(f"{each.path}: {each.message}" for each in translation.blockers)
        raise PermanentError(f"Deployment {plan.workload} changed since preflight, and cannot run on TPU now: {told}")
    for manifest in translation.manifests:
        ctx.kube.apply(_ours(ctx, manifest, record.pool))
    route = ctx.kube.get(k8s.HTTP_ROUTES, record.source.route, plan.namespace)
    if route is None:
        raise PermanentError(f"HTTPRoute {record.source.route} is gone since preflight")
    apply_probe_route(ctx, record, route)
    ctx.kube.apply(prober(ctx, record))
    live = ctx.kube.get(k8s.DEPLOYMENTS, ctx.names.target, plan.namespace)
    if live is None:
        raise PermanentError(f"Deployment {ctx.names.target} is not there after it was applied")
    digest = template_hash(live)
    ctx.update(lambda r: replace(r.moved_to(Phase.DEPLOYED), template_hash=digest))
    for change in translation.changes:
        ctx.log("changed %s: %s -> %s (%s)", change.path, change.old, change.new, change.why)
    for warning in translation.warnings:
        ctx.log("warning %s: %s %s", warning.path, warning.message, warning.remedy)
    return Done({"deployment": ctx.names.target, "changes": len(translation.changes)})


def apply_probe_route(ctx: Context, record: Record, route: Object) -> None:
    """Reach each arm by a header, beside the users' route."""
    arms = {SOURCE_ARM: record.source.service, TARGET_ARM: record.target}
    ctx.kube.apply(_labelled(ctx, arm_probe_route(route, ctx.names.probe_route, arms, ARM_HEADER)))


def _ours(ctx: Context, manifest: Object, node_pool: str) -> Object:
    """Return a translated object labelled as this run's; its pods go to that node pool only."""
    obj = _labelled(ctx, manifest)
    if obj["kind"] == "Deployment":
        spec = obj["spec"]["template"]["spec"]
        pool = {POOL_LABEL: node_pool}
        spec["nodeSelector"] = {**(spec.get("nodeSelector") or {}), **pool}
    return obj


def _labelled(ctx: Context, obj: Object) -> Object:
    metadata = {**obj["metadata"], "namespace": ctx.plan.namespace}
    metadata["labels"] = {**(metadata.get("labels") or {}), **ctx.names.labels}
    return {**obj, "metadata": metadata}


def prober(ctx: Context, record: Record) -> Object:
    """Return the prober's Deployment: small and long streams through the Gateway's own address."""
    deployment: dict[str, Any] = manifests("prober.yaml")[0]
    pod_labels = {"app": ctx.names.prober, **ctx.names.labels}
    deployment["metadata"] |= {"name": ctx.names.prober, "namespace": ctx.plan.namespace}
    deployment["metadata"]["labels"] = dict(ctx.names.labels)
    deployment["spec"]["selector"] = {"matchLabels": {"app": ctx.names.prober}}
    deployment["spec"]["template"]["metadata"] = {"labels": pod_labels}
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["image"] = ctx.plan.toolbox_image
    container["args"] = [
        *container["args"],
        f"--url={record.source.gateway_url}",
        f"--model={record.source.served_names[0]}",
        f"--arm-header={ARM_HEADER}",
        *host_arguments(record.source),
    ]
    return deployment
