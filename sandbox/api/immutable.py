"""Refuse changes of what may not change."""

from __future__ import annotations

from typing import Any

from .messages import Cause, Object
from .resources import Resource
from .validation import wrong

_IMMUTABLE: dict[str, tuple[str, ...]] = {
    "deployments": ("spec.selector",),
    "replicasets": ("spec.selector",),
    "jobs": ("spec.template", "spec.selector", "spec.completionMode"),
    "rolebindings": ("roleRef",),
    "clusterrolebindings": ("roleRef",),
    "secrets": ("type",),
    "endpointslices": ("addressType",),
    "priorityclasses": ("value",),
    "services": ("spec.clusterIP",),
}


def _at(obj: Object, path: str) -> Any:
    value: Any = obj
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


_POD_MUTABLE = ("tolerations", "activeDeadlineSeconds", "terminationGracePeriodSeconds", "schedulingGates")


def _frozen_pod_spec(spec: Object) -> Object:
    rest = {name: value for name, value in spec.items() if name not in _POD_MUTABLE}
    for group in ("containers", "initContainers"):
        if group in rest:
            rest[group] = [{k: v for k, v in c.items() if k != "image"} for c in rest[group]]
    return rest


def check_change(resource: Resource, old: Object, new: Object) -> list[Cause]:
    """Return what is wrong with a change of an object."""
    causes = []
    for path in _IMMUTABLE.get(resource.plural, ()):
        if _at(old, path) != _at(new, path):
            causes.append(wrong(path, _at(new, path), "field is immutable"))
    if resource.plural == "pods" and _frozen_pod_spec(old["spec"]) != _frozen_pod_spec(new["spec"]):
        text = (
            "pod updates may not change fields other than `spec.containers[*].image`,"
            "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,"
            "`spec.tolerations` (only additions to existing tolerations),"
            "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
        )
        causes.append(Cause("spec", f"Forbidden: {text}", "FieldValueForbidden"))
    if old.get("immutable"):
        for field in ("data", "binaryData", "immutable"):
            if old.get(field) != new.get(field):
                text = "Forbidden: field is immutable when `immutable` is set"
                causes.append(Cause(field, text, "FieldValueForbidden"))
    return causes
