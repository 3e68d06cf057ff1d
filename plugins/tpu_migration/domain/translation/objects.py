"""Build the objects around the target's pods: Service, policies, budget, autoscaler, scrape rule, ConfigMaps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tpu_migration.domain.translation.labels import Identity
from tpu_migration.domain.translation.model import Manifest, Names, Notes
from tpu_migration.domain.translation.rules import Serving
from tpu_migration.domain.values import copied

# The load balancer's default of 30 s cuts long generations with a 504.
BACKEND_TIMEOUT_S = 600
_DRAIN_LIMIT_S = 3600  # GKE's own maximum

_LIVE_METADATA = (
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
    "ownerReferences",
    "finalizers",
    "generateName",
)
_LIVE_ANNOTATIONS = re.compile(
    r"kubectl\.kubernetes\.io/last-applied-configuration|deployment\.kubernetes\.io/.*|autoscaling\.alpha\.kubernetes\.io/.*"
    r"|cloud\.google\.com/neg(-status)?|networking\.gke\.io/load-balancer-.*|meta\.helm\.sh/.*|helm\.sh/.*|argocd\.argoproj\.io/.*"
    r"|kustomize\.toolkit\.fluxcd\.io/.*|helm\.toolkit\.fluxcd\.io/.*|config\.(kubernetes|k8s)\.io/.*|objectset\.rio\.cattle\.io/.*"
    r"|control-plane\.alpha\.kubernetes\.io/.*|networking\.gke\.io/(service|backend)-.*"
)
_GPU_METRIC = re.compile(r"dcgm|gpu(?!_cache_usage)|nvidia|duty[_-]cycle", re.I)
_OLD_METRICS = {"vllm:gpu_cache_usage_perc": "vllm:kv_cache_usage_perc"}


def clean(document: Manifest) -> Manifest:
    """Copy an object without what the API server and other tools wrote into it."""
    metadata = {key: each for key, each in (document.get("metadata") or {}).items() if key not in _LIVE_METADATA}
    result = copied({key: each for key, each in document.items() if key != "status"} | {"metadata": metadata})
    metadata = result["metadata"]
    annotations = metadata.get("annotations") or {}
    for key in list(annotations):
        if _LIVE_ANNOTATIONS.fullmatch(key):
            annotations.pop(key)
    if not annotations:
        metadata.pop("annotations", None)
    return result


def name_of(document: Manifest) -> str:
    """Give an object's name."""
    return str((document.get("metadata") or {}).get("name", ""))


def _target(document: Manifest, name: str, identity: Identity) -> Manifest:
    """Copy an object under the target's name and labels."""
    result = clean(document)
    result["metadata"]["name"] = name
    result["metadata"]["labels"] = identity.of(document.get("metadata"))
    return result


def _new(api_version: str, kind: str, name: str, namespace: str | None, identity: Identity) -> Manifest:
    metadata: Manifest = {"name": name, "labels": dict(identity.labels)}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": {}}


def choose_service(services: Sequence[Manifest], pod: Manifest, port: int) -> Manifest | None:
    """Choose among the source's Services the one that carries users: one with an address, on vLLM's port."""
    named = {p.get("name"): p.get("containerPort") for c in pod.get("containers") or [] for p in c.get("ports") or []}

    def rank(service: Manifest) -> tuple[bool, bool]:
        spec = service.get("spec") or {}
        targets = [p.get("targetPort", p.get("port")) for p in spec.get("ports") or []]
        return port in [named.get(t, t) for t in targets], spec.get("clusterIP") != "None"

    return max(services, key=rank, default=None)


