"""Read what a URL path asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

from .resources import BY_PATH, Resource

ByPath = Mapping[tuple[str, str, str], Resource]


@dataclass(frozen=True, slots=True)
class Route:
    """The target of a request: a collection (no name), an object, or a subresource of one."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    rest: str = ""


def parse(path: str, installed: ByPath | None = None) -> Route | None:
    """Return the route of a path, or None where it is not a resource's; `installed` ones go before built-in ones."""
    return (_parse(path, installed) if installed else None) or _built_in(path)


@lru_cache(maxsize=4096)
def _built_in(path: str) -> Route | None:
    return _parse(path, BY_PATH)


def _parse(path: str, resources: ByPath) -> Route | None:
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
    resource = resources.get((group, version, parts[0]))
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
