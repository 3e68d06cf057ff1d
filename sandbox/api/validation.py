"""Refuse objects that the API server refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from .messages import Cause, Object
from .resources import Resource
from .selectors import selector_matches

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and "
    "must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    f"'{_SUBDOMAIN}')"
)
_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start "
    "and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    f"'{_LABEL}')"
)
_VALUE = r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"
_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must "
    "start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used "
    f"for validation is '{_VALUE}')"
)
_LABEL_NAMED = frozenset({"namespaces", "services"})
_FREE_NAMED = frozenset({"roles", "rolebindings", "clusterroles", "clusterrolebindings"})
_SUBDOMAIN_RE = re.compile(_SUBDOMAIN)
_LABEL_RE = re.compile(_LABEL)
_VALUE_RE = re.compile(_VALUE)
MAX_DATA = 1024 * 1024


def shown(value: Any) -> str:
    """Write a refused value the way the server does: JSON."""
    return json.dumps(value, separators=(",", ":"), sort_keys=isinstance(value, dict))


def wrong(field: str, value: Any, why: str) -> Cause:
    """Say that a value is invalid."""
    return Cause(field, f"Invalid value: {shown(value)}: {why}")


def required(field: str, why: str = "") -> Cause:
    """Say that a value is missing."""
    return Cause(field, "Required value" + (f": {why}" if why else ""), "FieldValueRequired")


def unsupported(field: str, value: Any, allowed: list[str]) -> Cause:
    """Say that a value is none of those that are allowed."""
    text = ", ".join(f'"{each}"' for each in allowed)
    return Cause(field, f"Unsupported value: {shown(value)}: supported values: {text}", "FieldValueNotSupported")


def _metadata(resource: Resource, obj: Object) -> list[Cause]:
    meta = obj["metadata"]
    name = meta.get("name", "")
    causes = []
    if not name:
        return [required("metadata.name", "name or generateName is required")]
    if resource.plural in _FREE_NAMED:
        if "/" in name or "%" in name or name in (".", ".."):
            causes.append(wrong("metadata.name", name, "may not contain '/'"))
    elif resource.plural in _LABEL_NAMED:
        if not _LABEL_RE.fullmatch(name):
            causes.append(wrong("metadata.name", name, _LABEL_TEXT))
        elif len(name) > 63:
            causes.append(wrong("metadata.name", name, "must be no more than 63 characters"))
    elif not _SUBDOMAIN_RE.fullmatch(name):
        causes.append(wrong("metadata.name", name, _SUBDOMAIN_TEXT))
    elif len(name) > 253:
        causes.append(wrong("metadata.name", name, "must be no more than 253 bytes"))
    return causes + _labels(meta.get("labels", {}), "metadata.labels")


def _labels(labels: dict[str, str], field: str) -> list[Cause]:
    causes = []
    for value in labels.values():
        if not _VALUE_RE.fullmatch(value):
            causes.append(wrong(field, value, _VALUE_TEXT))
        elif len(value) > 63:
            causes.append(wrong(field, value, "must be no more than 63 bytes"))
    return causes


def _extended(name: str) -> bool:
    return "/" in name and not name.partition("/")[0].endswith("kubernetes.io")


def _container(container: Object, field: str) -> list[Cause]:
    causes = []
    if not container.get("name"):
        causes.append(required(f"{field}.name"))
    elif not _LABEL_RE.fullmatch(container["name"]):
        causes.append(wrong(f"{field}.name", container["name"], _LABEL_TEXT))
    if not container.get("image"):
        causes.append(required(f"{field}.image"))
    limits = container.get("resources", {}).get("limits", {})
    requests = container.get("resources", {}).get("requests", {})
    for name, amount in requests.items():
        if not _extended(name):
            continue
        if name not in limits:
            causes.append(
                Cause(
                    f"{field}.resources.limits",
                    "Required value: Limit must be set for non overcommitable resources",
                    "FieldValueRequired",
                )
            )
        elif limits[name] != amount:
            why = f"must be equal to {name} limit of {limits[name]}"
            causes.append(wrong(f"{field}.resources.requests", amount, why))
    for i, port in enumerate(container.get("ports", ())):
        if not 1 <= port.get("containerPort", 0) <= 65535:
            causes.append(
                wrong(
                    f"{field}.ports[{i}].containerPort",
                    port.get("containerPort", 0),
                    "must be between 1 and 65535, inclusive",
                )
            )
    return causes


def pod_spec(spec: Object, field: str, policies: tuple[str, ...]) -> list[Cause]:
    """Check a pod's spec, in a pod or in a template that allows these restart policies."""
    causes = []
    if not spec.get("containers"):
        causes.append(required(f"{field}.containers"))
    names: set[str] = set()
    for group in ("initContainers", "containers"):
        for i, container in enumerate(spec.get(group, ())):
            causes += _container(container, f"{field}.{group}[{i}]")
            if container.get("name") in names:
                text = f'Duplicate value: "{container["name"]}"'
                causes.append(Cause(f"{field}.{group}[{i}].name", text, "FieldValueDuplicate"))
            names.add(container.get("name", ""))
    volumes = {volume.get("name") for volume in spec.get("volumes", ())}
    for i, container in enumerate(spec.get("containers", ())):
        for j, mount in enumerate(container.get("volumeMounts", ())):
            if mount.get("name") not in volumes:
                text = f'Not found: "{mount.get("name")}"'
                where = f"{field}.containers[{i}].volumeMounts[{j}].name"
                causes.append(Cause(where, text, "FieldValueNotFound"))
    if spec.get("restartPolicy") not in policies:
        causes.append(unsupported(f"{field}.restartPolicy", spec.get("restartPolicy"), list(policies)))
    return causes


