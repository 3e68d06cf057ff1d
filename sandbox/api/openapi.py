"""Describe the API in OpenAPI, as far as kubectl asks: which write takes fieldValidation, and the types."""

from __future__ import annotations

from functools import lru_cache

from .kinds import schema_of
from .messages import Object
from .resources import Resource, group_versions
from .schema import Schema

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


_TYPES: dict[str, Object] = {
    "string": {"type": "string"},
    "boolean": {"type": "boolean"},
    "number": {"type": "number"},
    "time": {"type": "string", "format": "date-time"},
    "microtime": {"type": "string", "format": "date-time"},
    "quantity": {"type": "string"},
    "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
}


def _described(schema: Schema, named: dict[str, Object]) -> Object:
    """Describe a type; those that have a name are added to `named`, and referred to."""
    if schema.type == "integer":
        return {"type": "integer", "format": schema.go or "int64"}
    if schema.type == "map":
        return {"type": "object", "additionalProperties": _described(schema.item, named)}
    if schema.type == "list":
        return {"type": "array", "items": _described(schema.item, named), **_merging(schema)}
    if schema.type != "object":
        return _TYPES[schema.type]
    if not schema.go:
        return {"type": "object", "properties": {n: _described(f, named) for n, f in schema.fields.items()}}
    if schema.go not in named:
        named[schema.go] = body = {"type": "object"}
        body["properties"] = {n: _described(field, named) for n, field in schema.fields.items()}
    return {"$ref": f"#/components/schemas/{schema.go}"}


def _merging(schema: Schema) -> Object:
    if schema.keys:
        return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(schema.keys)}
    return {"x-kubernetes-list-type": "set" if schema.is_set else "atomic"}


def _schemas(resources: list[Resource]) -> dict[str, Object]:
    """Return the types of an API group's resources, and all that they are made of."""
    named: dict[str, Object] = {}
    for resource in resources:
        kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
        if resource.definition is not None:
            named[resource.kind] = dict(resource.definition.openapi)
        elif resource.kind not in named:
            _described(schema_of(resource), named)
        named[resource.kind]["x-kubernetes-group-version-kind"] = [kind]
    return named


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
            return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": _schemas(served)}}
    return None
