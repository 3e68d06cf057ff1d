"""Gather what the preflight's checks judge: a few reads around the source, made side by side."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Object
from tpu_migration.domain.accelerators import AcceleratorError
from tpu_migration.domain.assessment import Assessment, assess
from tpu_migration.domain.features import FeatureTable, parse_features
from tpu_migration.domain.fit import ModelConfigError
from tpu_migration.domain.preflight import Cluster, Observed, claims_of, references
from tpu_migration.domain.translation import InputError
from tpu_migration.errors import NotServedError
from tpu_migration.planning import Options, Target, build_subject
from tpu_migration.record import Source
from tpu_migration.resources import accelerators, read_text
from tpu_migration.stages.base import Context
from tpu_migration.stages.objects import target_slice

NEVER_CHECKED = (
    "IAM permissions: only reading the cluster was tried; node pools need container.clusters.update",
    "TPU quota and capacity: only making the node pool shows them",
)


def observe(
    ctx: Context,
    deployment: Object,
    objects: Sequence[Object],
    config: Mapping[str, Object],
    route: Object,
    source: Source,
    cluster: Cluster | None,
) -> Observed:
    """Read what the checks need beyond the objects at hand; of Secrets only the names of their keys are kept."""
    kube, namespace = ctx.kube, ctx.plan.namespace
    wanted = {(each.kind, each.name): None for each in references(deployment)}
    unread = [key for key in wanted if not (key[0] == "ConfigMap" and key[1] in config)]
    claims = claims_of(deployment)

    def keys(kind: str, name: str) -> Callable[[], frozenset[str] | None]:
        resource = k8s.SECRETS if kind == "Secret" else k8s.CONFIG_MAPS
        return lambda: _keys(kube.get(resource, name, namespace))

    def claim(name: str) -> Callable[[], Object | None]:
        return lambda: kube.get(k8s.PVCS, name, namespace)

    vpas, *answers = ctx.together(
        [lambda: _vertical_autoscalers(ctx), *(keys(*each) for each in unread), *(claim(each) for each in claims)]
    )
    held = {("ConfigMap", name): _keys(found) for name, found in config.items()}
    held.update(zip(unread, answers[: len(unread)], strict=True))
    assessment, unassessed = _assess(ctx, [deployment, *objects, *config.values()], source)
    return Observed(
        plan=ctx.plan,
        now=ctx.clock.now(),
        deployment=deployment,
        route=route,
        hpas=[each for each in objects if each["kind"] == "HorizontalPodAutoscaler"],
        pdbs=[each for each in objects if each["kind"] == "PodDisruptionBudget"],
        vpas=vpas,
        held=held,
        claims=dict(zip(claims, answers[len(unread) :], strict=True)),
        cluster=cluster,
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


def _assess(ctx: Context, objects: list[Object], source: Source) -> tuple[Assessment | None, str]:
    """Return the plan's analysis, or why there is none: a model that nobody here knows is no reason to stop."""
    plan = ctx.plan
    options = Options(
        max_model_len=source.max_model_len,
        replicas=plan.target_replicas,
        region="-".join(plan.location.split("-")[:2]),
        kind="spot" if plan.capacity == "spot" else "on-demand",
        peak_rps=plan.peak_rps,
        output_tokens=plan.output_tokens,
        plan=plan,
    )
    today = dt.datetime.fromtimestamp(ctx.clock.now(), dt.UTC).date()
    try:
        subject, _ = build_subject(objects, options, Target(target_slice(plan.target)))
        return assess(subject, accelerators(), _features(), today), ""
    except (ModelConfigError, InputError, AcceleratorError) as error:
        return None, str(error)


@cache
def _features() -> FeatureTable:
    return parse_features(read_text("features.yaml"))