def _not_negative(obj: Object, *paths: str) -> list[Cause]:
    causes = []
    for path in paths:
        value: Any = obj
        for step in path.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        if isinstance(value, int) and value < 0:
            causes.append(wrong(path, value, "must be greater than or equal to 0"))
    return causes


def _selected_template(obj: Object) -> list[Cause]:
    spec = obj["spec"]
    selector = spec.get("selector")
    labels = spec["template"]["metadata"].get("labels", {})
    causes = _not_negative(obj, "spec.replicas")
    if selector is None:
        causes.append(required("spec.selector"))
    elif not selector.get("matchLabels") and not selector.get("matchExpressions"):
        causes.append(wrong("spec.selector", selector, "empty selector is invalid for deployment"))
    if selector is not None and not selector_matches(selector, labels):
        causes.append(wrong("spec.template.metadata.labels", labels, "`selector` does not match template `labels`"))
    causes += _labels(labels, "spec.template.metadata.labels")
    return causes + pod_spec(spec["template"]["spec"], "spec.template.spec", ("Always",))


def _pod(obj: Object) -> list[Cause]:
    return pod_spec(obj["spec"], "spec", ("Always", "OnFailure", "Never"))


def _job(obj: Object) -> list[Cause]:
    causes = _not_negative(
        obj,
        "spec.parallelism",
        "spec.completions",
        "spec.backoffLimit",
        "spec.activeDeadlineSeconds",
        "spec.ttlSecondsAfterFinished",
    )
    template = obj["spec"]["template"]["spec"]
    return causes + pod_spec(template, "spec.template.spec", ("OnFailure", "Never"))


def _service(obj: Object) -> list[Cause]:
    spec = obj["spec"]
    causes = []
    if not spec.get("ports") and spec.get("type") != "ExternalName" and spec.get("clusterIP") != "None":
        causes.append(required("spec.ports"))
    for i, port in enumerate(spec.get("ports", ())):
        if not 1 <= port.get("port", 0) <= 65535:
            why = "must be between 1 and 65535, inclusive"
            causes.append(wrong(f"spec.ports[{i}].port", port.get("port", 0), why))
        if len(spec["ports"]) > 1 and not port.get("name"):
            causes.append(required(f"spec.ports[{i}].name"))
    return causes


def _data(obj: Object) -> list[Cause]:
    size = sum(len(value) for field in ("data", "binaryData") for value in obj.get(field, {}).values())
    if size <= MAX_DATA:
        return []
    field = "data" if obj.get("kind") == "Secret" else ""
    return [Cause(field, f"Too long: may not be more than {MAX_DATA} bytes", "FieldValueTooLong")]


def _autoscaler(obj: Object) -> list[Cause]:
    spec = obj["spec"]
    causes = []
    if spec.get("maxReplicas", 0) < 1:
        causes.append(wrong("spec.maxReplicas", spec.get("maxReplicas", 0), "must be greater than 0"))
    elif spec["maxReplicas"] < spec["minReplicas"]:
        why = "must be greater than or equal to `minReplicas`"
        causes.append(wrong("spec.maxReplicas", spec["maxReplicas"], why))
    if spec["minReplicas"] < 1:
        causes.append(wrong("spec.minReplicas", spec["minReplicas"], "must be greater than or equal to 1"))
    return causes


def _lease(obj: Object) -> list[Cause]:
    seconds = obj.get("spec", {}).get("leaseDurationSeconds")
    if seconds is not None and seconds <= 0:
        return [wrong("spec.leaseDurationSeconds", seconds, "must be greater than 0")]
    return _not_negative(obj, "spec.leaseTransitions")


def _route(obj: Object) -> list[Cause]:
    causes = []
    for i, rule in enumerate(obj["spec"].get("rules", ())):
        for j, backend in enumerate(rule.get("backendRefs", ())):
            service = (backend.get("group", ""), backend.get("kind")) == ("", "Service")
            if service and "port" not in backend:
                text = "Must have port for Service reference"
                causes.append(wrong(f"spec.rules[{i}].backendRefs[{j}]", "object", text))
    return causes


_RULES: dict[str, Callable[[Object], list[Cause]]] = {
    "deployments": _selected_template,
    "replicasets": _selected_template,
    "pods": _pod,
    "jobs": _job,
    "services": _service,
    "configmaps": _data,
    "secrets": _data,
    "horizontalpodautoscalers": _autoscaler,
    "leases": _lease,
    "httproutes": _route,
}


def check(resource: Resource, obj: Object) -> list[Cause]:
    """Return what is wrong with an object by itself; what its own definition says is checked elsewhere."""
    causes = _metadata(resource, obj)
    rules = None if resource.definition else _RULES.get(resource.plural)
    return causes + (rules(obj) if rules else [])
