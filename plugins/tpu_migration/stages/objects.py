"""Gather the objects around a workload, and make the target's from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Kubernetes, Object
from tpu_migration.domain.accelerators import Slice
from tpu_migration.domain.preflight import claims_of
from tpu_migration.domain.routing import points_at
from tpu_migration.domain.translation import Sizing, Translation, translate
from tpu_migration.errors import PermanentError
from tpu_migration.names import RUN_LABEL, run_hash
from tpu_migration.resources import accelerators
from tpu_migration.stages.base import Context

_OVERDUE_S = 60.0  # beyond its grace, until a pod that is still listed is taken for lost


def pods_of(kube: Kubernetes, namespace: str, deployment: Object) -> list[Object]:
    """Return the pods that a Deployment's selector finds and that are not on their way out."""
    labels = deployment["spec"]["selector"].get("matchLabels") or {}
    selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
    found = kube.list(k8s.PODS, namespace, labels=selector)
    return [each for each in found if not each["metadata"].get("deletionTimestamp")]


def is_ready(pod: Object) -> bool:
    """Tell whether a pod's Ready condition is true."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def serving_container(pod: Object, port: int) -> str:
    """Return the name of the container that serves: the one that declares the port, as the translation sees to."""
    containers = pod["spec"]["containers"]
    declares = [each for each in containers if any(p.get("containerPort") == port for p in each.get("ports") or [])]
    return str((declares or containers)[0]["name"])


def still_ending(ctx: Context, pods: Sequence[Object]) -> list[Object]:
    """Return the pods whose end is worth waiting for.

    A pod that outlives its own grace is on a machine that does not answer any more: it stays listed until
    its node is removed, and waiting for it would keep the node. One that has ended already (a spot machine
    that got its notice leaves such) is removed by nobody as long as its Deployment stands. One that nobody has
    told to end yet is always waited for.
    """
    now = ctx.clock.monotonic()
    since: dict[str, float] = ctx.memory.setdefault("ending_since", {})
    return [
        pod
        for pod in pods
        if not has_ended(pod)
        and (
            not pod["metadata"].get("deletionTimestamp")
            or now - since.setdefault(pod["metadata"]["uid"], now)
            <= pod["spec"].get("terminationGracePeriodSeconds", 30) + _OVERDUE_S
        )
    ]


def has_ended(pod: Object) -> bool:
    """Tell whether all of a pod's containers have ended for good."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def running_on(kube: Kubernetes, node: str) -> list[Object]:
    """Return the pods of every namespace that go with a node; a DaemonSet's belong to the node itself."""
    return [
        pod
        for pod in kube.list(k8s.PODS, fields=f"spec.nodeName={node}")
        if not has_ended(pod)
        and not any(each.get("kind") == "DaemonSet" for each in pod["metadata"].get("ownerReferences") or [])
    ]


def full_name(pod: Object) -> str:
    """Return NAMESPACE/NAME of a pod."""
    return f"{pod['metadata'].get('namespace', '')}/{pod['metadata']['name']}"


def source_objects(kube: Kubernetes, namespace: str, deployment: Object) -> list[Object]:
    """Return what belongs to the Deployment: Services, policies of those, HPA, PDB, PodMonitoring."""
    labels = deployment["spec"]["template"]["metadata"].get("labels") or {}
    services = [each for each in kube.list(k8s.SERVICES, namespace) if _selects(each["spec"].get("selector"), labels)]
    names = {each["metadata"]["name"] for each in services}
    found = list(services)
    for resource in (k8s.HEALTH_CHECK_POLICIES, k8s.BACKEND_POLICIES):
        for policy in kube.list(resource, namespace):
            target = policy["spec"].get("targetRef") or {}
            if target.get("kind") == "Service" and target.get("name") in names:
                found.append(policy)
    for hpa in kube.list(k8s.HPAS, namespace):
        target = hpa["spec"].get("scaleTargetRef") or {}
        if target.get("kind") == "Deployment" and target.get("name") == deployment["metadata"]["name"]:
            found.append(hpa)
    for resource in (k8s.PDBS, k8s.POD_MONITORINGS):
        for each in kube.list(resource, namespace):
            if _selects((each["spec"].get("selector") or {}).get("matchLabels"), labels):
                found.append(each)
    return found


def _selects(selector: Mapping[str, str] | None, labels: Mapping[str, str]) -> bool:
    return bool(selector) and all(labels.get(key) == value for key, value in (selector or {}).items())


