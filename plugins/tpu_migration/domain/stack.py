"""Make the manifests of a whole vLLM stack on one kind of accelerator: what `deploy_all` applies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tpu_migration.domain.profiles import Profile
from tpu_migration.domain.routing import Rule, is_service
from tpu_migration.domain.values import copied

Manifest = dict[str, Any]
_TENSOR_PARALLEL = "--tensor-parallel-size="


def on_gpus(manifests: Sequence[Manifest], profile: Profile, accelerator_label: str) -> list[Manifest]:
    """Return the GPU stack with another GPU: its node selector, GPUs a replica and tensor parallelism."""
    result = copied(list(manifests))
    for each in result:
        if each["kind"] != "Deployment":
            continue
        pod = each["spec"]["template"]["spec"]
        pod["nodeSelector"]["cloud.google.com/gke-accelerator"] = accelerator_label
        container = pod["containers"][0]
        for kind in ("requests", "limits"):
            container["resources"][kind]["nvidia.com/gpu"] = str(profile.chips)
        container["args"] = [
            f"{_TENSOR_PARALLEL}{profile.tensor_parallel}" if argument.startswith(_TENSOR_PARALLEL) else argument
            for argument in container["args"]
        ]
    return result


def in_namespace(manifests: Sequence[Manifest], namespace: str) -> list[Manifest]:
    """Return the manifests in another namespace."""
    return [{**each, "metadata": {**each["metadata"], "namespace": namespace}} for each in manifests]


def labelled(manifest: Manifest, label: str, value: str) -> Manifest:
    """Return the object with a label more; its pods, if it makes any, get none."""
    metadata = manifest["metadata"]
    return {**manifest, "metadata": {**metadata, "labels": {**(metadata.get("labels") or {}), label: value}}}


def to_service(route: Manifest, service: str) -> Manifest:
    """Return the users' route with all its requests going to one Service."""
    result = copied(route)
    for rule in result["spec"]["rules"]:
        rule["backendRefs"] = [{**rule["backendRefs"][0], "name": service, "weight": 1}]
    return result


def with_service(rules: Sequence[Rule], old: str, new: str, *, turned: bool) -> list[Rule]:
    """Return a route's rules with `new` beside `old`, or with the weight of `old` turned to it.

    Beside means weight 0: the load balancer attaches the backend before anybody is sent there. `old` stays at weight 0
    once it is turned, so that its last answers end well. What else the rules hold is left as it is.
    """
    result = copied(list(rules))
    for rule in result:
        refs = rule.get("backendRefs") or []
        weight = sum(ref.get("weight", 1) for ref in refs if is_service(ref, old))
        if not weight:
            continue
        has = sum(ref.get("weight", 1) for ref in refs if is_service(ref, new))
        template = next(ref for ref in refs if is_service(ref, old))
        rest = [ref for ref in refs if not is_service(ref, new)]
        if turned:
            rest = [{**ref, "weight": 0} if is_service(ref, old) else ref for ref in rest]
        rule["backendRefs"] = [*rest, {**template, "name": new, "weight": has + weight if turned else has}]
    return result


def deployment_of(manifests: Sequence[Manifest]) -> Manifest:
    """Return the one Deployment of a stack."""
    (found,) = [each for each in manifests if each["kind"] == "Deployment"]
    return found


def secrets_of(deployment: Manifest) -> list[tuple[str, str]]:
    """Return (name, key) of each Secret that the stack's containers read."""
    containers = deployment["spec"]["template"]["spec"]["containers"]
    references = [
        (variable.get("valueFrom") or {}).get("secretKeyRef")
        for container in containers
        for variable in container.get("env") or []
    ]
    return [(each["name"], each["key"]) for each in references if each]
