"""Keep the objects, their versions and the history that watches resume from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from . import ownership
from .messages import Object, dumps
from .ownership import Ownership

HISTORY = 8192
Key = tuple[str, str]


class Entry:
    """One version of one object; never changed once stored, so what is made of it is kept."""

    __slots__ = ("_item", "_json", "_owners", "obj", "version")

    def __init__(self, obj: Object, version: int, owners: Ownership | None = None) -> None:
        self.obj = obj
        self.version = version
        self._json: bytes | None = None
        self._item: bytes | None = None
        self._owners = owners

    @property
    def owners(self) -> Ownership:
        """Who owns which field, as managedFields say."""
        if self._owners is None:
            self._owners = ownership.read(self.obj)
        return self._owners

    @property
    def json(self) -> bytes:
        """The whole object, encoded."""
        if self._json is None:
            self._json = dumps(self.obj)
        return self._json

    @property
    def item(self) -> bytes:
        """The object without kind and apiVersion, as items of a built-in list are."""
        if self._item is None:
            self._item = dumps({k: v for k, v in self.obj.items() if k not in ("kind", "apiVersion")})
        return self._item


class Change(NamedTuple):
    """One change: what happened, to which resource, the new version and the one before."""

    type: str
    resource: str
    entry: Entry
    old: Entry | None


Listener = Callable[[Change], None]


class Store:
    """Objects by resource and key, with one counter of versions for all."""

    def __init__(self) -> None:
        self.version = 1
        self._objects: dict[str, dict[Key, Entry]] = {}
        self._namespaces: dict[tuple[str, str], dict[str, Entry]] = {}
        self._history: deque[Change] = deque(maxlen=HISTORY)
        self._owned: dict[str, set[tuple[str, str, str]]] = {}
        self._listeners: list[Listener] = []

    def get(self, resource: str, namespace: str, name: str) -> Entry | None:
        """Return the current version of an object, or None."""
        return self._objects.get(resource, {}).get((namespace, name))

    def list(self, resource: str, namespace: str | None = None) -> Iterator[Entry]:
        """Yield the objects of a resource, in order of namespace and name."""
        if namespace:
            named = self._namespaces.get((resource, namespace), {})
            return iter([named[name] for name in sorted(named)])
        objects = self._objects.get(resource, {})
        return iter([objects[key] for key in sorted(objects)])

    def owned_by(self, uid: str, resource: str | None = None) -> list[Entry]:
        """Return the objects that name `uid` among their owners."""
        found = []
        for kind, namespace, name in sorted(self._owned.get(uid, ())):
            entry = self.get(kind, namespace, name) if resource in (None, kind) else None
            if entry is not None:
                found.append(entry)
        return found

    def owned_keys(self, uid: str) -> list[tuple[str, str, str]]:
        """Return (resource, namespace, name) of the objects that name `uid` among their owners."""
        return sorted(self._owned.get(uid, ()))

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each change; return what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def put(self, resource: str, obj: Object, owners: Ownership | None = None) -> Entry:
        """Store a new version of `obj` and give it the next resourceVersion; `owners` are as its managedFields say."""
        entry = self._stamp(obj, owners)
        meta = obj["metadata"]
        key = (meta.get("namespace", ""), meta["name"])
        objects = self._objects.setdefault(resource, {})
        old = objects.get(key)
        objects[key] = entry
        if key[0]:
            self._namespaces.setdefault((resource, key[0]), {})[key[1]] = entry
        self._own(resource, key, old, entry)
        self._record(Change("MODIFIED" if old else "ADDED", resource, entry, old))
        return entry

    def remove(self, resource: str, namespace: str, name: str) -> Entry:
        """Remove an object; its last version gets a resourceVersion of its own."""
        old = self._objects[resource].pop((namespace, name))
        if namespace:
            del self._namespaces[resource, namespace][name]
        entry = self._stamp({**old.obj, "metadata": dict(old.obj["metadata"])})
        self._own(resource, (namespace, name), old, None)
        self._record(Change("DELETED", resource, entry, old))
        return entry

    def since(self, version: int, resource: str) -> Iterator[Change] | None:
        """Return the changes of a resource after `version`; None where history is too short."""
        if len(self._history) == HISTORY and self._history[0].entry.version > version + 1:
            return None
        changes = [c for c in self._history if c.entry.version > version and c.resource == resource]
        return iter(changes)

    @property
    def oldest(self) -> int:
        """The oldest version that a watch can resume from."""
        return self._history[0].entry.version - 1 if self._history else self.version

    def _stamp(self, obj: Object, owners: Ownership | None = None) -> Entry:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        return Entry(obj, self.version, owners)

    def _own(self, resource: str, key: Key, old: Entry | None, new: Entry | None) -> None:
        before = _owners(old.obj) if old else ()
        after = _owners(new.obj) if new else ()
        if before == after:
            return
        member = (resource, *key)
        for uid in before:
            owned = self._owned.get(uid)
            if owned is not None:
                owned.discard(member)
                if not owned:
                    del self._owned[uid]
        for uid in after:
            self._owned.setdefault(uid, set()).add(member)

    def _record(self, change: Change) -> None:
        self._history.append(change)
        for listener in list(self._listeners):
            listener(change)


def _owners(obj: dict[str, Any]) -> tuple[str, ...]:
    return tuple(owner["uid"] for owner in obj["metadata"].get("ownerReferences", ()))
