"""Check values against the OpenAPI schema of a CustomResourceDefinition, in the API server's words."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from .messages import Cause, Object
from .rules import Rules
from .validation import required, shown, unsupported, wrong

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
# A breach of these kinds leaves a value that no CEL rule is asked about.
_BLOCKING = frozenset(
    {
        "FieldValueNotSupported",
        "FieldValueRequired",
        "FieldValueTooLong",
        "FieldValueTooMany",
        "FieldValueTypeInvalid",
    }
)
_NOT_CHECKED = (
    "Invalid value: null: some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation"
)


def check(schema: Object, rules: Rules, obj: Object, old: Object | None) -> list[Cause]:
    """Return what is wrong with an object: its values first, then what the rules say."""
    causes = [cause for cause in _value(schema, obj, "")]
    if any(cause.reason in _BLOCKING for cause in causes):
        return [*causes, Cause("<nil>", _NOT_CHECKED)] if rules else causes
    return causes + rules.check(obj, old)


def _value(node: Object, value: Any, path: str) -> Iterator[Cause]:
    if not _fits(node, value):
        found = next(name for name, types in _TYPES.items() if isinstance(value, types))
        wanted = node.get("type", "integer,string")
        text = f'Invalid value: "{found}": {path} in body must be of type {wanted}: "{found}"'
        yield Cause(path, text, "FieldValueTypeInvalid")
        return
    if isinstance(value, str):
        yield from _string(node, value, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from _number(node, value, path)
    elif isinstance(value, dict):
        yield from _object(node, value, path)
    elif isinstance(value, list):
        yield from _array(node, value, path)
    if "enum" in node and value not in node["enum"]:
        yield unsupported(path, value, node["enum"])
    yield from _junctors(node, value, path)


def _fits(node: Object, value: Any) -> bool:
    if node.get("x-kubernetes-int-or-string"):
        return isinstance(value, (int, str)) and not isinstance(value, bool)
    types = _TYPES.get(node.get("type", ""))
    return types is None or (isinstance(value, types) and (bool in types or not isinstance(value, bool)))


def _says(path: str, value: Any, rest: str) -> Cause:
    return wrong(path, value, f"{path} in body {rest}")


def _string(node: Object, value: str, path: str) -> Iterator[Cause]:
    if len(value) < node.get("minLength", 0):
        yield _says(path, value, f"should be at least {node['minLength']} chars long")
    if "maxLength" in node and len(value) > node["maxLength"]:
        yield Cause(path, f"Too long: may not be more than {node['maxLength']} bytes", "FieldValueTooLong")
    if "pattern" in node and not re.search(node["pattern"], value):
        yield _says(path, value, f"should match '{node['pattern']}'")
    if node.get("format") == "date-time" and not _is_time(value):
        text = f"Invalid value: {shown(value)}: {path} in body must be of type date-time: {shown(value)}"
        yield Cause(path, text, "FieldValueTypeInvalid")


def _is_time(value: str) -> bool:
    try:
        return "T" in value.upper() and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _number(node: Object, value: float, path: str) -> Iterator[Cause]:
    for limit, word, exclusive, outside in (
        (node.get("minimum"), "greater", node.get("exclusiveMinimum"), operator.lt),
        (node.get("maximum"), "less", node.get("exclusiveMaximum"), operator.gt),
    ):
        if limit is not None and (outside(value, limit) or (exclusive and value == limit)):
            yield _says(path, value, f"should be {word} than {'' if exclusive else 'or equal to '}{limit}")
    if node.get("multipleOf") and value % node["multipleOf"]:
        yield _says(path, value, f"should be a multiple of {node['multipleOf']}")


def _too_many(node: Object, limit: str, count: int, path: str) -> Iterator[Cause]:
    if limit in node and count > node[limit]:
        yield Cause(path, f"Too many: {count}: must have at most {node[limit]} items", "FieldValueTooMany")


def _object(node: Object, value: Object, path: str) -> Iterator[Cause]:
    prefix = f"{path}." if path else ""
    yield from _too_many(node, "maxProperties", len(value), path)
    if len(value) < node.get("minProperties", 0):
        yield _says(path, len(value), f"should have at least {node['minProperties']} properties")
    for name in node.get("required", ()):
        if name not in value:
            yield required(prefix + name)
    fields, others = node.get("properties", {}), node.get("additionalProperties")
    for name, each in value.items():
        child = fields.get(name, others)
        # The metadata of the whole object is checked as every object's is.
        if isinstance(child, dict) and not (not path and name == "metadata"):
            yield from _value(child, each, prefix + name)


def _array(node: Object, value: list[Any], path: str) -> Iterator[Cause]:
    yield from _too_many(node, "maxItems", len(value), path)
    if len(value) < node.get("minItems", 0):
        yield _says(path, len(value), f"should have at least {node['minItems']} items")
    seen: list[Any] = []
    for i, item in enumerate(value):
        identity = _identity(node, item)
        if identity is not None and identity in seen:
            yield Cause(f"{path}[{i}]", f"Duplicate value: {shown(identity)}", "FieldValueDuplicate")
        seen.append(identity)
        yield from _value(node.get("items") or {}, item, f"{path}[{i}]")


def _identity(node: Object, item: Any) -> Any:
    kind = node.get("x-kubernetes-list-type")
    if kind == "map" and isinstance(item, dict):
        return {key: item[key] for key in node["x-kubernetes-list-map-keys"] if key in item}
    return item if kind == "set" or node.get("uniqueItems") else None


def _junctors(node: Object, value: Any, path: str) -> Iterator[Cause]:
    def fitting(name: str) -> int:
        return sum(not any(_value(each, value, path)) for each in node.get(name, ()))

    if "allOf" in node and fitting("allOf") < len(node["allOf"]):
        yield wrong(path, "", f'"{path}" must validate all the schemas (allOf)')
    if "anyOf" in node and not fitting("anyOf"):
        yield wrong(path, "", f'"{path}" must validate at least one schema (anyOf)')
    if "oneOf" in node and (count := fitting("oneOf")) != 1:
        found = "Found none valid" if not count else f"Found {count} valid alternatives"
        yield wrong(path, "", f'"{path}" must validate one and only one schema (oneOf). {found}')
    if "not" in node and not any(_value(node["not"], value, path)):
        yield wrong(path, "", f'"{path}" must not validate the schema (not)')
