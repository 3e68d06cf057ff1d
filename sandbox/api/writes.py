"""Create, update, patch and apply objects: every rule between a decoded request and the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sandbox.clock import Clock

from . import apply, defaults, definitions, fieldsets, immutable, ownership, strategy, validation
from .decode import Decoder
from .kinds import NAMESPACES, Options, schema_of, unreadable, waits_for_its_end
from .messages import (
    STALE,
    ApiError,
    Cause,
    DecodeError,
    Object,
    already_exists,
    bad_request,
    conflict,
    dumps,
    forbidden,
    invalid,
    invalid_of,
    not_found,
)
from .ownership import Manager, Ownership
from .patch import JSON_PATCH, MERGE, json_patch, merge_patch, strategic_patch
from .resources import Resource
from .store import Entry, Store
from .times import stamp

_REPLICAS = ("f:spec", "f:replicas")
# (plural, object) → nothing, or ApiError for one that is not let in: what a validating webhook does.
Admission = Callable[[str, Object], None]


class Writer:
    """Apply writes to a store by the API server's rules."""

    def __init__(self, store: Store, clock: Clock, names: strategy.Names) -> None:
        self._store = store
        self._clock = clock
        self._names = names
        self.admit: Admission = lambda plural, obj: None

    def now(self) -> str:
        """Return the time as objects carry it."""
        return stamp(self._clock.now())

    # Decoding

    def decode(self, resource: Resource, obj: Any, options: Options) -> Object:
        """Return a body as an object of its kind, with defaults; refuse what does not fit."""
        try:
            return self._decode(resource, obj, options)
        except DecodeError as error:
            raise unreadable(resource, str(error)) from None

    def _decode(self, resource: Resource, obj: Any, options: Options) -> Object:
        if not isinstance(obj, dict):
            raise bad_request("the body of the request is not a JSON object")
        for name, expected in (("kind", resource.kind), ("apiVersion", resource.api_version)):
            given = obj.get(name)
            if given not in (None, "", expected):
                what = f"{obj.get('kind')} in version {given}" if name == "apiVersion" else given
                raise bad_request(
                    f"the object provided is unrecognized: got {what}, expected {resource.kind} "
                    f"in version {resource.api_version}"
                )
        decoder = Decoder(resource.custom)
        out = decoder.decode(schema_of(resource), obj)
        if decoder.unknown:
            unknown = [f'unknown field "{path}"' for path in decoder.unknown]
            if options.strict:
                raise unreadable(resource, "strict decoding error: " + ", ".join(unknown))
            options.warnings += unknown
        out = {"kind": resource.kind, "apiVersion": resource.api_version, **out}
        out["kind"], out["apiVersion"] = resource.kind, resource.api_version
        out.setdefault("metadata", {})
        if decoder.causes:
            raise invalid(resource, out["metadata"].get("name", ""), decoder.causes)
        defaults.fill(resource.plural, out)
        return out

    # Creating

    def create(self, resource: Resource, namespace: str, body: Any, options: Options) -> Entry:
        """Create an object from a body."""
        if isinstance(body, dict) and resource.custom:
            body = {key: value for key, value in body.items() if key != "status"}
        obj = self.decode(resource, body, options)
        self._place(resource, obj, namespace)
        manager = Manager(options.manager, "Update", resource.api_version)

        def own(new: Object) -> Ownership:
            return ownership.after_update(schema_of(resource), ownership.blank(resource), new, {}, manager, self.now())

        return self._create(resource, obj, options, own)

    def _create(self, resource: Resource, obj: Object, options: Options, own: Callable[[Object], Ownership]) -> Entry:
        meta = obj["metadata"]
        namespace = meta.get("namespace", "")
        self._check_namespace(resource, namespace, meta.get("name", ""))
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"] + self._names.suffix()
        strategy.drop_status(resource, obj)
        owned = own(obj)
        name = meta.get("name", "")
        if name and self._store.get(resource.plural, namespace, name):
            raise already_exists(resource, name)
        strategy.prepare_create(resource, obj, self._names, self.now())
        causes = validation.check(resource, obj) + _defined(resource, obj, None)
        if causes:
            raise invalid(resource, name, causes)
        self.admit(resource.plural, obj)
        owners = ownership.write(obj, owned)
        return Entry(obj, 0) if options.dry_run else self._store.put(resource.plural, obj, owners)

    def _place(self, resource: Resource, obj: Object, namespace: str, name: str = "") -> None:
        meta = obj["metadata"]
        if resource.namespaced:
            if meta.setdefault("namespace", namespace) != namespace:
                raise bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request"
                )
        else:
            meta.pop("namespace", None)
        if name and meta.setdefault("name", name) != name:
            raise bad_request(f"the name of the object ({meta['name']}) does not match the name on the URL ({name})")

    def _check_namespace(self, resource: Resource, namespace: str, name: str) -> None:
        if not resource.namespaced:
            return
        entry = self._store.get("namespaces", "", namespace)
        if entry is None:
            raise not_found(NAMESPACES, namespace)
        if "deletionTimestamp" in entry.obj["metadata"]:
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            raise forbidden(resource, name, why)

    # Updating

    def update(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: Any,
        options: Options,
        subresource: str = "",
    ) -> tuple[Entry, bool]:
        """Replace an object by a body (PUT); return it and whether it was created."""
        obj = self.decode(resource, body, options)
        self._place(resource, obj, namespace, name)
        old = self._store.get(resource.plural, namespace, name)
        version = obj["metadata"].get("resourceVersion", "")
        if old is None:
            if not resource.upsert or version or subresource:
                raise not_found(resource, name)
            return self.create(resource, namespace, body, options), True
        if not version and not resource.unconditional:
            cause = Cause("metadata.resourceVersion", "Invalid value: 0: must be specified for an update")
            raise invalid(resource, name, [cause])
        return self.replace(resource, old, obj, options, subresource), False

    def replace(self, resource: Resource, old: Entry, obj: Object, options: Options, subresource: str = "") -> Entry:
        """Put a decoded object in the place of `old`, owned by whoever updates it."""
        manager = Manager(options.manager, "Update", resource.api_version, subresource)

        def own(new: Object) -> Ownership:
            held = old.owners
            if subresource == "scale" and not ownership.is_owned(held, _REPLICAS):
                # A Scale with no managed field has no owners to keep track of, so none is made.
                return held
            owned = ownership.after_update(schema_of(resource), old.obj, new, held, manager, self.now())
            if subresource == "scale" and not new["spec"]["replicas"]:
                # A Scale leaves a zero out, so nobody owns the replicas of what was scaled to none.
                owned = ownership.disown(owned, _REPLICAS)
            return owned

        return self._replace(resource, old, obj, options, subresource, own)

    def _replace(
        self,
        resource: Resource,
        old: Entry,
        obj: Object,
        options: Options,
        subresource: str,
        own: Callable[[Object], Ownership],
    ) -> Entry:
        name = old.obj["metadata"]["name"]
        self._check_identity(resource, old, obj, name)
        new = strategy.prepare_update(resource, old.obj, obj, subresource)
        causes = _defined(resource, new, old.obj)
        if not subresource:
            causes += validation.check(resource, new) + immutable.check_change(resource, old.obj, new)
        if causes:
            raise invalid(resource, name, causes)
        owners = ownership.write(new, own(new))
        if new == old.obj:
            return old
        if resource.generation and subresource != "status" and strategy.spec_changed(old.obj, new):
            new["metadata"]["generation"] = old.obj["metadata"].get("generation", 0) + 1
        if options.dry_run:
            return Entry(new, old.version)
        meta = new["metadata"]
        if "deletionTimestamp" in meta and not meta.get("finalizers") and not waits_for_its_end(resource, meta):
            return self._store.remove(resource.plural, meta.get("namespace", ""), name)
        return self._store.put(resource.plural, new, owners)

    @staticmethod
    def _check_identity(resource: Resource, old: Entry, obj: Object, name: str) -> None:
        given, current = obj["metadata"], old.obj["metadata"]
        if given.get("resourceVersion") and given["resourceVersion"] != current["resourceVersion"]:
            raise conflict(resource, name, STALE)
        if given.get("uid") and given["uid"] != current["uid"]:
            why = f"Precondition failed: UID in precondition: {given['uid']}, UID in object meta: {current['uid']}"
            raise conflict(resource, name, why)

    # Patching

    def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch: Any,
        kind: str,
        options: Options,
        subresource: str = "",
    ) -> Entry:
        """Change an object by a merge, JSON or strategic merge patch."""
        old = self._store.get(resource.plural, namespace, name)
        if old is None:
            raise not_found(resource, name)
        if kind == JSON_PATCH:
            patched = json_patch(old.obj, patch)
        elif not isinstance(patch, dict):
            raise bad_request("error decoding patch: the patch is not a JSON object")
        elif kind == MERGE:
            patched = merge_patch(old.obj, patch)
        else:
            patched = strategic_patch(schema_of(resource), old.obj, patch)
        obj = self._decode_patched(resource, patched, options)
        self._place(resource, obj, namespace, name)
        return self.replace(resource, old, obj, options, subresource)

    def _decode_patched(self, resource: Resource, patched: Any, options: Options) -> Object:
        try:
            return self._decode(resource, patched, options)
        except DecodeError as error:
            text = f"Invalid value: {validation.shown(dumps(patched).decode())}: {error}"
            raise invalid_of(' ""', {}, [Cause("patch", text)]) from None

    def apply(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        applied: Any,
        options: Options,
        subresource: str = "",
    ) -> tuple[Entry, bool]:
        """Apply a configuration server-side; return the object and whether it was created."""
        applied = self._applied(resource, namespace, name, applied)
        if resource.has_status and not subresource:
            applied.pop("status", None)
        schema = schema_of(resource)
        manager = Manager(options.manager, "Apply", resource.api_version, subresource)
        fields = fieldsets.fields_set(schema, applied)
        old = self._store.get(resource.plural, namespace, name)
        if old is None:
            if subresource or applied["metadata"].get("uid"):
                raise not_found(resource, name)
            obj = self.decode(resource, applied, options)
            owned: Ownership = {manager: ownership.Owned(fields, self.now())}
            return self._create(resource, obj, options, lambda _: owned), True
        held = old.owners
        merged = apply.merge(schema, old.obj, applied)
        mine = held.get(manager)
        others = [owned.fields for other, owned in held.items() if other != manager]
        if mine is not None:
            kept = fieldsets.NOTHING.union(fields, *others)
            merged = apply.prune(schema, merged, mine.fields - fields, kept)
        change = fieldsets.difference(schema, old.obj, merged)
        taken = ownership.conflicts(change, held, manager)
        if taken and not options.force:
            raise ownership.conflict_error(taken)
        obj = self.decode(resource, merged, options)
        return self._replace(
            resource,
            old,
            obj,
            options,
            subresource,
            lambda _: ownership.after_apply(change, held, manager, fields, self.now()),
        ), False

    def _applied(self, resource: Resource, namespace: str, name: str, applied: Any) -> Object:
        if not isinstance(applied, dict):
            raise bad_request("error decoding YAML: the applied configuration is not an object")
        if applied.get("metadata", {}).get("managedFields"):
            raise bad_request("metadata.managedFields must be nil")
        # Defaults are not the applier's: what it owns is what it wrote, checked and cleaned only.
        decoder = Decoder(custom=False)
        try:
            out = decoder.decode(schema_of(resource), applied)
        except DecodeError as error:
            raise unreadable(resource, str(error)) from None
        if decoder.unknown:
            where = f"{namespace}/{name}; {resource.api_version}, Kind={resource.kind}"
            path = decoder.unknown[0]
            text = f"failed to create typed patch object ({where}): .{path}: field not declared in schema"
            raise ApiError(500, "", text)
        out.setdefault("metadata", {})
        self._place(resource, out, namespace, name)
        return out


def _defined(resource: Resource, obj: Object, old: Object | None) -> list[Cause]:
    """Return what is wrong with an object by its definition, or with a definition itself."""
    if resource.definition is not None:
        return resource.definition.check(obj, old)
    return definitions.check(obj) if resource.plural == definitions.DEFINITIONS else []
