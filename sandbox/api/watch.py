"""Turn the store's changes into the events of one watch, without any I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .messages import ApiError, Object, dumps
from .resources import Resource
from .selectors import fields_match, labels_match
from .store import Change, Entry, Store


class Watch:
    """The events that one client is to get, encoded as lines; `pending` fills as things change.

    `encode` writes an object otherwise than as it is: as a row of a table.
    """

    def __init__(
        self,
        store: Store,
        resource: Resource,
        namespace: str,
        name: str,
        query: dict[str, str],
        on_event: Callable[[], None] = lambda: None,
        encode: Callable[[Entry], bytes] | None = None,
    ) -> None:
        self._store = store
        self._resource = resource
        self._namespace = namespace
        self._name = name
        self._labels = labels_match(query["labelSelector"]) if query.get("labelSelector") else None
        self._fields = fields_match(query["fieldSelector"]) if query.get("fieldSelector") else None
        self.bookmarks = query.get("allowWatchBookmarks") in ("1", "true")
        self.pending: deque[bytes] = deque()
        self._on_event = on_event
        self._encode = encode
        self._after = 0
        self.expired = False
        self._begin(query)
        self._stop = store.listen(self._observe)

    def _begin(self, query: dict[str, str]) -> None:
        given = query.get("resourceVersion", "")
        initial = query.get("sendInitialEvents") == "true"
        if given in ("", "0") or initial:
            for entry in self._store.list(self._resource.plural, self._namespace or None):
                if self._matches(entry):
                    self._push("ADDED", entry)
            if initial and self.bookmarks:
                self.bookmark({"k8s.io/initial-events-end": "true"})
            return
        if not given.isdigit():
            message = f'invalid resource version: strconv.ParseUint: parsing "{given}": invalid syntax'
            raise ApiError(400, "BadRequest", message)
        missed = self._store.since(int(given), self._resource.plural)
        if missed is None:
            # Like the real server's watch cache: a stream that holds one error, not a refusal.
            message = f"too old resource version: {given} ({self._store.oldest})"
            status = ApiError(410, "Expired", message).status()
            self.pending.append(dumps({"type": "ERROR", "object": status}) + b"\n")
            self.expired = True
            return
        self._after = int(given)
        for change in missed:
            self._observe(change)

    def close(self) -> None:
        """Stop following the store."""
        self._stop()

    def bookmark(self, annotations: dict[str, str] | None = None) -> None:
        """Tell the client which version it has seen all of."""
        meta: Object = {"resourceVersion": str(self._store.version)}
        if annotations:
            meta["annotations"] = annotations
        kind = {"kind": self._resource.kind, "apiVersion": self._resource.api_version, "metadata": meta}
        self.pending.append(dumps({"type": "BOOKMARK", "object": kind}) + b"\n")
        self._on_event()

    def _matches(self, entry: Entry) -> bool:
        meta = entry.obj["metadata"]
        if self._namespace and meta.get("namespace") != self._namespace:
            return False
        if self._name and meta["name"] != self._name:
            return False
        if self._labels and not self._labels(meta.get("labels") or {}):
            return False
        return not self._fields or self._fields(entry.obj)

    def _observe(self, change: Change) -> None:
        stale = change.entry.version <= self._after
        if change.resource != self._resource.plural or stale or self.expired:
            return
        now = change.type != "DELETED" and self._matches(change.entry)
        before = change.old is not None and self._matches(change.old)
        if now:
            self._push("MODIFIED" if before else "ADDED", change.entry)
        elif before:
            self._push("DELETED", change.entry)

    def _push(self, type_: str, entry: Entry) -> None:
        body = self._encode(entry) if self._encode else entry.json
        self.pending.append(b'{"type":"' + type_.encode() + b'","object":' + body + b"}\n")
        self._on_event()
