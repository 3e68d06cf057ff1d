"""Delete what has lost its owner, and see foreground and orphan deletions through."""

from __future__ import annotations

from sandbox.api.deletes import FOREGROUND, ORPHAN
from sandbox.api.messages import Object
from sandbox.api.resources import RESOURCES
from sandbox.api.store import Change

from .base import Cluster, Controller, Key


class GarbageCollector(Controller):
    """Follow ownerReferences; its keys are (resource, "namespace/name")."""

    watches = tuple(r.plural for r in RESOURCES)
    watches_all = True

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self._waiting: dict[str, Key] = {}

    def observe(self, change: Change) -> None:
        meta = change.entry.obj["metadata"]
        if change.type == "DELETED":
            self._waiting.pop(meta["uid"], None)
            self.enqueue(*(_key(*member) for member in self.cluster.store.owned_keys(meta["uid"])))
            # An owner that waits for its dependents may now have none left.
            for owner in meta.get("ownerReferences", ()):
                if owner["uid"] in self._waiting:
                    self.enqueue(self._waiting[owner["uid"]])
            return
        key = _key(change.resource, meta.get("namespace", ""), meta["name"])
        if change.type == "ADDED" and meta.get("ownerReferences"):
            self.enqueue(key)
        if "deletionTimestamp" in meta and meta.get("finalizers"):
            self._waiting[meta["uid"]] = key
            self.enqueue(key)

    def sync(self, key: Key) -> None:
        resource, path = key
        namespace, _, name = path.partition("/")
        obj = self.cluster.get(resource, namespace, name)
        if obj is None:
            return
        finalizers = obj["metadata"].get("finalizers", ())
        if "deletionTimestamp" in obj["metadata"]:
            if ORPHAN in finalizers:
                self._orphan(resource, obj)
            elif FOREGROUND in finalizers:
                self._delete_dependents(resource, obj)
            return
        owners = obj["metadata"].get("ownerReferences", ())
        if owners and not any(self._alive(owner, namespace) for owner in owners):
            self.cluster.delete(resource, obj, propagationPolicy="Background")

    def _alive(self, owner: Object, namespace: str) -> bool:
        resource = self.cluster.api.registry.by_kind(owner["apiVersion"], owner["kind"])
        if resource is None:
            return True  # a kind that is not served here: nobody can say that it is gone
        found = self.cluster.get(resource.plural, namespace if resource.namespaced else "", owner["name"])
        return found is not None and found["metadata"]["uid"] == owner["uid"]

    def _orphan(self, resource: str, obj: Object) -> None:
        uid = obj["metadata"]["uid"]
        for kind, namespace, name in self.cluster.store.owned_keys(uid):
            dependent = self.cluster.get(kind, namespace, name)
            if dependent is None:
                continue
            meta = dict(dependent["metadata"])
            meta["ownerReferences"] = [o for o in meta["ownerReferences"] if o["uid"] != uid]
            if not meta["ownerReferences"]:
                del meta["ownerReferences"]
            self.cluster.write(kind, dependent, metadata=meta)
        self._release(resource, obj, ORPHAN)

    def _delete_dependents(self, resource: str, obj: Object) -> None:
        uid = obj["metadata"]["uid"]
        blocking = False
        for kind, namespace, name in self.cluster.store.owned_keys(uid):
            dependent = self.cluster.get(kind, namespace, name)
            if dependent is None:
                continue
            if "deletionTimestamp" not in dependent["metadata"]:
                # The chain is waited for to its end: a Deployment's ReplicaSet waits for its pods.
                self.cluster.delete(kind, dependent, propagationPolicy="Foreground")
            left = self.cluster.get(kind, namespace, name)
            owners = left["metadata"].get("ownerReferences", ()) if left else ()
            blocking |= any(o["uid"] == uid and o.get("blockOwnerDeletion") for o in owners)
        if not blocking:
            self._release(resource, obj, FOREGROUND)

    def _release(self, resource: str, obj: Object, finalizer: str) -> None:
        meta = dict(obj["metadata"])
        meta["finalizers"] = [f for f in meta.get("finalizers", ()) if f != finalizer]
        if not meta["finalizers"]:
            del meta["finalizers"]
        self.cluster.write(resource, obj, metadata=meta)


def _key(resource: str, namespace: str, name: str) -> Key:
    return resource, f"{namespace}/{name}"
