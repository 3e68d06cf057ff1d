"""Give every namespace its `default` service account, whose token pods get that name no other."""

from __future__ import annotations

from sandbox.api.store import Change

from .base import Controller, Key, is_deleted

DEFAULT = "default"


class ServiceAccountController(Controller):
    """Create the default service account, and again if it is deleted."""

    watches = ("namespaces", "serviceaccounts")

    def observe(self, change: Change) -> None:
        meta = change.entry.obj["metadata"]
        if change.resource == "namespaces":
            self.enqueue(("", meta["name"]))
        elif change.type == "DELETED" and meta["name"] == DEFAULT:
            self.enqueue(("", meta["namespace"]))

    def sync(self, key: Key) -> None:
        name = key[1]
        namespace = self.cluster.get("namespaces", "", name)
        if namespace is None or is_deleted(namespace) or self.cluster.get("serviceaccounts", name, DEFAULT):
            return
        self.cluster.create("serviceaccounts", {"metadata": {"name": DEFAULT, "namespace": name}})
