"""Do what the API server does to an object of each kind when it is created or changed."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable

from .messages import Object
from .resources import Resource

SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
CREATED_WITH_STATUS = frozenset({"nodes"})
_NOT_READY = tuple(
    {"key": f"node.kubernetes.io/{what}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
    for what in ("not-ready", "unreachable")
)


class Names:
    """Draw uids, name suffixes and cluster IPs from one seed, so that a run can be repeated."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._services = 10

    def uid(self) -> str:
        """Return a fresh uid."""
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def suffix(self) -> str:
        """Return the five letters that generateName appends."""
        return "".join(self._random.choices(SUFFIX, k=5))

    def cluster_ip(self) -> str:
        """Return the next address of the services' range."""
        self._services += 1
        return f"10.96.{self._services // 250}.{self._services % 250 + 1}"


def _quality(spec: Object) -> str:
    containers = [*spec.get("containers", ()), *spec.get("initContainers", ())]
    asked = [c.get("resources", {}) for c in containers]
    plain = [
        {kind: {n: v for n, v in r.get(kind, {}).items() if n in ("cpu", "memory")} for kind in ("requests", "limits")}
        for r in asked
    ]
    if not any(p["requests"] or p["limits"] for p in plain):
        return "BestEffort"
    if all(len(p["limits"]) == 2 and p["limits"] == p["requests"] for p in plain):
        return "Guaranteed"
    return "Burstable"


def _pod(obj: Object, _: Names) -> None:
    spec = obj["spec"]
    spec.setdefault("serviceAccountName", "default")
    spec.setdefault("serviceAccount", spec["serviceAccountName"])
    spec.setdefault("priority", 0)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    tolerations = spec.setdefault("tolerations", [])
    for toleration in _NOT_READY:
        keys = {(t.get("key"), t.get("effect")) for t in tolerations}
        if (toleration["key"], "NoExecute") not in keys and (None, None) not in keys:
            tolerations.append(dict(toleration))
    obj["status"] = {"phase": "Pending", "qosClass": _quality(spec)}


def _namespace(obj: Object, _: Names) -> None:
    obj["spec"] = {"finalizers": ["kubernetes"]}
    obj["status"] = {"phase": "Active"}


def _service(obj: Object, names: Names) -> None:
    spec = obj["spec"]
    obj["status"] = {"loadBalancer": {}}
    if spec["type"] == "ExternalName":
        return
    address = spec.setdefault("clusterIP", names.cluster_ip())
    spec.setdefault("clusterIPs", [address])
    spec.setdefault("ipFamilies", ["IPv4"])
    spec.setdefault("ipFamilyPolicy", "SingleStack")


def _job(obj: Object, _: Names) -> None:
    if obj["spec"].get("manualSelector"):
        return
    uid, name = obj["metadata"]["uid"], obj["metadata"]["name"]
    obj["spec"]["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    labels = obj["spec"]["template"]["metadata"].setdefault("labels", {})
    for prefix in ("", "batch.kubernetes.io/"):
        labels[f"{prefix}controller-uid"] = uid
        labels[f"{prefix}job-name"] = name


def _claim(obj: Object, _: Names) -> None:
    obj["status"] = {"phase": "Pending"}


def _budget(obj: Object, _: Names) -> None:
    obj["status"] = {"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0}


def _definition(obj: Object, _: Names) -> None:
    stored = [version["name"] for version in obj["spec"].get("versions", ()) if version.get("storage")]
    obj["status"] = {"acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored}


_CREATE: dict[str, Callable[[Object, Names], None]] = {
    "pods": _pod,
    "namespaces": _namespace,
    "services": _service,
    "jobs": _job,
    "persistentvolumeclaims": _claim,
    "poddisruptionbudgets": _budget,
    "customresourcedefinitions": _definition,
}


def prepare_create(resource: Resource, obj: Object, names: Names, now: str) -> None:
    """Give a new object its identity and what its kind gets on creation, in place."""
    meta = obj["metadata"]
    for field in ("resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
        meta.pop(field, None)
    meta["uid"] = names.uid()
    meta["creationTimestamp"] = now
    meta.pop("generation", None)
    if resource.generation:
        meta["generation"] = 1
    prepare = _CREATE.get(resource.plural)
    if prepare:
        prepare(obj, names)


def drop_status(resource: Resource, obj: Object) -> None:
    """Leave out the status that a client sends on creation (a custom kind's goes before defaulting)."""
    if resource.has_status and not resource.custom and resource.plural not in CREATED_WITH_STATUS:
        obj["status"] = {}


_KEPT = (
    "uid",
    "creationTimestamp",
    "name",
    "namespace",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "generateName",
    "resourceVersion",
)


def _status_update(resource: Resource, old: Object, new: Object) -> Object:
    merged = {**old, "status": new.get("status", {})}
    meta = dict(old["metadata"])
    if not resource.custom:
        # Built-in kinds let a status update write annotations too, never labels.
        meta = {**new["metadata"], "labels": meta.get("labels")}
        if meta["labels"] is None:
            del meta["labels"]
    merged["metadata"] = meta
    return merged


def _main_update(resource: Resource, old: Object, new: Object) -> Object:
    merged = {**new, "metadata": dict(new["metadata"])}
    if resource.has_status:
        merged.pop("status", None)
        if "status" in old:
            merged["status"] = old["status"]
    if resource.plural == "services":
        spec = merged["spec"] = dict(merged["spec"])
        for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if field in old["spec"]:
                spec.setdefault(field, old["spec"][field])
    if resource.plural == "namespaces":
        merged["spec"] = old["spec"]
    return merged


def prepare_update(resource: Resource, old: Object, new: Object, subresource: str) -> Object:
    """Return what an update may become: the parts that it may not write are as they were."""
    merged = _status_update(resource, old, new) if subresource == "status" else _main_update(resource, old, new)
    for field in _KEPT:
        if field in old["metadata"]:
            merged["metadata"][field] = old["metadata"][field]
        else:
            merged["metadata"].pop(field, None)
    return merged


_APART = frozenset({"metadata", "status", "kind", "apiVersion"})


def spec_changed(old: Object, new: Object) -> bool:
    """Tell whether a change is one that metadata.generation counts."""
    if old.get("spec") != new.get("spec"):
        return True
    if new["kind"] == "Deployment" and old["metadata"].get("annotations") != new["metadata"].get("annotations"):
        # Only a Deployment counts its annotations too: its controller copies them to the ReplicaSets.
        return True
    return {k: v for k, v in old.items() if k not in _APART} != {k: v for k, v in new.items() if k not in _APART}
