"""Read the OpenAPI schema of a CustomResourceDefinition as a type: what is pruned, defaulted, merged and owned."""

from __future__ import annotations

from .messages import Object
from .schema import ANY, STRING, Schema, builtin

_SCALARS = frozenset({"string", "integer", "number", "boolean"})


def typed(node: Object) -> Schema:
    """Return the type that a structural schema describes."""
    default = node.get("default")
    kind = node.get("type")
    if node.get("x-kubernetes-int-or-string") or kind not in {*_SCALARS, "array", "object"}:
        return Schema("any", default=default)
    if kind == "array":
        return _list(node)
    if kind == "object":
        return _object(node)
    return Schema(str(kind), default=default)


def root(kind: str, node: Object) -> Schema:
    """Return the type of whole objects: with the fields that every object has."""
    fields = {name: typed(each) for name, each in node.get("properties", {}).items()}
    fields |= {"apiVersion": STRING, "kind": STRING, "metadata": builtin("V1ObjectMeta")}
    return Schema("object", go=kind, fields=fields, open_=_keeps_unknown(node))


def _keeps_unknown(node: Object) -> bool:
    return bool(node.get("x-kubernetes-preserve-unknown-fields") or node.get("x-kubernetes-embedded-resource"))


def _object(node: Object) -> Schema:
    default = node.get("default")
    atomic = node.get("x-kubernetes-map-type") == "atomic"
    properties, values = node.get("properties"), node.get("additionalProperties")
    if properties is None and isinstance(values, dict):
        return Schema("map", item=typed(values), atomic=atomic, default=default)
    if properties is None and (values is True or _keeps_unknown(node)):
        return Schema("map", item=ANY, atomic=atomic, default=default)
    fields = {name: typed(each) for name, each in (properties or {}).items()}
    return Schema("object", fields=fields, atomic=atomic, default=default, open_=_keeps_unknown(node))


def _list(node: Object) -> Schema:
    items = node.get("items") or {}
    item, default = typed(items), node.get("default")
    kind = node.get("x-kubernetes-list-type", "atomic")
    if kind == "map":
        keys = tuple(node.get("x-kubernetes-list-map-keys", ()))
        known = {key: items.get("properties", {}).get(key, {}).get("default") for key in keys}
        defaults = {key: value for key, value in known.items() if value is not None}
        return Schema("list", item=item, keys=keys, key_defaults=defaults, default=default)
    return Schema("list", item=item, is_set=kind == "set", atomic=kind == "atomic", default=default)
