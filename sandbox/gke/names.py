"""Read what a request names, from a resource path or from the legacy fields beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from google.api_core import exceptions

_PATH = re.compile(
    r"^projects/(?P<project>[^/]+)/(?:locations|zones)/(?P<location>[^/]+)"
    r"(?:/clusters/(?P<cluster>[^/]+)(?:/nodePools/(?P<pool>[^/]+))?|/operations/(?P<operation>[^/]+))?$"
)


@dataclass(frozen=True)
class Target:
    """Project, location, and whichever of cluster, pool and operation the request names ("" if not)."""

    project: str
    location: str
    cluster: str = ""
    pool: str = ""
    operation: str = ""


def target_of(request: Any) -> Target:
    """Return what `request` is about: `name` or `parent` if given, else project_id, zone, cluster_id, …"""
    path = getattr(request, "name", "") or getattr(request, "parent", "")
    if path:
        match = _PATH.match(path)
        if match is None:
            raise exceptions.InvalidArgument(f'Resource name "{path}" is invalid.')
        return Target(**{field: value or "" for field, value in match.groupdict().items()})
    target = Target(
        project=getattr(request, "project_id", ""),
        location=getattr(request, "zone", ""),
        cluster=getattr(request, "cluster_id", ""),
        pool=getattr(request, "node_pool_id", ""),
        operation=getattr(request, "operation_id", ""),
    )
    if not target.project or not target.location:
        raise exceptions.InvalidArgument("The request names no resource. Set name or parent, or project_id and zone.")
    return target
