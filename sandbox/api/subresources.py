"""Serve the subresources that are objects of their own: scale, eviction, binding, tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import validation
from .deletes import eviction_allowed
from .kinds import Options
from .messages import Object, bad_request, conflict, invalid, invalid_of, not_found
from .patch import JSON_PATCH, json_patch, merge_patch
from .resources import BY_PLURAL, Resource
from .selectors import selector_text
from .store import Entry, Store
from .times import stamp
from .writes import Writer

MIN_TOKEN_S = 600


def scale_of(obj: Object) -> Object:
    """Return the Scale of a Deployment or ReplicaSet."""
    meta = obj["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    replicas = obj["spec"].get("replicas", 0)
    status: Object = {"replicas": obj.get("status", {}).get("replicas", 0)}
    selector = selector_text(obj["spec"].get("selector"))
    if selector:
        status["selector"] = selector
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {name: meta[name] for name in kept if name in meta},
        "spec": {"replicas": replicas} if replicas else {},
        "status": status,
    }


def write_scale(
    writer: Writer, resource: Resource, entry: Entry, body: Any, patch: str | None, options: Options
) -> Entry:
    """Change the number of replicas by a Scale, or by a patch of it."""
    current = scale_of(entry.obj)
    if patch == JSON_PATCH:
        wanted = json_patch(current, body)
    elif patch is not None:
        wanted = merge_patch(current, body)
    else:
        wanted = body
    if not isinstance(wanted, dict) or wanted.get("kind") not in (None, "Scale"):
        raise bad_request("the body of the request is not a Scale")
    replicas = (wanted.get("spec") or {}).get("replicas", 0)
    if not isinstance(replicas, int) or isinstance(replicas, bool):
        raise bad_request(
            'Scale in version "v1" cannot be handled as a Scale: json: cannot unmarshal '
            "string into Go struct field ScaleSpec.spec.replicas of type int32"
        )
    if replicas < 0:
        cause = validation.wrong("spec.replicas", replicas, "must be greater than or equal to 0")
        raise invalid(resource, entry.obj["metadata"]["name"], [cause])
    obj = {**entry.obj, "metadata": dict(entry.obj["metadata"])}
    obj["spec"] = {**obj["spec"], "replicas": replicas}
    version = (wanted.get("metadata") or {}).get("resourceVersion")
    if version:
        obj["metadata"]["resourceVersion"] = version
    return writer.replace(resource, entry, obj, options, "scale")


def bind(store: Store, namespace: str, name: str, body: Any) -> None:
    """Bind a pod to a node, as the scheduler does."""
    pods = BY_PLURAL["pods"]
    entry = store.get("pods", namespace, name)
    if entry is None:
        raise not_found(pods, name)
    node = ((body or {}).get("target") or {}).get("name")
    if not node:
        raise bad_request("Binding: target.name: Required value")
    if entry.obj["spec"].get("nodeName"):
        why = f'pod {name} is already assigned to node "{entry.obj["spec"]["nodeName"]}"'
        raise conflict(pods, name, why)
    set_node(store, entry, node, "True", None, "")


def set_node(
    store: Store, entry: Entry, node: str | None, status: str, reason: str | None, message: str, now: str = ""
) -> None:
    """Write what the scheduler found: the node, or why there is none, and the PodScheduled condition."""
    obj = {**entry.obj, "metadata": dict(entry.obj["metadata"])}
    if node:
        obj["spec"] = {**obj["spec"], "nodeName": node}
    condition: Object = {"type": "PodScheduled", "status": status}
    condition["lastTransitionTime"] = now or obj["metadata"]["creationTimestamp"]
    if reason:
        condition |= {"reason": reason, "message": message}
    if obj["metadata"].get("generation"):
        condition["observedGeneration"] = obj["metadata"]["generation"]
    others = [c for c in obj["status"].get("conditions", ()) if c["type"] != "PodScheduled"]
    obj["status"] = {**obj["status"], "conditions": [*others, condition]}
    store.put("pods", obj)


def evict(store: Store, namespace: str, name: str, dry_run: bool) -> None:
    """Refuse the eviction of a pod where a disruption budget says so; the caller then deletes it."""
    entry = store.get("pods", namespace, name)
    if entry is None:
        raise not_found(BY_PLURAL["pods"], name)
    eviction_allowed(store, entry.obj, dry_run)


def request_token(account: Entry, body: Any, issue: Callable[[str, float], tuple[str, float]]) -> Object:
    """Answer a TokenRequest for a service account; nothing is stored."""
    meta = account.obj["metadata"]
    if not isinstance(body, dict) or body.get("kind") not in (None, "TokenRequest"):
        raise bad_request("the body of the request is not a TokenRequest")
    spec = {"audiences": ["https://kubernetes.default.svc"], "expirationSeconds": 3600, **(body.get("spec") or {})}
    if spec["expirationSeconds"] < MIN_TOKEN_S:
        cause = validation.wrong(
            "spec.expirationSeconds", spec["expirationSeconds"], "may not specify a duration less than 10 minutes"
        )
        title = f'TokenRequest.authentication.k8s.io "{meta["name"]}"'
        details: Object = {"name": meta["name"], "group": "authentication.k8s.io", "kind": "TokenRequest"}
        raise invalid_of(title, details, [cause])
    user = f"system:serviceaccount:{meta['namespace']}:{meta['name']}"
    token, expires = issue(user, spec["expirationSeconds"])
    return {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": meta["name"], "namespace": meta["namespace"], "creationTimestamp": None},
        "spec": spec,
        "status": {"token": token, "expirationTimestamp": stamp(expires)},
    }
