"""Read what a URL path asks for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

from .resources import BY_PATH, Resource


@dataclass(frozen=True, slots=True)
class Route:
    """The target of a request: a collection (no name), an object, or a subresource of one."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    rest: str = ""


@lru_cache(maxsize=4096)
def parse(path: str) -> Route | None:
    """Return the route of a path, or None where it is not a resource's."""
    parts = [part for part in path.split("/") if part]
    if len(parts) >= 3 and parts[0] == "api":
        group, version, parts = "", parts[1], parts[2:]
    elif len(parts) >= 4 and parts[0] == "apis":
        group, version, parts = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    if parts[0] == "namespaces" and len(parts) >= 3 and parts[2] not in ("status", "finalize"):
        namespace, parts = unquote(parts[1]), parts[2:]
    resource = BY_PATH.get((group, version, parts[0]))
    if resource is None or (namespace and not resource.namespaced):
        return None
    name = unquote(parts[1]) if len(parts) > 1 else ""
    subresource = parts[2] if len(parts) > 2 else ""
    if subresource and subresource not in resource.subresources:
        return None
    if subresource != "proxy" and len(parts) > 3:
        return None
    rest = path.partition(f"/pods/{parts[1]}/proxy")[2] if subresource == "proxy" else ""
    return Route(resource, namespace, name, subresource, rest)
