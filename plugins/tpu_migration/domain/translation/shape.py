"""Check that objects have the shape that the translation reads, before it does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tpu_migration.domain.translation.model import InputError, Manifest

_PLACEHOLDER = re.compile(r"\{\{|\{%|\$\{|<%|^\$[A-Z_]")
_QUANTITY = re.compile(r"\s*\d+(\.\d*)?([eE]\d+)?(m|k|[MGTPE]|[KMGTPE]i)?\s*")

# A shape is a word for a scalar, a list of one shape, or a mapping from keys to shapes; keys that it does
# not name are free. "{}" is any mapping, "text{}" one of scalars, "amounts" one of quantities.
_Shape = Any
_MATCH = {"matchLabels": "text{}", "matchExpressions": [{"key": "text", "operator": "text", "values": ["scalar"]}]}
_PROBE = {
    "httpGet": {"path": "text", "port": "scalar"},
    "initialDelaySeconds": "int",
    "periodSeconds": "int",
    "timeoutSeconds": "int",
    "failureThreshold": "int",
}
_CONTAINER = {
    "name": "text",
    "image": "image",
    "command": ["scalar"],
    "args": ["scalar"],
    "env": [{"name": "text", "value": "scalar", "valueFrom": {"configMapKeyRef": {"name": "text", "key": "text"}}}],
    "envFrom": [{"prefix": "text", "configMapRef": {"name": "text"}}],
    "resources": {"limits": "amounts", "requests": "amounts"},
    "volumeMounts": [{"name": "text", "mountPath": "text", "subPath": "text"}],
    "volumeDevices": [{"name": "text"}],
    "ports": [{"name": "text", "containerPort": "int"}],
    "startupProbe": _PROBE,
    "readinessProbe": _PROBE,
    "livenessProbe": _PROBE,
    "lifecycle": {"preStop": {"sleep": {"seconds": "int"}, "exec": {"command": ["scalar"]}}},
}
_TERM = {"labelSelector": _MATCH, "podAffinityTerm": {"labelSelector": _MATCH}}
_RULES = {
    "requiredDuringSchedulingIgnoredDuringExecution": [_TERM],
    "preferredDuringSchedulingIgnoredDuringExecution": [_TERM],
}
_NODE_TERM = {"matchExpressions": _MATCH["matchExpressions"], "matchFields": ["{}"]}
_POD = {
    "containers": [_CONTAINER],
    "initContainers": [_CONTAINER],
    "volumes": [
        {
            "name": "text",
            "configMap": {"name": "text", "items": [{"key": "text", "path": "text"}]},
            "persistentVolumeClaim": {"claimName": "text"},
            "hostPath": {"path": "text"},
            "projected": {"sources": ["{}"]},
        }
    ],
    "nodeSelector": "text{}",
    "tolerations": [{"key": "text"}],
    "affinity": {
        "podAffinity": _RULES,
        "podAntiAffinity": _RULES,
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [_NODE_TERM]},
            "preferredDuringSchedulingIgnoredDuringExecution": [{"preference": _NODE_TERM}],
        },
    },
    "topologySpreadConstraints": [{"labelSelector": _MATCH}],
    "terminationGracePeriodSeconds": "int",
}
_METADATA = {"name": "text", "namespace": "text", "labels": "text{}", "annotations": "text{}"}
_TEMPLATE = {"metadata": {"labels": "text{}", "annotations": "text{}"}, "spec": _POD}
_WORKLOAD = {"replicas": "int", "selector": _MATCH, "progressDeadlineSeconds": "int", "template": _TEMPLATE}
_TARGET_REF = {"name": "text"}
_SPECS: dict[str, _Shape] = {
    **dict.fromkeys(("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"), _WORKLOAD),
    "Job": {"template": _TEMPLATE},
    "Pod": _POD,
    "LeaderWorkerSet": {"leaderWorkerTemplate": {"leaderTemplate": _TEMPLATE, "workerTemplate": _TEMPLATE}},
    "Service": {
        "selector": "text{}",
        "type": "text",
        "clusterIP": "text",
        "ports": [{"port": "int", "targetPort": "scalar"}],
    },
    "PodDisruptionBudget": {"selector": _MATCH, "minAvailable": "scalar", "maxUnavailable": "scalar"},
    "PodMonitoring": {"selector": _MATCH},
    "InferencePool": {"selector": "{}"},
    "HorizontalPodAutoscaler": {
        "minReplicas": "int",
        "maxReplicas": "int",
        "metrics": ["{}"],
        "scaleTargetRef": _TARGET_REF,
    },
    "HealthCheckPolicy": {"default": {"config": {"httpHealthCheck": "{}"}}, "targetRef": _TARGET_REF},
    "GCPBackendPolicy": {
        "default": {"timeoutSec": "int", "connectionDraining": {"drainingTimeoutSec": "int"}},
        "targetRef": _TARGET_REF,
    },
    "PersistentVolumeClaim": {"accessModes": ["text"]},
    "ConfigMap": "{}",
}


# The translation reads these closely; a ConfigMap's data is read only where a workload uses it.
READ_KINDS = frozenset(_SPECS) - {"ConfigMap"}


def prune(value: Any) -> Any:
    """Copy a value without nulls in its mappings: to Kubernetes a null is an absent field."""
    if isinstance(value, Mapping):
        return {key: prune(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [prune(inner) for inner in value]
    return value


def check_shape(objects: Iterable[Manifest], lines: Sequence[int] | None = None) -> None:
    """Raise InputError, with the path (and the line) of the first thing that is no Kubernetes object."""
    for index, document in enumerate(objects):
        where = f"line {lines[index]}" if lines else f"object {index + 1}"
        if not isinstance(document, Mapping):
            raise InputError(f"a Kubernetes object is a mapping, found {type(document).__name__}", where)
        kind = document.get("kind")
        missing = [key for key in ("apiVersion", "kind") if not isinstance(document.get(key), str)]
        if missing:
            raise InputError(f"no Kubernetes object: it has no {' and no '.join(missing)}", where)
        if document.get("metadata") is not None:
            _check(document["metadata"], _METADATA, "metadata", where)
        name = (document.get("metadata") or {}).get("name")
        if kind not in _SPECS:
            continue
        where = f"{where}: {kind} {name}"
        if not name:
            raise InputError("metadata.name is missing", where)
        if _PLACEHOLDER.search(name):
            raise InputError(f"metadata.name {name!r} is a template: render it first", where)
        if document.get("spec") is not None:
            _check(document["spec"], _SPECS[str(kind)], "spec", where)
        if kind == "ConfigMap" and document.get("data") is not None:
            _check(document["data"], "text{}", "data", where)


def _check(value: Any, shape: _Shape, path: str, where: str) -> None:
    if isinstance(shape, list):
        if not isinstance(value, list):
            raise InputError(f"{path}: a list is needed, found {value!r:.60}", where)
        for index, item in enumerate(value):
            _check(item, shape[0], f"{path}[{index}]", where)
    elif isinstance(shape, Mapping):
        _mapping(value, path, where)
        for key, inner in shape.items():
            if value.get(key) is not None:
                _check(value[key], inner, f"{path}.{key}", where)
    elif shape in {"{}", "text{}", "amounts"}:
        _mapping(value, path, where)
        for key, item in value.items() if shape != "{}" else ():
            if shape == "text{}" and item is not None:
                _scalar("scalar", item, f"{path} {key}", where)
            elif shape == "amounts" and not _QUANTITY.fullmatch(str(item)):
                raise InputError(f"{path} {key}: {item!r:.60} is no quantity", where)
    else:
        _scalar(shape, value, path, where)


def _mapping(value: Any, path: str, where: str) -> None:
    if not isinstance(value, Mapping):
        raise InputError(f"{path}: a mapping is needed, found {value!r:.60}", where)


def _scalar(shape: str, value: Any, path: str, where: str) -> None:
    if shape == "int" and (not isinstance(value, int) or isinstance(value, bool)):
        raise InputError(f"{path}: an integer is needed, found {value!r:.60}", where)
    if shape in {"text", "image"} and not isinstance(value, str):
        raise InputError(f"{path}: a string is needed, found {value!r:.60}", where)
    if shape == "scalar" and not isinstance(value, str | int | float):
        raise InputError(f"{path}: a string or number is needed, found {value!r:.60}", where)
    if shape == "image" and _PLACEHOLDER.search(value):
        raise InputError(f"{path}: {value!r} is a template: render it first", where)