def service(
    source: Manifest | None, names: Names, namespace: str | None, identity: Identity, serving: Serving, notes: Notes
) -> Manifest:
    """Build the target's Service; it selects the target's pods and no other."""
    path = f"Service {names.service}"
    if source is None:
        result = _new("v1", "Service", names.service, namespace, identity)
        result["spec"]["ports"] = [
            {"name": "http", "port": serving.port, "targetPort": serving.port, "protocol": "TCP"}
        ]
        result["spec"]["type"] = "ClusterIP"
        notes.change(path, None, names.service, "the TPU pods need a backend of their own to be given weight")
    else:
        result = _target(source, names.service, identity)
        spec = result["spec"]
        old_type = spec.get("type", "ClusterIP")
        if spec.get("clusterIP") != "None":
            spec.pop("clusterIP", None)
        for key in (
            "clusterIPs",
            "externalIPs",
            "externalName",
            "loadBalancerIP",
            "loadBalancerClass",
            "loadBalancerSourceRanges",
            "healthCheckNodePort",
            "externalTrafficPolicy",
            "allocateLoadBalancerNodePorts",
            "ipFamilies",
            "ipFamilyPolicy",
        ):
            spec.pop(key, None)
        for port in spec.get("ports") or []:
            port.pop("nodePort", None)
        spec["type"] = "ClusterIP"
        notes.change(
            path, name_of(source), names.service, "the TPU pods need a backend of their own to be given weight"
        )
        if old_type not in {"ClusterIP", ""}:
            notes.change(
                f"{path} type", old_type, "ClusterIP", "the Gateway reaches it inside; no second public address"
            )
            message = (
                f"users reach the source through a Service of type {old_type}: only a Gateway can split their traffic"
            )
            notes.warn(path, message, "put an HTTPRoute in front of the Service first")
    result["spec"]["selector"] = dict(identity.selector)
    notes.change(
        f"{path} selector", ((source or {}).get("spec") or {}).get("selector"), dict(identity.selector), "TPU pods only"
    )
    return result


def health_check_policy(
    source: Manifest | None, names: Names, namespace: str | None, identity: Identity, serving: Serving, notes: Notes
) -> Manifest:
    """Build the HealthCheckPolicy: GKE asks `/` by default, which vLLM answers 404."""
    name = names.health_check_policy
    if source is None:
        result = _new("networking.gke.io/v1", "HealthCheckPolicy", name, namespace, identity)
        default: Manifest = {"checkIntervalSec": 10, "timeoutSec": 5, "healthyThreshold": 1, "unhealthyThreshold": 3}
    else:
        result = _target(source, name, identity)
        default = dict((result.get("spec") or {}).get("default") or {})
    kind, field = ("HTTPS", "httpsHealthCheck") if serving.https else ("HTTP", "httpHealthCheck")
    old = default.get("config")
    check = dict((old or {}).get(field) or {})
    for key in ("portName", "portSpecification", "response"):
        check.pop(key, None)
    check.update({"portSpecification": "USE_FIXED_PORT", "port": serving.port, "requestPath": "/health"})
    default["config"] = {"type": kind, field: check}
    result["spec"] = {"default": default, "targetRef": _service_ref(names)}
    why = "GKE asks / by default, which vLLM answers 404: the backend would never get healthy"
    notes.change(f"HealthCheckPolicy {name} config", old, default["config"], why)
    _retargeted(source, result, notes)
    return result


def backend_policy(
    source: Manifest | None, names: Names, namespace: str | None, identity: Identity, serving: Serving, notes: Notes
) -> Manifest:
    """Build the GCPBackendPolicy, keeping the source's Cloud Armor, IAP and logging."""
    name = names.backend_policy
    result = (
        _target(source, name, identity)
        if source is not None
        else _new("networking.gke.io/v1", "GCPBackendPolicy", name, namespace, identity)
    )
    default = dict((result.get("spec") or {}).get("default") or {})
    timeout = max(int(default.get("timeoutSec") or 0), BACKEND_TIMEOUT_S)
    notes.change(
        f"GCPBackendPolicy {name} timeoutSec",
        default.get("timeoutSec"),
        timeout,
        "the default of 30 s cuts long streams",
    )
    default["timeoutSec"] = timeout
    draining = dict(default.get("connectionDraining") or {})
    old = draining.get("drainingTimeoutSec")
    draining["drainingTimeoutSec"] = min(max(int(old or 0), serving.shutdown_timeout_s), _DRAIN_LIMIT_S)
    notes.change(
        f"GCPBackendPolicy {name} drainingTimeoutSec",
        old,
        draining["drainingTimeoutSec"],
        "the default of 0 cuts streams",
    )
    default["connectionDraining"] = draining
    if "maxRatePerEndpoint" in default:
        message = f"maxRatePerEndpoint {default['maxRatePerEndpoint']} was measured on a GPU pod"
        notes.warn(f"GCPBackendPolicy {name}", message, "set it from the gate's capacity figure")
    result["spec"] = {"default": default, "targetRef": _service_ref(names)}
    _retargeted(source, result, notes)
    return result


def _retargeted(source: Manifest | None, result: Manifest, notes: Notes) -> None:
    old = ((source or {}).get("spec") or {}).get("targetRef")
    path = f"{result['kind']} {name_of(result)} targetRef"
    notes.change(path, old, result["spec"]["targetRef"], "the target's backend has settings of its own")


def _service_ref(names: Names) -> Manifest:
    return {"group": "", "kind": "Service", "name": names.service}


