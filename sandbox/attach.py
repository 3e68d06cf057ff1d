"""Make a Kubernetes API that is not ours fit for the sandbox, or refuse it.

GKE's own kinds are installed where they are missing (small definitions that keep every field). Gateway API
is left to the person: its definitions carry rules that belong to a release, which nobody should pick unasked.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import yaml

from sandbox.api.resources import GATEWAY_API, RESOURCES, Resource
from sandbox.gke.nodes import POOL_LABEL, is_ours
from sandbox.kube import KubeClient, KubeError

GKE_KINDS = Path(__file__).resolve().parent / "manifests" / "gke-crds.yaml"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
ESTABLISHED_S = 20.0
# What the sandbox creates and watches; InferencePool it only takes note of.
NEEDED = tuple(r for r in RESOURCES if r.custom and r.plural != "inferencepools")


class CannotAttach(ValueError):
    """The API server is not one to attach to; the message names the remedy."""


async def prepare(kube: KubeClient, url: str) -> None:
    """Refuse a real GKE cluster or one without Gateway API, and install GKE's own kinds."""
    try:
        await _refuse_gke(kube, url)
        missing = [resource for resource in NEEDED if not await _served(kube, resource)]
        if lacking := [resource.group_resource for resource in missing if resource.group == GATEWAY_API]:
            raise CannotAttach(
                f"{url} does not know {', '.join(lacking)}: install Gateway API v1 there, "
                "`kubectl apply --server-side -f standard-install.yaml` of its release"
            )
        await _install(kube, missing)
    except (KubeError, aiohttp.ClientError, TimeoutError, OSError) as error:
        raise CannotAttach(
            f"cannot use the Kubernetes API at {url}: {error}; check the kubeconfig, and that its user is a "
            "cluster-admin"
        ) from error


async def _refuse_gke(kube: KubeClient, url: str) -> None:
    """Refuse a cluster with GKE nodes that are not ours: the Gateways and pools there have an owner already."""
    for node in await kube.list("nodes"):
        if POOL_LABEL in (node["metadata"].get("labels") or {}) and not is_ours(node):
            raise CannotAttach(
                f"{url} is a GKE cluster (node {node['metadata']['name']}): the sandbox would take its place; "
                "attach to a cluster made for it"
            )


async def _served(kube: KubeClient, resource: Resource) -> bool:
    try:
        found = await kube.call("GET", f"/apis/{resource.api_version}")
    except KubeError as error:
        if error.code == 404:
            return False
        raise
    return any(entry["name"] == resource.plural for entry in found["resources"])


async def _install(kube: KubeClient, missing: list[Resource]) -> None:
    wanted = {resource.group_resource for resource in missing}
    for definition in yaml.safe_load_all(GKE_KINDS.read_text()):
        if definition["metadata"]["name"] in wanted:
            await kube.call("POST", DEFINITIONS, definition)
    deadline = asyncio.get_running_loop().time() + ESTABLISHED_S
    for resource in missing:
        while not await _served(kube, resource):
            if asyncio.get_running_loop().time() > deadline:
                raise CannotAttach(
                    f"{resource.group_resource} was defined, but is not served after {ESTABLISHED_S:.0f} s; "
                    f"see `kubectl describe crd {resource.group_resource}`"
                )
            await asyncio.sleep(0.1)