def is_behind_a_budget(kube: Kubernetes, namespace: str, labels: Mapping[str, str]) -> bool:
    """Tell whether a PodDisruptionBudget covers pods with these labels."""
    budgets = kube.list(k8s.PDBS, namespace)
    return any(_selects((each["spec"].get("selector") or {}).get("matchLabels"), labels) for each in budgets)


def other_routes(kube: Kubernetes, namespace: str, service: str, known: Sequence[str]) -> list[str]:
    """Return the names of the HTTPRoutes, but the `known`, that send a share of their requests to the Service."""
    return sorted(
        each["metadata"]["name"]
        for each in kube.list(k8s.HTTP_ROUTES, namespace)
        if each["metadata"]["name"] not in known and points_at(each, service)
    )


def config_maps_of(kube: Kubernetes, namespace: str, deployment: Object) -> dict[str, Object]:
    """Return the ConfigMaps that the Deployment's environment reads, by name."""
    spec = deployment["spec"]["template"]["spec"]
    names: set[str] = set()
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        for entry in container.get("envFrom") or []:
            names.add((entry.get("configMapRef") or {}).get("name", ""))
        for variable in container.get("env") or []:
            reference = (variable.get("valueFrom") or {}).get("configMapKeyRef") or {}
            names.add(reference.get("name", ""))
    found = {name: kube.get(k8s.CONFIG_MAPS, name, namespace) for name in sorted(names - {""})}
    return {name: each for name, each in found.items() if each is not None}


def claims_around(kube: Kubernetes, namespace: str, deployment: Object) -> dict[str, Object | None]:
    """Return the PersistentVolumeClaims that the Deployment's pods mount, by name; None for one that is gone."""
    return {name: kube.get(k8s.PVCS, name, namespace) for name in claims_of(deployment)}


def stripped(obj: Object) -> Object:
    """Return an object as it can be created again: without what the server gives."""
    given = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink")
    metadata = {key: value for key, value in obj["metadata"].items() if key not in given}
    kept = {key: value for key, value in obj.items() if key != "status"}
    return {**kept, "metadata": metadata}


def target_slice(name: str) -> Slice:
    """Return the TPU slice of that name from include/accelerators.yaml."""
    return accelerators().slice(name)


def translated(
    ctx: Context, objects: Sequence[Object], config: Mapping[str, Object], max_model_len: int | None
) -> Translation:
    """Translate the live source onto the plan's slice, with the context length that it really serves.

    The source's autoscaler is left out: one on the target could take replicas away in mid-shift,
    and the TPU pool has exactly as many nodes as the plan has replicas.
    """
    return translate(
        [each for each in objects if each["kind"] != "HorizontalPodAutoscaler"],
        target=target_slice(ctx.plan.target),
        image=ctx.plan.tpu_image,
        replicas=ctx.plan.target_replicas,
        config=config,
        sizing=Sizing(max_model_len=max_model_len),
    )


def refuse_foreign_target(ctx: Context) -> None:
    """Refuse to work on a target Deployment that another run, or somebody, made."""
    found = ctx.kube.get(k8s.DEPLOYMENTS, ctx.names.target, ctx.plan.namespace)
    made_by = found["metadata"].get("labels", {}).get(RUN_LABEL) if found else None
    if found and made_by != run_hash(ctx.run_id) and not _gives_way(ctx, made_by):
        raise PermanentError(
            f"Deployment {ctx.names.target} exists and is not of this run. If an earlier run was held for a closer "
            f"look, end it with `tpu-migration restore {ctx.plan.workload}` and start again; else delete or rename it"
        )


def _gives_way(ctx: Context, made_by: str | None) -> bool:
    """Tell whether the target is one that only was made warm: preflight ends it before a migration begins."""
    record = ctx.records.read()
    return record is not None and record.stands_unjudged and made_by == run_hash(record.run_id)


def last_writer(obj: Object) -> str:
    """Return the field manager that wrote an object last, status and scale apart."""
    entries = [each for each in obj["metadata"].get("managedFields") or [] if not each.get("subresource")]
    newest: dict[str, str] = max(entries, key=lambda each: str(each.get("time", "")), default={})
    return str(newest.get("manager", "an unknown manager"))


def template_hash(deployment: Object) -> str:
    """Return a digest of a Deployment's pod template: what a verdict holds for."""
    text = json.dumps(deployment["spec"]["template"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
