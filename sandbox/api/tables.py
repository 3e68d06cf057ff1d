"""Print objects as the tables that `kubectl get` asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import printed
from .messages import Object, Request
from .resources import Resource
from .selectors import selector_text
from .store import Entry
from .times import seconds

Row = list[Any]
_NONE = "<none>"


def wanted(request: Request) -> bool:
    """Tell whether the client asks for a Table."""
    return "as=Table" in request.headers.get("accept", "")


def age(since: str | None, now: float) -> str:
    """Write how long ago something was, as kubectl does: 45s, 3m, 2h, 5d."""
    if not since:
        return "<unknown>"
    elapsed = max(0, int(now - seconds(since)))
    if elapsed < 120:
        return f"{elapsed}s"
    if elapsed < 600:
        minutes, rest = divmod(elapsed, 60)
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    for unit, size, limit in (("m", 60, 3 * 3600), ("h", 3600, 48 * 3600)):
        if elapsed < limit:
            return f"{elapsed // size}{unit}"
    return f"{elapsed // 86400}d"


def _pod(obj: Object, now: float) -> Row:
    status = obj.get("status", {})
    containers = status.get("containerStatuses", ())
    total = len(obj["spec"]["containers"])
    ready = sum(bool(c.get("ready")) for c in containers)
    reason = status.get("reason") or status.get("phase", "Unknown")
    for container in containers:
        state = container.get("state", {})
        for name in ("waiting", "terminated"):
            if state.get(name, {}).get("reason"):
                reason = state[name]["reason"]
    if "deletionTimestamp" in obj["metadata"]:
        reason = "Terminating"
    restarts = sum(c.get("restartCount", 0) for c in containers)
    address, node = status.get("podIP") or _NONE, obj["spec"].get("nodeName") or _NONE
    return [f"{ready}/{total}", reason, str(restarts), _age(obj, now), address, node, _NONE, _NONE]


def _age(obj: Object, now: float) -> str:
    return age(obj["metadata"].get("creationTimestamp"), now)


def _template(obj: Object) -> Row:
    """Return what -o wide shows of a workload: containers, images and selector."""
    containers = obj["spec"]["template"]["spec"]["containers"]
    names, images = (",".join(c.get(field, "") for c in containers) for field in ("name", "image"))
    return [names, images, selector_text(obj["spec"].get("selector")) or _NONE]


def _deployment(obj: Object, now: float) -> Row:
    status, wanted_replicas = obj.get("status", {}), obj["spec"].get("replicas", 0)
    ready = f"{status.get('readyReplicas', 0)}/{wanted_replicas}"
    return [
        ready,
        status.get("updatedReplicas", 0),
        status.get("availableReplicas", 0),
        _age(obj, now),
        *_template(obj),
    ]


def _replica_set(obj: Object, now: float) -> Row:
    status = obj.get("status", {})
    counts = [obj["spec"].get("replicas", 0), status.get("replicas", 0), status.get("readyReplicas", 0)]
    return [*counts, _age(obj, now), *_template(obj)]


def _job(obj: Object, now: float) -> Row:
    status = obj.get("status", {})
    state = next((c["type"] for c in status.get("conditions", ()) if c["status"] == "True"), "Running")
    completions = f"{status.get('succeeded', 0)}/{obj['spec'].get('completions', 1)}"
    end = seconds(status["completionTime"]) if "completionTime" in status else now
    return [state, completions, age(status.get("startTime"), end), _age(obj, now), *_template(obj)]


def _service(obj: Object, now: float) -> Row:
    spec = obj["spec"]
    ports = ",".join(f"{p['port']}/{p.get('protocol', 'TCP')}" for p in spec.get("ports", ())) or _NONE
    selector = selector_text({"matchLabels": spec.get("selector") or {}}) or _NONE
    return [spec.get("type"), spec.get("clusterIP", _NONE), _NONE, ports, _age(obj, now), selector]


def _node(obj: Object, now: float) -> Row:
    status = obj.get("status", {})
    conditions = {c["type"]: c["status"] for c in status.get("conditions", ())}
    state = {"True": "Ready", "False": "NotReady"}.get(conditions.get("Ready", ""), "Unknown")
    if obj.get("spec", {}).get("unschedulable"):
        state += ",SchedulingDisabled"
    labels = obj["metadata"].get("labels", {})
    roles = ",".join(sorted(n.partition("/")[2] for n in labels if n.startswith("node-role.kubernetes.io/"))) or _NONE
    info = status.get("nodeInfo", {})
    addresses = {each["type"]: each["address"] for each in status.get("addresses", ())}
    wide = [addresses.get("InternalIP", _NONE), addresses.get("ExternalIP", _NONE)]
    wide += [info.get(name) or "<unknown>" for name in ("osImage", "kernelVersion", "containerRuntimeVersion")]
    return [state, roles, _age(obj, now), info.get("kubeletVersion", ""), *wide]


def _event(obj: Object, now: float) -> Row:
    target = obj.get("involvedObject", {})
    last = obj.get("lastTimestamp") or obj.get("eventTime")
    name = f"{target.get('kind', '').lower()}/{target.get('name', '')}"
    return [age(last, now), obj.get("type"), obj.get("reason"), name, obj.get("message", "").strip()]


def _data(obj: Object, now: float) -> Row:
    return [len(obj.get("data", {})) + len(obj.get("binaryData", {})), _age(obj, now)]


def _secret(obj: Object, now: float) -> Row:
    return [obj.get("type", "Opaque"), *_data(obj, now)]


def _lease(obj: Object, now: float) -> Row:
    return [obj.get("spec", {}).get("holderIdentity", ""), _age(obj, now)]


def _route(obj: Object, now: float) -> Row:
    return [printed.text(obj["spec"].get("hostnames")), _age(obj, now)]


def _gateway(obj: Object, now: float) -> Row:
    status = obj.get("status", {})
    address = ",".join(a["value"] for a in status.get("addresses", ()))
    conditions = {c["type"]: c["status"] for c in status.get("conditions", ())}
    return [obj["spec"].get("gatewayClassName"), address, conditions.get("Programmed"), _age(obj, now)]


def _namespace(obj: Object, now: float) -> Row:
    return [obj["status"].get("phase"), _age(obj, now)]


def _autoscaler(obj: Object, now: float) -> Row:
    spec = obj["spec"]
    target = spec["scaleTargetRef"]
    current = obj.get("status", {}).get("currentReplicas", 0)
    name = f"{target['kind']}/{target['name']}"
    return [name, "<unknown>", spec["minReplicas"], spec["maxReplicas"], current, _age(obj, now)]


def _budget(obj: Object, now: float) -> Row:
    spec, status = obj["spec"], obj.get("status", {})
    limits = [str(spec.get(name, "N/A")) for name in ("minAvailable", "maxUnavailable")]
    return [*limits, status.get("disruptionsAllowed", 0), _age(obj, now)]


def _slice(obj: Object, now: float) -> Row:
    ports = ",".join(str(port.get("port", "*")) for port in obj.get("ports", ())) or "<unset>"
    addresses = [address for each in obj.get("endpoints", ()) for address in each.get("addresses", ())]
    shown = ",".join(addresses[:3]) + (f" + {len(addresses) - 3} more..." if len(addresses) > 3 else "")
    return [obj.get("addressType"), ports, shown or "<unset>", _age(obj, now)]


def _created(obj: Object, _: float) -> Row:
    return [obj["metadata"].get("creationTimestamp")]


def _other(obj: Object, now: float) -> Row:
    return [_age(obj, now)]


# Resource → the columns after Name, and what fills them; a "+" column shows with -o wide only.
_TABLES: dict[str, tuple[str, Callable[[Object, float], Row]]] = {
    "pods": ("Ready Status Restarts Age +IP +Node +Nominated_Node +Readiness_Gates", _pod),
    "deployments": ("Ready Up-to-date Available Age +Containers +Images +Selector", _deployment),
    "replicasets": ("Desired Current Ready Age +Containers +Images +Selector", _replica_set),
    "jobs": ("Status Completions Duration Age +Containers +Images +Selector", _job),
    "services": ("Type Cluster-IP External-IP Port(s) Age +Selector", _service),
    "nodes": ("Status Roles Age Version +Internal-IP +External-IP +OS-Image +Kernel-Version +Container-Runtime", _node),
    "configmaps": ("Data Age", _data),
    "secrets": ("Type Data Age", _secret),
    "leases": ("Holder Age", _lease),
    "httproutes": ("Hostnames Age", _route),
    "gateways": ("Class Address Programmed Age", _gateway),
    "namespaces": ("Status Age", _namespace),
    "horizontalpodautoscalers": ("Reference Targets MinPods MaxPods Replicas Age", _autoscaler),
    "endpointslices": ("AddressType Ports Endpoints Age", _slice),
    "customresourcedefinitions": ("Created_At", _created),
    "roles": ("Created_At", _created),
    "clusterroles": ("Created_At", _created),
    "poddisruptionbudgets": ("Min_Available Max_Unavailable Allowed_Disruptions Age", _budget),
}
_EVENTS = ("Last_Seen", "Type", "Reason", "Object", "Message")


def _column(name: str) -> Object:
    title = name.lstrip("+").replace("_", " ")
    return {
        "name": title,
        "type": "string",
        "format": "name" if title == "Name" else "",
        "description": "",
        "priority": int(name.startswith("+")),
    }


def columns(resource: Resource) -> list[Object]:
    """Return the column definitions of a resource's table."""
    if resource.plural == "events":
        return [_column(name) for name in _EVENTS]
    if resource.definition is not None:
        return printed.columns(resource.definition, _column)
    names, _ = _TABLES.get(resource.plural, ("Age", _other))
    return [_column(name) for name in ("Name", *names.split())]


def _cells(resource: Resource, obj: Object, now: float) -> Row:
    if resource.plural == "events":
        return _event(obj, now)
    if resource.definition is not None:
        return printed.cells(resource.definition, obj, lambda since: age(since, now))
    _, cells = _TABLES.get(resource.plural, ("Age", _other))
    return [obj["metadata"]["name"], *cells(obj, now)]


def table(resource: Resource, entries: list[Entry], version: int, now: float, whole: bool = False) -> Object:
    """Return objects as a Table; its rows carry the `whole` objects (to sort by), or their metadata."""
    head = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
    rows = [
        {
            "cells": _cells(resource, entry.obj, now),
            "object": entry.obj if whole else {**head, "metadata": entry.obj["metadata"]},
        }
        for entry in entries
    ]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": str(version)},
        "columnDefinitions": columns(resource),
        "rows": rows,
    }
