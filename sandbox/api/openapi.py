"""Describe the API in OpenAPI, as far as kubectl asks: which write takes fieldValidation, and types."""

from __future__ import annotations

from functools import lru_cache

from .messages import Object
from .resources import Resource, group_versions

_QUERY = ("dryRun", "fieldManager", "fieldValidation")


def _prefix(group: str, version: str) -> str:
    return f"apis/{group}/{version}" if group else f"api/{version}"


def _operation(resource: Resource, action: str, *parameters: str) -> Object:
    return {
        "operationId": f"{action}{resource.kind}",
        "parameters": [
            {"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": True}} for name in parameters
        ],
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {
            "group": resource.group,
            "version": resource.version,
            "kind": resource.kind,
        },
    }


def _paths(resource: Resource) -> Object:
    base = "/" + _prefix(resource.group, resource.version)
    if resource.namespaced:
        base += "/namespaces/{namespace}"
    collection = f"{base}/{resource.plural}"
    return {
        collection: {"post": _operation(resource, "post", *_QUERY)},
        f"{collection}/{{name}}": {
            "get": _operation(resource, "get"),
            "put": _operation(resource, "put", *_QUERY),
            "patch": _operation(resource, "patch", *_QUERY, "force"),
            "delete": _operation(resource, "delete", "dryRun"),
        },
    }


def _component(resource: Resource) -> tuple[str, Object]:
    kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    name = ".".join([*reversed(resource.group.split(".")), resource.version, resource.kind]).strip(".")
    schema = {
        "type": "object",
        "x-kubernetes-group-version-kind": [kind],
        "x-kubernetes-preserve-unknown-fields": True,
    }
    return name, schema


@lru_cache(maxsize=64)
def document(path: str, resources: tuple[Resource, ...]) -> Object | None:
    """Return the document served at a path under /openapi, or None."""
    info = {"title": "Kubernetes", "version": "v1.36.0-sandbox"}
    if path == "/openapi/v3":
        paths = {
            _prefix(group, version): {"serverRelativeURL": f"/openapi/v3/{_prefix(group, version)}"}
            for group, version in group_versions(resources)
        }
        return {"paths": paths}
    if path == "/openapi/v2":
        definitions = dict(_component(resource) for resource in resources)
        return {"swagger": "2.0", "info": info, "paths": {}, "definitions": definitions}
    for group, version in group_versions(resources):
        if path == f"/openapi/v3/{_prefix(group, version)}":
            served = [r for r in resources if (r.group, r.version) == (group, version)]
            paths = {route: item for resource in served for route, item in _paths(resource).items()}
            schemas = dict(_component(resource) for resource in served)
            return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}
    return None
