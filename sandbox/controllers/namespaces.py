"""Empty a namespace that is being deleted, then let it go."""

from __future__ import annotations

from sandbox.api.resources import RESOURCES
from sandbox.api.store import Change

from .base import Controller, Key, is_deleted

_NAMESPACED = tuple(r.plural for r in RESOURCES if r.namespaced)


class NamespaceController(Controller):
    """Delete all content of terminating namespaces."""

    watches = ("namespaces", *_NAMESPACED)
    watches_all = True

    def observe(self, change: Change) -> None:
        meta = change.entry.obj["metadata"]
        if change.resource == "namespaces":
            if "deletionTimestamp" in meta:
                self.enqueue(("", meta["name"]))
        elif change.type == "DELETED" and "namespace" in meta:
            self.enqueue(("", meta["namespace"]))

    def sync(self, key: Key) -> None:
        name = key[1]
        namespace = self.cluster.get("namespaces", "", name)
        if namespace is None or not is_deleted(namespace):
            return
        left = False
        for resource in [each.plural for each in self.cluster.api.registry.resources if each.namespaced]:
            for obj in self.cluster.list(resource, name):
                if not is_deleted(obj):
                    self.cluster.delete(resource, obj, propagationPolicy="Background")
                left |= self.cluster.get(resource, name, obj["metadata"]["name"]) is not None
        if not left:
            self.cluster.store.remove("namespaces", "", name)