def disruption_budget(
    source: Manifest | None, names: Names, namespace: str | None, identity: Identity, replicas: int, notes: Notes
) -> Manifest:
    """Build the PodDisruptionBudget: a node upgrade takes one replica at a time, as each start takes so long."""
    name = names.pod_disruption_budget
    path = f"PodDisruptionBudget {name}"
    if source is None:
        result = _new("policy/v1", "PodDisruptionBudget", name, namespace, identity)
        notes.change(path, None, {"maxUnavailable": 1}, "node upgrades must not take two replicas at once")
    else:
        result = _target(source, name, identity)
    spec = result["spec"]
    least = spec.get("minAvailable")
    if least is None and "maxUnavailable" not in spec:
        spec["maxUnavailable"] = 1
    elif isinstance(least, int) and least >= replicas:
        spec.pop("minAvailable")
        spec["maxUnavailable"] = 1
        notes.change(
            path, {"minAvailable": least}, {"maxUnavailable": 1}, f"of {replicas} pods none could ever be evicted"
        )
    notes.change(f"{path} selector", spec.get("selector"), {"matchLabels": dict(identity.selector)}, "TPU pods only")
    spec["selector"] = {"matchLabels": dict(identity.selector)}
    if replicas < 2:
        message = "one TPU replica restarts in tens of minutes, and no budget protects a single one"
        notes.warn(path, message, "run two, or accept it in the plan (accept_single_replica)")
    return result


def autoscaler(source: Manifest, names: Names, identity: Identity, replicas: int, notes: Notes) -> Manifest | None:
    """Copy a HorizontalPodAutoscaler; one that looks at GPU metrics only has no copy."""
    path = f"HorizontalPodAutoscaler {names.autoscaler}"
    result = _target(source, names.autoscaler, identity)
    spec = result["spec"]
    metrics = []
    for metric in spec.get("metrics") or []:
        text = str(metric)
        if _GPU_METRIC.search(text):
            notes.change(f"{path} metrics", metric, None, "no TPU reports this GPU metric")
            continue
        metrics.append(_renamed(metric))
        notes.change(f"{path} metrics", metric, metrics[-1], "renamed in newer servers")
    if spec.get("metrics") and not metrics:
        notes.warn(
            path, "it looked at GPU metrics only: the target has no autoscaler", "scale by vllm:num_requests_waiting"
        )
        return None
    if metrics:
        spec["metrics"] = metrics
    old = spec.get("scaleTargetRef")
    spec["scaleTargetRef"] = {"apiVersion": "apps/v1", "kind": "Deployment", "name": names.deployment}
    why = "each autoscaler has a Deployment of its own, or the two would fight"
    notes.change(f"{path} scaleTargetRef", old, spec["scaleTargetRef"], why)
    least = max(int(spec.get("minReplicas") or 1), replicas)
    notes.change(f"{path} minReplicas", spec.get("minReplicas"), least, "the target keeps what it was sized for")
    spec["minReplicas"] = least
    spec["maxReplicas"] = max(int(spec.get("maxReplicas") or 1), least)
    message = f"up to {spec['maxReplicas']} replicas need as many TPU nodes, and each takes tens of minutes to serve"
    notes.warn(path, message, "match the node pool's limits, and scale early")
    return result


def _renamed(metric: Any) -> Any:
    if isinstance(metric, dict):
        return {key: _renamed(value) for key, value in metric.items()}
    if isinstance(metric, list):
        return [_renamed(value) for value in metric]
    if isinstance(metric, str):
        for old, new in _OLD_METRICS.items():
            metric = metric.replace(old, new).replace(old.replace(":", "_"), new.replace(":", "_"))
    return metric


def scrape_rule(source: Manifest, names: Names, identity: Identity, notes: Notes) -> Manifest:
    """Copy a PodMonitoring (or a PodMonitor) for the target's pods."""
    result = _target(source, names.pod_monitoring, identity)
    selector = {"matchLabels": dict(identity.selector)}
    old = (result.get("spec") or {}).get("selector")
    result.setdefault("spec", {})["selector"] = selector
    path = f"{source.get('kind')} {names.pod_monitoring}"
    notes.change(path, name_of(source), names.pod_monitoring, "the target is scraped as the source is")
    notes.change(f"{path} selector", old, selector, "TPU pods only")
    return result


def config_map(document: Manifest, name: str, identity: Identity) -> Manifest:
    """Copy a ConfigMap under the target's name, its data as the translation left it."""
    result = _target(document, name, identity)
    # A copy that a later translation must be able to change.
    result.pop("immutable", None)
    return result
