"""Delete objects: preconditions, grace, finalizers and what happens to dependents."""

from __future__ import annotations

from typing import Any

from sandbox.clock import Clock

from .messages import ApiError, Object, bad_request, conflict, not_found
from .resources import Resource
from .selectors import selector_matches
from .store import Entry, Store
from .times import stamp

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
_POLICIES = {"Background": None, "Foreground": FOREGROUND, "Orphan": ORPHAN}
# What answers a DELETE with the object itself, not with a Status.
RETURNS_OBJECT = frozenset({"pods", "services", "serviceaccounts", "persistentvolumeclaims"})


def delete(
    store: Store, clock: Clock, resource: Resource, key: tuple[str, str], options: Object, dry_run: bool = False
) -> tuple[Entry, bool]:
    """Delete an object; return its last version and whether it is gone already."""
    namespace, name = key
    entry = store.get(resource.plural, namespace, name)
    if entry is None:
        raise not_found(resource, name)
    _check(resource, entry, options.get("preconditions") or {})
    finalizer = _finalizer(resource, options)
    finalizers = list(entry.obj["metadata"].get("finalizers", ()))
    if finalizer and finalizer not in finalizers and _has_use(store, entry, finalizer):
        finalizers.append(finalizer)
    grace = _grace(resource, entry, options)
    if dry_run:
        return entry, not (finalizers or grace)
    if resource.plural == "namespaces":
        return _terminate(store, clock, entry), False
    if not finalizers and not grace:
        return store.remove(resource.plural, namespace, name), True
    return _mark(store, clock, resource, entry, finalizers, grace), False


def _check(resource: Resource, entry: Entry, preconditions: Object) -> None:
    meta = entry.obj["metadata"]
    for field, title in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
        wanted = preconditions.get(field)
        if wanted and wanted != meta[field]:
            why = (
                f"the {title} in the precondition ({wanted}) does not match the {title} in record "
                f"({meta[field]}). The object might have been "
                + ("deleted and then recreated" if field == "uid" else "modified")
            )
            raise conflict(resource, meta["name"], why, by_kind=True)


def _finalizer(resource: Resource, options: Object) -> str | None:
    policy = options.get("propagationPolicy")
    if policy is None:
        if options.get("orphanDependents"):
            return ORPHAN
        # batch/v1 keeps its old habit: a Job deleted without a policy leaves its pods behind.
        return ORPHAN if resource.plural == "jobs" else None
    if policy not in _POLICIES:
        raise bad_request(f'invalid propagationPolicy "{policy}"')
    return _POLICIES[policy]


def _has_use(store: Store, entry: Entry, finalizer: str) -> bool:
    return finalizer != ORPHAN or bool(store.owned_keys(entry.obj["metadata"]["uid"]))


def _grace(resource: Resource, entry: Entry, options: Object) -> int:
    obj = entry.obj
    if resource.plural != "pods":
        return 0
    if not obj["spec"].get("nodeName") or obj["status"].get("phase") in ("Succeeded", "Failed"):
        return 0
    asked = options.get("gracePeriodSeconds")
    grace = obj["spec"].get("terminationGracePeriodSeconds", 30) if asked is None else asked
    if "deletionTimestamp" in obj["metadata"]:
        # A second deletion can only shorten the wait.
        grace = min(grace, obj["metadata"].get("deletionGracePeriodSeconds", grace))
    return max(0, int(grace))


def _mark(store: Store, clock: Clock, resource: Resource, entry: Entry, finalizers: list[str], grace: int) -> Entry:
    obj = {**entry.obj, "metadata": dict(entry.obj["metadata"])}
    meta = obj["metadata"]
    started = "deletionTimestamp" in meta
    if started and meta.get("deletionGracePeriodSeconds", 0) == grace:
        if finalizers == list(meta.get("finalizers", ())):
            return entry
    else:
        meta["deletionTimestamp"] = stamp(clock.now() + grace)
    meta["deletionGracePeriodSeconds"] = grace
    if finalizers:
        meta["finalizers"] = finalizers
    if not started and "generation" in meta:
        meta["generation"] += 1
    return store.put(resource.plural, obj)


def _terminate(store: Store, clock: Clock, entry: Entry) -> Entry:
    if "deletionTimestamp" in entry.obj["metadata"]:
        return entry
    meta = {**entry.obj["metadata"], "deletionTimestamp": stamp(clock.now())}
    status = {**entry.obj["status"], "phase": "Terminating"}
    return store.put("namespaces", {**entry.obj, "metadata": meta, "status": status})


def success(resource: Resource, entry: Entry) -> Object:
    """Return the Status that a finished deletion answers with."""
    details: dict[str, Any] = {"name": entry.obj["metadata"]["name"]}
    if resource.group:
        details["group"] = resource.group
    details["kind"] = resource.plural
    details["uid"] = entry.obj["metadata"]["uid"]
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def eviction_allowed(store: Store, pod: Object, dry_run: bool = False) -> None:
    """Raise 429 where a PodDisruptionBudget does not allow the eviction of `pod`; else spend one (not in a dry run)."""
    meta = pod["metadata"]
    if pod["status"].get("phase") in ("Succeeded", "Failed", "Pending"):
        return
    for entry in store.list("poddisruptionbudgets", meta["namespace"]):
        budget = entry.obj
        if not selector_matches(budget["spec"].get("selector"), meta.get("labels", {})):
            continue
        status = budget.get("status", {})
        if status.get("disruptionsAllowed", 0) > 0:
            if dry_run:
                continue
            spent = {**status, "disruptionsAllowed": status["disruptionsAllowed"] - 1}
            store.put("poddisruptionbudgets", {**budget, "metadata": dict(budget["metadata"]), "status": spent})
            continue
        name = budget["metadata"]["name"]
        text = (
            f"The disruption budget {name} needs {status.get('desiredHealthy', 0)} healthy pods and has "
            f"{status.get('currentHealthy', 0)} currently"
        )
        details = {"causes": [{"reason": "DisruptionBudget", "message": text}]}
        message = "Cannot evict pod as it would violate the pod's disruption budget."
        raise ApiError(429, "TooManyRequests", message, details)
