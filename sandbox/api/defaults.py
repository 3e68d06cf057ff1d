"""Fill in what the API server fills in when an object of a built-in kind comes in."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from .messages import Object


def _fill(target: Object, **values: Any) -> None:
    for name, value in values.items():
        target.setdefault(name, value)


def _probe(probe: Object | None) -> None:
    if probe is None:
        return
    _fill(probe, timeoutSeconds=1, periodSeconds=10, successThreshold=1, failureThreshold=3)
    _http_get(probe)
    if "grpc" in probe:
        _fill(probe["grpc"], service="")


def _http_get(handler: Object | None) -> None:
    if handler and "httpGet" in handler:
        _fill(handler["httpGet"], path="/", scheme="HTTP")


def _pull_policy(image: str) -> str:
    if "@" in image:
        return "IfNotPresent"
    _, _, tag = image.rpartition("/")[2].partition(":")
    return "Always" if tag in ("", "latest") else "IfNotPresent"


def _container(container: Object, host_network: bool) -> None:
    _fill(
        container,
        resources={},
        terminationMessagePath="/dev/termination-log",
        terminationMessagePolicy="File",
        imagePullPolicy=_pull_policy(container.get("image", "")),
    )
    for port in container.get("ports", ()):
        _fill(port, protocol="TCP")
        if host_network and "containerPort" in port:
            _fill(port, hostPort=port["containerPort"])
    for variable in container.get("env", ()):
        reference = variable.get("valueFrom", {}).get("fieldRef")
        if reference is not None:
            _fill(reference, apiVersion="v1")
    limits = container["resources"].get("limits")
    if limits:
        requests = container["resources"].setdefault("requests", {})
        for name, amount in limits.items():
            requests.setdefault(name, amount)
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        _probe(container.get(name))
    for hook in container.get("lifecycle", {}).values():
        if isinstance(hook, dict):
            _http_get(hook)


def _volume(volume: Object) -> None:
    if len(volume) <= 1:
        _fill(volume, emptyDir={})
    for source in ("configMap", "secret", "downwardAPI", "projected"):
        if source in volume:
            _fill(volume[source], defaultMode=420)
            _field_references(volume[source].get("items", ()))
    if "hostPath" in volume:
        _fill(volume["hostPath"], type="")
    for source in volume.get("projected", {}).get("sources", ()):
        _field_references(source.get("downwardAPI", {}).get("items", ()))
        if "serviceAccountToken" in source:
            _fill(source["serviceAccountToken"], expirationSeconds=3600)


def _field_references(items: Any) -> None:
    for item in items:
        if "fieldRef" in item:
            _fill(item["fieldRef"], apiVersion="v1")


def pod_spec(spec: Object) -> None:
    """Fill in a pod's spec, in a pod or in a template."""
    for container in [*spec.get("initContainers", ()), *spec.get("containers", ())]:
        _container(container, bool(spec.get("hostNetwork")))
    for volume in spec.get("volumes", ()):
        _volume(volume)
    _fill(
        spec,
        restartPolicy="Always",
        terminationGracePeriodSeconds=30,
        dnsPolicy="ClusterFirst",
        securityContext={},
        schedulerName="default-scheduler",
    )
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:
        _fill(spec, serviceAccountName=account, serviceAccount=account)


def _template(holder: Object) -> None:
    template = holder.setdefault("template", {})
    template.setdefault("metadata", {})
    pod_spec(template.setdefault("spec", {}))


def _pod(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    pod_spec(spec)
    _fill(spec, enableServiceLinks=True)


def _deployment(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _fill(spec, replicas=1)
    _template(spec)
    strategy = spec.setdefault("strategy", {})
    _fill(strategy, type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        _fill(rolling, maxUnavailable="25%", maxSurge="25%")
    _fill(spec, revisionHistoryLimit=10, progressDeadlineSeconds=600)


def _replica_set(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _fill(spec, replicas=1)
    _template(spec)


def _job(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _template(spec)
    if "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = 1
    _fill(
        spec,
        parallelism=1,
        backoffLimit=6,
        completionMode="NonIndexed",
        suspend=False,
        podReplacementPolicy="Failed" if "podFailurePolicy" in spec else "TerminatingOrFailed",
    )


def _service(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _fill(spec, type="ClusterIP", sessionAffinity="None")
    if spec["type"] != "ExternalName":
        _fill(spec, internalTrafficPolicy="Cluster")
    for port in spec.get("ports", ()):
        _fill(port, protocol="TCP", targetPort=port.get("port"))
    if spec["type"] in ("NodePort", "LoadBalancer"):
        _fill(spec, externalTrafficPolicy="Cluster")
    if spec["type"] == "LoadBalancer":
        _fill(spec, allocateLoadBalancerNodePorts=True)


def _secret(obj: Object) -> None:
    _fill(obj, type="Opaque")
    for key, text in obj.pop("stringData", {}).items():
        obj.setdefault("data", {})[key] = base64.b64encode(text.encode()).decode()


def _autoscaler(obj: Object) -> None:
    _fill(obj.setdefault("spec", {}), minReplicas=1)
    if not obj["spec"].get("metrics"):
        target = {"type": "Utilization", "averageUtilization": 80}
        obj["spec"]["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]


def _claim(obj: Object) -> None:
    _fill(obj.setdefault("spec", {}), volumeMode="Filesystem")


def _slice(obj: Object) -> None:
    for port in obj.get("ports", ()):
        _fill(port, name="", protocol="TCP")


def _binding(obj: Object) -> None:
    group = "rbac.authorization.k8s.io"
    _fill(obj.setdefault("roleRef", {}), apiGroup=group)
    for subject in obj.get("subjects", ()):
        if subject.get("kind") in ("User", "Group"):
            _fill(subject, apiGroup=group)


def _namespace(obj: Object) -> None:
    labels = obj["metadata"].setdefault("labels", {})
    labels["kubernetes.io/metadata.name"] = obj["metadata"].get("name", "")


def _priority_class(obj: Object) -> None:
    _fill(obj, preemptionPolicy="PreemptLowerPriority")


def _definition(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _fill(spec, conversion={"strategy": "None"})
    names = spec.setdefault("names", {})
    kind = names.get("kind", "")
    _fill(names, singular=kind.lower(), listKind=f"{kind}List")


DEFAULTS: dict[str, Callable[[Object], None]] = {
    "pods": _pod,
    "deployments": _deployment,
    "replicasets": _replica_set,
    "jobs": _job,
    "services": _service,
    "secrets": _secret,
    "horizontalpodautoscalers": _autoscaler,
    "persistentvolumeclaims": _claim,
    "endpointslices": _slice,
    "rolebindings": _binding,
    "clusterrolebindings": _binding,
    "namespaces": _namespace,
    "priorityclasses": _priority_class,
    "customresourcedefinitions": _definition,
}


def fill(plural: str, obj: Object) -> None:
    """Fill in the defaults of one object, in place."""
    function = DEFAULTS.get(plural)
    if function:
        function(obj)
