"""Call the API in the same process, without HTTP: for controllers' tests and virtual time."""

from __future__ import annotations

from typing import Any

from .core import Api
from .decode import deep_copy
from .kinds import Options
from .messages import Object, not_found
from .patch import APPLY, MERGE
from .resources import BY_PLURAL
from .subresources import scale_of, write_scale


class LocalClient:
    """A synchronous client of an Api; refusals raise ApiError, objects are the caller's own copies."""

    def __init__(self, api: Api, manager: str = "sandbox") -> None:
        self._api = api
        self._manager = manager

    def _options(self, force: bool = False) -> Options:
        return Options(self._manager, force=force)

    def list(
        self, resource: str, namespace: str | None = None, labels: str | dict[str, str] | None = None
    ) -> list[Object]:
        """Return the objects of a resource, in one namespace or in all; `labels` selects."""
        if isinstance(labels, dict):
            labels = ",".join(f"{key}={value}" for key, value in labels.items())
        query = {"labelSelector": labels} if labels else {}
        entries = self._api.select(BY_PLURAL[resource], namespace or "", query)
        return [deep_copy(entry.obj) for entry in entries]

    def get(self, resource: str, namespace: str | None, name: str) -> Object | None:
        """Return an object, or None where there is none."""
        entry = self._api.store.get(resource, namespace or "", name)
        return deep_copy(entry.obj) if entry else None

    def create(self, resource: str, obj: Object) -> Object:
        """Create an object in the namespace that its metadata names (default: "default")."""
        kind = BY_PLURAL[resource]
        namespace = obj["metadata"].get("namespace", "default") if kind.namespaced else ""
        return deep_copy(self._api.writer.create(kind, namespace, obj, self._options()).obj)

    def update(self, resource: str, obj: Object, subresource: str | None = None) -> Object:
        """Replace an object; by compare-and-swap if it carries a resourceVersion."""
        meta = obj["metadata"]
        entry, _ = self._api.writer.update(
            BY_PLURAL[resource],
            meta.get("namespace", ""),
            meta["name"],
            obj,
            self._options(),
            subresource or "",
        )
        return deep_copy(entry.obj)

    def patch(
        self,
        resource: str,
        namespace: str | None,
        name: str,
        body: Any,
        content_type: str = MERGE,
        subresource: str | None = None,
        force: bool = False,
    ) -> Object:
        """Patch an object by any of the patch types; a scale's patch returns the Scale."""
        kind = BY_PLURAL[resource]
        options = self._options(force)
        writer = self._api.writer
        if subresource == "scale":
            entry = self._api.store.get(resource, namespace or "", name)
            if entry is None:
                raise not_found(kind, name)
            return scale_of(write_scale(writer, kind, entry, body, content_type, options).obj)
        where = (kind, namespace or "", name)
        if content_type == APPLY:
            return deep_copy(writer.apply(*where, body, options, subresource or "")[0].obj)
        return deep_copy(writer.patch(*where, body, content_type, options, subresource or "").obj)

    def delete(
        self,
        resource: str,
        namespace: str | None,
        name: str,
        propagation: str | None = None,
        grace_period_s: int | None = None,
        preconditions: Object | None = None,
    ) -> bool:
        """Delete an object; tell whether it is gone already (a pod may first have to stop)."""
        options: Object = {}
        if propagation:
            options["propagationPolicy"] = propagation
        if grace_period_s is not None:
            options["gracePeriodSeconds"] = grace_period_s
        if preconditions:
            options["preconditions"] = preconditions
        return self._api.delete(BY_PLURAL[resource], namespace or "", name, options)[1]
