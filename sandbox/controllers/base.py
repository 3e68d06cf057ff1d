"""Share what every controller needs: a queue of keys, timers, and writes under a controller's name."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from sandbox.api.core import Api
from sandbox.api.kinds import Options
from sandbox.api.messages import Object
from sandbox.api.store import Change, Entry
from sandbox.api.times import seconds, stamp
from sandbox.clock import Clock

Key = tuple[str, str]
MAX_EVENTS = 2000


class Cluster:
    """The controllers' view of the API: shared objects to read, and writes that follow its rules."""

    def __init__(self, api: Api, clock: Clock, speed: float = 1.0, manager: str = "kube-controller-manager") -> None:
        self._manager = manager
        self.api = api
        self.clock = clock
        self.speed = speed  # divides how long pods stay on a node that is lost
        self.store = api.store
        self._events: OrderedDict[Key, tuple[str, ...]] = OrderedDict()
        self._known: dict[tuple[str, ...], Key] = {}

    @property
    def now(self) -> str:
        """The time as objects carry it."""
        return stamp(self.clock.now())

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        """Return an object to look at, not to change."""
        entry = self.store.get(resource, namespace, name)
        return entry.obj if entry else None

    def list(self, resource: str, namespace: str | None = None) -> list[Object]:
        """Return objects to look at, not to change."""
        return [entry.obj for entry in self.store.list(resource, namespace)]

    def controlled(self, owner: Object, resource: str) -> list[Object]:
        """Return the objects of a resource that `owner` controls."""
        uid = owner["metadata"]["uid"]
        return [e.obj for e in self.store.owned_by(uid, resource) if controller_uid(e.obj) == uid]

    def create(self, resource: str, obj: Object) -> Object:
        """Create an object."""
        kind = self.api.registry.by_plural(resource)
        namespace = obj["metadata"].get("namespace", "")
        return self.api.writer.create(kind, namespace, obj, Options(self._manager)).obj

    def write(self, resource: str, obj: Object, subresource: str = "", **parts: Any) -> Object:
        """Replace top-level parts of an object; without a change, nothing is written."""
        entry = self._entry(resource, obj)
        if all(entry.obj.get(name) == value for name, value in parts.items()):
            return entry.obj
        new = {**entry.obj, "metadata": dict(entry.obj["metadata"]), **parts}
        options = Options(self._manager)
        return self.api.writer.replace(self.api.registry.by_plural(resource), entry, new, options, subresource).obj

    def annotate(self, obj: Object, **annotations: str) -> Object:
        """Return metadata of `obj` with annotations added; names with slashes go in by **{...}."""
        meta = obj["metadata"]
        return {**meta, "annotations": {**meta.get("annotations", {}), **annotations}}

    def delete(self, resource: str, obj: Object, **options: Any) -> None:
        """Delete an object, if it is still the same one."""
        meta = obj["metadata"]
        entry = self.store.get(resource, meta.get("namespace", ""), meta["name"])
        if entry is not None and entry.obj["metadata"]["uid"] == meta["uid"]:
            self.api.delete(self.api.registry.by_plural(resource), meta.get("namespace", ""), meta["name"], options)

    def _entry(self, resource: str, obj: Object) -> Entry:
        meta = obj["metadata"]
        entry = self.store.get(resource, meta.get("namespace", ""), meta["name"])
        if entry is None:
            raise LookupError(f"{resource} {meta['name']} vanished while its controller worked on it")
        return entry

    def event(self, obj: Object, type_: str, reason: str, message: str, component: str) -> None:
        """Record an Event about an object; the same one again only counts up."""
        meta = obj["metadata"]
        same = (meta["uid"], type_, reason, message, component)
        key = self._known.get(same)
        if key is not None:
            entry = self.store.get("events", *key)
            if entry is not None:
                counted = {"count": entry.obj["count"] + 1, "lastTimestamp": self.now}
                self.write("events", entry.obj, **counted)
                return
        namespace = meta.get("namespace", "default")
        digest = hashlib.sha256(repr((same, self.clock.now())).encode()).hexdigest()[:16]
        kind = obj.get("kind", "")
        reference = {
            "kind": kind,
            "namespace": meta.get("namespace"),
            "name": meta["name"],
            "uid": meta["uid"],
            "apiVersion": obj.get("apiVersion"),
            "resourceVersion": meta["resourceVersion"],
        }
        event = {
            "metadata": {"name": f"{meta['name']}.{digest}", "namespace": namespace},
            "involvedObject": {name: value for name, value in reference.items() if value},
            "reason": reason,
            "message": message,
            "source": {"component": component},
            "firstTimestamp": self.now,
            "lastTimestamp": self.now,
            "count": 1,
            "type": type_,
            "reportingComponent": component,
            "reportingInstance": "",
        }
        space = self.get("namespaces", "", namespace)
        if space is None or "deletionTimestamp" in space["metadata"]:
            return
        if self.store.get("events", namespace, event["metadata"]["name"]) is not None:
            return
        self.create("events", event)
        self._remember(same, (namespace, event["metadata"]["name"]))

    def _remember(self, same: tuple[str, ...], key: Key) -> None:
        self._known[same] = key
        self._events[key] = same
        while len(self._events) > MAX_EVENTS:
            oldest, gone = self._events.popitem(last=False)
            self._known.pop(gone, None)
            if self.store.get("events", *oldest) is not None:
                self.store.remove("events", *oldest)


