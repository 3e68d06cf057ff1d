"""Hold what every write needs to know of a kind, and the parameters of a write."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import crds
from .messages import ApiError, Object, bad_request
from .resources import Resource
from .schema import Schema, builtin


@dataclass(slots=True)
class Options:
    """The parameters of a write: who, under which name, how strictly, and whether for real."""

    manager: str = "unknown"
    dry_run: bool = False
    force: bool = False
    strict: bool = False
    warnings: list[str] = field(default_factory=list)


def schema_of(resource: Resource) -> Schema:
    """Return the type of a resource's objects."""
    return custom_schema(resource) if resource.custom else builtin(resource.model)


def custom_schema(resource: Resource) -> Schema:
    """Return the type of a custom resource's objects."""
    return resource.definition.schema if resource.definition else crds.custom(resource.kind)


def waits_for_its_end(resource: Resource, meta: Object) -> bool:
    """Tell whether somebody still has to end the process behind a deleted object."""
    return resource.plural == "pods" and meta.get("deletionGracePeriodSeconds", 0) > 0


def unreadable(resource: Resource, why: str) -> ApiError:
    """Refuse a body that does not fit its kind."""
    return bad_request(f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: {why}')


NAMESPACES = Resource("namespaces", "Namespace", model="V1Namespace", namespaced=False)
