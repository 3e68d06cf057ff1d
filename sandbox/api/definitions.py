"""Serve what CustomResourceDefinitions define: a resource each, with its schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import structural, values
from .messages import Cause, Object
from .resources import BY_PATH, BY_PLURAL, RESOURCES, Resource
from .rules import Rules
from .schema import Schema
from .store import Change, Store

DEFINITIONS = "customresourcedefinitions"
CLEANUP = "customresourcecleanup.apiextensions.k8s.io"
_BY_KIND = {(r.api_version, r.kind): r for r in RESOURCES}
_SCALE = {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}


@dataclass(frozen=True, eq=False)
class Definition:
    """The version of a CustomResourceDefinition that is served: the one that objects are stored in."""

    schema: Schema
    openapi: Object
    rules: Rules
    columns: tuple[Object, ...]

    def check(self, obj: Object, old: Object | None) -> list[Cause]:
        """Return what is wrong with an object, or with its change."""
        return values.check(self.openapi, self.rules, obj, old)


def stored_version(definition: Object) -> Object:
    """Return the version of a CustomResourceDefinition that is marked as the storage version."""
    return next(version for version in definition["spec"]["versions"] if version.get("storage"))


def resource_of(definition: Object) -> Resource:
    """Return the resource that a CustomResourceDefinition defines."""
    spec, version = definition["spec"], stored_version(definition)
    names, openapi = spec["names"], version["schema"]["openAPIV3Schema"]
    subresources = version.get("subresources") or {}
    scale = subresources.get("scale") or {}
    scales = all(scale.get(name) == path for name, path in _SCALE.items())
    return Resource(
        names["plural"],
        names["kind"],
        spec["group"],
        version["name"],
        namespaced=spec["scope"] == "Namespaced",
        short=tuple(names.get("shortNames", ())),
        subresources=(("status",) if "status" in subresources else ()) + (("scale",) if scales else ()),
        generation=True,
        unconditional=False,
        categories=tuple(names.get("categories", ())),
        definition=Definition(
            structural.root(names["kind"], openapi),
            openapi,
            Rules(openapi),
            tuple(version.get("additionalPrinterColumns", ())),
        ),
    )


def check(definition: Object) -> list[Cause]:
    """Return what keeps a CustomResourceDefinition from being served."""
    spec: dict[str, Any] = definition["spec"]
    names = spec.get("names", {})
    expected = f"{names.get('plural')}.{spec.get('group')}"
    causes = []
    if definition["metadata"].get("name") != expected:
        text = f'Invalid value: "{definition["metadata"].get("name")}": must be spec.names.plural+"."+spec.group'
        causes.append(Cause("metadata.name", text))
    if sum(bool(version.get("storage")) for version in spec.get("versions", ())) != 1:
        text = "Invalid value: must have exactly one version marked as storage version"
        causes.append(Cause("spec.versions", text))
    known = BY_PLURAL.get(names.get("plural", ""))
    if known is not None and (known.group != spec.get("group") or not known.custom):
        # Here a plural names one resource, whatever its group.
        text = f'Forbidden: "{known.plural}" is served already as {known.group_resource}'
        causes.append(Cause("spec.names.plural", text, "FieldValueForbidden"))
    return causes


class Registry:
    """The resources of one API server: the built-in ones, and those that definitions in its store add or replace."""

    def __init__(self, store: Store) -> None:
        self.installed: dict[tuple[str, str, str], Resource] = {}
        self._paths: dict[str, tuple[str, str, str]] = {}
        self._versions: dict[str, int] = {}
        store.listen(self._observe)

    @property
    def resources(self) -> tuple[Resource, ...]:
        """All resources that are served now."""
        if not self.installed:
            return RESOURCES
        return tuple({**BY_PATH, **self.installed}.values())

    def by_plural(self, plural: str) -> Resource:
        """Return a resource by its plural name; KeyError where none is served."""
        path = self._paths.get(plural)
        return self.installed[path] if path else BY_PLURAL[plural]

    def by_kind(self, api_version: str, kind: str) -> Resource | None:
        """Return a resource by its kind; None where it is not served."""
        found = (r for r in self.installed.values() if (r.api_version, r.kind) == (api_version, kind))
        return next(found, None) or _BY_KIND.get((api_version, kind))

    def _observe(self, change: Change) -> None:
        if change.resource != DEFINITIONS:
            return
        obj = change.entry.obj
        plural, generation = obj["spec"]["names"]["plural"], obj["metadata"]["generation"]
        if change.type != "DELETED" and self._versions.get(plural) == generation and plural in self._paths:
            return  # only its status or metadata has changed
        if path := self._paths.pop(plural, None):
            del self.installed[path]
        if change.type != "DELETED":
            resource = resource_of(obj)
            path = resource.group, resource.version, resource.plural
            self._paths[plural], self.installed[path] = path, resource
            self._versions[plural] = generation
