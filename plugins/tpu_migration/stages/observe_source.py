"""Gather what the preflight's checks judge: a few reads around the source, made side by side."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Object
from tpu_migration.domain.accelerators import AcceleratorError
from tpu_migration.domain.assessment import Assessment, assess
from tpu_migration.domain.capacity import Offer
from tpu_migration.domain.fit import ModelConfigError
from tpu_migration.domain.plan import Plan
from tpu_migration.domain.preflight import Cluster, Observed, references
from tpu_migration.domain.translation import InputError, Translation
from tpu_migration.errors import NotServedError, PermanentError
from tpu_migration.planning import Options, Target, build_subject
from tpu_migration.record import Source
from tpu_migration.resources import accelerators, features
from tpu_migration.stages.base import Context
from tpu_migration.stages.objects import target_slice


def never_checked(plan: Plan) -> list[str]:
    """Say what no API that this program uses can tell, and how a person finds out."""
    return [] if plan.tpu_pool else [line for offer in plan.offers for line in _unknown_of(offer, plan)]


def _unknown_of(offer: Offer, plan: Plan) -> list[str]:
    wanted, region = target_slice(plan.target), offer.zone.rpartition("-")[0]
    if offer.kind == "reservation":
        return [
            f"reservation {offer.reservation}: that it has {plan.target_replicas} machines free; see `gcloud compute "
            f"reservations describe {offer.reservation} --zone {offer.zone} --project {plan.project_id}`"
        ]
    quota, chips = wanted.quotas.get(offer.kind), wanted.chips * plan.target_replicas
    return [
        f"stock: only making the node pool shows whether {offer.zone} has {plan.target_replicas} x "
        f"{wanted.machine_type} ({offer.kind})",
        f"quota: {chips} chips of {quota or 'the TPU family'}; see `gcloud compute regions describe {region} "
        f"--project {plan.project_id}`",
    ]


@dataclass(frozen=True)
class Around:
    """Hold the objects at hand: the Deployment, what belongs to it, the users' route; None is a claim that is gone."""

    deployment: Object
    objects: Sequence[Object]
    config: Mapping[str, Object]
    claims: Mapping[str, Object | None]
    route: Object


def observe(
    ctx: Context,
    seen: Around,
    source: Source,
    cluster: Cluster | None,
    translation: Translation,
    peak_rps: float,
) -> Observed:
    """Read what the checks need beyond the objects at hand; of Secrets only the names of their keys are kept."""
    kube, namespace = ctx.kube, ctx.plan.namespace
    deployment, objects, config = seen.deployment, seen.objects, seen.config
    wanted = {(each.kind, each.name): None for each in references(deployment)}
    unread = [key for key in wanted if not (key[0] == "ConfigMap" and key[1] in config)]

    def keys(kind: str, name: str) -> Callable[[], frozenset[str] | None]:
        resource = k8s.SECRETS if kind == "Secret" else k8s.CONFIG_MAPS
        return lambda: _keys(kube.get(resource, name, namespace))

    vpas, labels, *answers = ctx.together(
        [lambda: _vertical_autoscalers(ctx), lambda: _namespace_labels(ctx), *(keys(*each) for each in unread)]
    )
    held = {("ConfigMap", name): _keys(found) for name, found in config.items()}
    held.update(zip(unread, answers, strict=True))
    assessment, unassessed = _assess(ctx, [deployment, *objects, *config.values()], source, translation, peak_rps)
    return Observed(
        plan=ctx.plan,
        now=ctx.clock.now(),
        deployment=deployment,
        route=seen.route,
        hpas=[each for each in objects if each["kind"] == "HorizontalPodAutoscaler"],
        pdbs=[each for each in objects if each["kind"] == "PodDisruptionBudget"],
        vpas=vpas,
        held=held,
        claims=seen.claims,
        cluster=cluster,
        min_gke_version=target_slice(ctx.plan.target).min_gke_version,
        namespace_labels=labels,
        assessment=assessment,
        unassessed=unassessed,
    )


def _keys(found: Object | None) -> frozenset[str] | None:
    return None if found is None else frozenset([*(found.get("data") or {}), *(found.get("binaryData") or {})])


def _vertical_autoscalers(ctx: Context) -> list[Object]:
    try:
        return ctx.kube.list(k8s.VPAS, ctx.plan.namespace)
    except NotServedError:  # most clusters have no VPA
        return []


def _namespace_labels(ctx: Context) -> Mapping[str, str] | None:
    """Return the namespace's labels, None where they may not be read: an older role does not let it, nor stop a run."""
    try:
        found = ctx.kube.get(k8s.NAMESPACES, ctx.plan.namespace)
    except PermanentError as error:
        ctx.log("going on without the namespace's labels: %s", error)
        return None
    return (found or {}).get("metadata", {}).get("labels") or {}


def _assess(
    ctx: Context, objects: list[Object], source: Source, translation: Translation, peak_rps: float
) -> tuple[Assessment | None, str]:
    """Return the plan's analysis, or why there is none: a model that nobody here knows is no reason to stop."""
    plan = ctx.plan
    options = Options(
        max_model_len=source.max_model_len,
        replicas=plan.target_replicas,
        region="-".join(plan.location.split("-")[:2]),
        kind="spot" if plan.offers[0].kind == "spot" else "on-demand",
        peak_rps=peak_rps,
        output_tokens=plan.output_tokens,
        plan=plan,
    )
    today = dt.datetime.fromtimestamp(ctx.clock.now(), dt.UTC).date()
    try:
        subject, _ = build_subject(objects, options, Target(target_slice(plan.target)), translation)
        return assess(subject, accelerators(), features(), today), ""
    except (ModelConfigError, InputError, AcceleratorError) as error:
        return None, str(error)