class Controller:
    """Bring the objects whose keys are queued to what they ask for, one key at a time."""

    watches: tuple[str, ...] = ()
    watches_all = False  # it also follows the resources that definitions add later

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._queue: dict[Key, None] = {}
        self._due: dict[Key, float] = {}

    def observe(self, change: Change) -> None:
        """Queue the keys that a change touches."""
        raise NotImplementedError

    def sync(self, key: Key) -> None:
        """Bring one object to what it asks for; called again whenever something about it changes."""
        raise NotImplementedError

    def enqueue(self, *keys: Key) -> None:
        """Look at these keys soon."""
        for key in keys:
            self._queue[key] = None

    def later(self, key: Key, at: float) -> None:
        """Look at a key at a time, if not before."""
        self._due[key] = at

    def run_queued(self, now: float) -> bool:
        """Sync what is queued or due; tell whether there was anything."""
        for key in [key for key, at in self._due.items() if at <= now]:
            del self._due[key]
            self._queue[key] = None
        if not self._queue:
            return False
        queued, self._queue = self._queue, {}
        for key in queued:
            self._due.pop(key, None)
            self.sync(key)
        return True

    def next_due(self) -> float | None:
        """Return when the next timer goes off."""
        return min(self._due.values(), default=None)


def key_of(obj: Object) -> Key:
    """Return the key of an object."""
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def controller_of(obj: Object) -> Object | None:
    """Return the ownerReference of the controller of an object."""
    for owner in obj["metadata"].get("ownerReferences", ()):
        if owner.get("controller"):
            return owner
    return None


def controller_uid(obj: Object) -> str:
    """Return the uid of the controller of an object, or ""."""
    owner = controller_of(obj)
    return owner["uid"] if owner else ""


def owned_by(owner: Object) -> list[Object]:
    """Return ownerReferences that make `owner` the controller."""
    return [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


def is_ready(pod: Object) -> bool:
    """Tell whether a pod's Ready condition is true."""
    return ready_since(pod) is not None


def ready_since(pod: Object) -> float | None:
    """Return since when a pod is ready, or None."""
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "Ready":
            if condition["status"] != "True":
                return None
            return seconds(condition.get("lastTransitionTime") or pod["metadata"]["creationTimestamp"])
    return None


def is_finished(pod: Object) -> bool:
    """Tell whether a pod has run to its end."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def is_deleted(obj: Object) -> bool:
    """Tell whether the deletion of an object has begun."""
    return "deletionTimestamp" in obj["metadata"]


def condition(
    conditions: Iterable[Object], type_: str, status: str, reason: str, message: str, now: str
) -> list[Object]:
    """Return conditions with one set, last if it has changed; the time of transition moves only with its status."""
    out = list(conditions)
    new = {"type": type_, "status": status, "lastUpdateTime": now, "lastTransitionTime": now}
    new |= {"reason": reason, "message": message}
    old = next((each for each in out if each["type"] == type_), None)
    if old is not None:
        if (old["status"], old.get("reason")) == (status, reason) and old.get("message") == message:
            return out
        if old["status"] == status:
            new["lastTransitionTime"] = old.get("lastTransitionTime", now)
        out.remove(old)
    return [*out, new]
