"""Establish CustomResourceDefinitions, and clear away the objects of those that are deleted."""

from __future__ import annotations

from sandbox.api.definitions import CLEANUP, DEFINITIONS
from sandbox.api.messages import Object
from sandbox.api.store import Change

from .base import Controller, Key, condition, is_deleted

_ESTABLISHED = (
    ("NamesAccepted", "NoConflicts", "no conflicts found"),
    ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
)


class DefinitionController(Controller):
    """Do what the API server's own controllers do for definitions."""

    watches = (DEFINITIONS,)

    def observe(self, change: Change) -> None:
        if change.type != "DELETED":
            self.enqueue(("", change.entry.obj["metadata"]["name"]))

    def sync(self, key: Key) -> None:
        definition = self.cluster.get(DEFINITIONS, *key)
        if definition is None:
            return
        if is_deleted(definition):
            self._clear(definition)
            return
        meta = definition["metadata"]
        if CLEANUP not in meta.get("finalizers", ()):
            meta = {**meta, "finalizers": [*meta.get("finalizers", ()), CLEANUP]}
            definition = self.cluster.write(DEFINITIONS, definition, metadata=meta)
        conditions = definition["status"].get("conditions", [])
        for type_, reason, message in _ESTABLISHED:
            conditions = condition(conditions, type_, "True", reason, message, self.cluster.now)
        # The conditions of a definition have no lastUpdateTime.
        conditions = [{name: v for name, v in each.items() if name != "lastUpdateTime"} for each in conditions]
        status = {**definition["status"], "conditions": conditions, "acceptedNames": definition["spec"]["names"]}
        self.cluster.write(DEFINITIONS, definition, "status", status=status)

    def _clear(self, definition: Object) -> None:
        plural = definition["spec"]["names"]["plural"]
        for obj in self.cluster.list(plural):
            self.cluster.delete(plural, obj, propagationPolicy="Background")
        meta = definition["metadata"]
        if CLEANUP not in meta.get("finalizers", ()) or self.cluster.list(plural):
            self.later(("", meta["name"]), self.cluster.clock.now() + 1)  # a finalizer of somebody else holds one
            return
        left = [each for each in meta["finalizers"] if each != CLEANUP]
        meta = {name: value for name, value in meta.items() if name != "finalizers"} | (
            {"finalizers": left} if left else {}
        )
        self.cluster.write(DEFINITIONS, definition, metadata=meta)
