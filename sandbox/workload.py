"""Make the objects that a sandbox starts with: the platform's, and one or more vLLM services on H100.

The YAML in `sandbox/manifests` is complete as it stands (kubectl can apply it); further services are the
same by another name.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
MANIFESTS = Path(__file__).resolve().parent / "manifests"
# What a platform team installs once: the guard, and the rights of the orchestrator's service account.
GUARD = ROOT / "include" / "manifests" / "guard.yaml"
RBAC = ROOT / "include" / "manifests" / "rbac.yaml"
ORCHESTRATOR = "airflow@sandbox-project.iam.gserviceaccount.com"

NAMESPACE = "inference"
WORKLOAD = "vllm-gemma3-27b"
GATEWAY = "inference-gateway"
SERVED_MODEL = "gemma-3-27b-it"

# Where a kind's objects live in the API.
PLURALS = {
    "Namespace": "namespaces",
    "Secret": "secrets",
    "ConfigMap": "configmaps",
    "ServiceAccount": "serviceaccounts",
    "Service": "services",
    "Deployment": "deployments",
    "Job": "jobs",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
    "PriorityClass": "priorityclasses",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "PodMonitoring": "podmonitorings",
    "GatewayClass": "gatewayclasses",
    "Gateway": "gateways",
    "HTTPRoute": "httproutes",
    "HealthCheckPolicy": "healthcheckpolicies",
    "GCPBackendPolicy": "gcpbackendpolicies",
    "PersistentVolumeClaim": "persistentvolumeclaims",
}
CLUSTER_SCOPED = {"Namespace", "PriorityClass", "ClusterRole", "ClusterRoleBinding", "GatewayClass"}


@cache
def _text(name: str) -> str:
    return (MANIFESTS / name).read_text()


def _documents(text: str) -> list[Object]:
    """Return the objects of a YAML text; they are the caller's own."""
    return deepcopy(_parsed(text))


@cache
def _parsed(text: str) -> list[Object]:
    return [document for document in yaml.safe_load_all(text) if document]


def cluster_objects(gateway_port: int) -> list[Object]:
    """Return namespace, secret, GatewayClass and the Gateway, listening on `gateway_port`."""
    objects = _documents(_text("cluster.yaml"))
    for item in objects:
        if item["kind"] == "Gateway":
            item["spec"]["listeners"][0]["port"] = gateway_port
    return objects


def workload_objects(
    name: str = WORKLOAD,
    replicas: int = 2,
    *,
    hostname: str | None = None,
    path_prefix: str | None = None,
    max_replicas: int | None = None,
) -> list[Object]:
    """Return all objects of one vLLM service on H100.

    Several services share the Gateway: all but one need a `hostname`, or a `path_prefix` ("/other", which
    the Gateway strips). `replicas` is also the autoscaler's minimum; its maximum defaults to twice that.
    """
    # The name of the service occurs in nothing but names of its own objects and labels.
    objects = _documents(_text("vllm-h100.yaml").replace(WORKLOAD, name))
    for item in objects:
        if item["kind"] == "Deployment":
            item["spec"]["replicas"] = replicas
        elif item["kind"] == "HorizontalPodAutoscaler":
            item["spec"]["minReplicas"] = replicas
            item["spec"]["maxReplicas"] = max_replicas or 2 * replicas
        elif item["kind"] == "HTTPRoute":
            _attach(item["spec"], hostname, path_prefix)
    return objects


def _attach(route: Object, hostname: str | None, path_prefix: str | None) -> None:
    if hostname:
        route["hostnames"] = [hostname]
    if path_prefix:
        rule = route["rules"][0]
        rule["matches"][0]["path"]["value"] = path_prefix
        strip = {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}
        rule["filters"] = [{"type": "URLRewrite", "urlRewrite": {"path": strip}}]


def workload_names(count: int) -> list[str]:
    """Return the names of `count` services; the first is the demo's."""
    return [WORKLOAD, *(f"{WORKLOAD}-{number}" for number in range(2, count + 1))]


def hostname_of(name: str) -> str | None:
    """Return the host name under which `sandbox up --workloads N` serves a service; None for the first."""
    return None if name == WORKLOAD else f"{name}.sandbox.internal"


def bootstrap_objects(gateway_port: int, workloads: int = 1, replicas: int = 2) -> list[Object]:
    """Return everything that `sandbox up` creates, in an order in which it can be created."""
    objects = cluster_objects(gateway_port)
    for name in workload_names(workloads):
        objects += workload_objects(name, replicas, hostname=hostname_of(name))
    for file in (GUARD, RBAC):
        objects += in_namespace(_documents(file.read_text()))
    return objects


def in_namespace(objects: list[Object]) -> list[Object]:
    """Put the objects into the sandbox's namespace, as `kubectl apply --namespace` does."""
    for item in objects:
        if item["kind"] not in CLUSTER_SCOPED:
            item["metadata"]["namespace"] = NAMESPACE
        for subject in item.get("subjects") or []:
            if subject["kind"] == "ServiceAccount":
                subject["namespace"] = NAMESPACE
            elif subject["kind"] == "User":
                subject["name"] = ORCHESTRATOR
    return objects


def address(item: Object) -> tuple[str, str | None, str]:
    """Return (resource, namespace, name) of an object; raises ValueError for a kind that is not known."""
    kind = item["kind"]
    if kind not in PLURALS:
        raise ValueError(f"{kind} {item['metadata']['name']!r}: the sandbox does not create this kind")
    namespace = None if kind in CLUSTER_SCOPED else item["metadata"].get("namespace", "default")
    return PLURALS[kind], namespace, item["metadata"]["name"]
