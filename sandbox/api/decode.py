"""Decode a body into an object of its kind: check types, drop what the kind does not have."""

from __future__ import annotations

import re
from typing import Any

from .messages import Cause, DecodeError
from .quantities import MALFORMED, canonical
from .schema import Schema

_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$")
_MICRO_TIME = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.\d{6}(Z|[+-]\d\d:\d\d)$")
_SECONDS = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
_PLAIN = {"string": str, "boolean": bool, "integer": int, "number": (int, float)}
_COPIED = (str, int, float, bool)


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (int, float)):
        return "number"
    return "array" if isinstance(value, list) else "object"


def _go_type(schema: Schema) -> str:
    if schema.type == "list":
        return "[]" + _go_type(schema.item)
    if schema.type == "map":
        return "map[string]" + _go_type(schema.item)
    return f"v1.{schema.go}" if schema.type == "object" else schema.go


class Decoder:
    """Decode one object; `unknown` then lists the paths that its kind does not have.

    Built-in kinds raise DecodeError at the first wrong type, as Go's decoder does; custom kinds
    gather every breach of their schema in `causes`, and get their schema's defaults.
    """

    def __init__(self, custom: bool) -> None:
        self._custom = custom
        self.unknown: list[str] = []
        self.causes: list[Cause] = []

    def decode(self, schema: Schema, value: Any) -> Any:
        """Return a fresh, cleaned copy of `value` as `schema` has it."""
        return self._value(schema, value, "", schema, "")

    def _value(self, schema: Schema, value: Any, path: str, parent: Schema, go_path: str) -> Any:
        kind = schema.type
        if kind == "object" and isinstance(value, dict):
            return self._object(schema, value, path, go_path)
        if kind == "list" and isinstance(value, list):
            item = schema.item
            return [
                self._value(item, each, f"{path}[{i}]", parent, go_path)
                for i, each in enumerate(value)
                if each is not None
            ]
        if kind == "map" and isinstance(value, dict):
            item = schema.item
            if item.type == "string" and all(isinstance(each, str) for each in value.values()):
                return dict(value)
            return {
                key: self._value(item, each, f"{path}.{key}", parent, f"{go_path}.{key}")
                for key, each in value.items()
                if each is not None
            }
        if kind == "any":
            return _copied(value)
        return self._scalar(schema, value, path, parent, go_path)

    def _object(self, schema: Schema, value: dict[str, Any], path: str, go_path: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        fields = schema.fields
        prefix = f"{path}." if path else ""
        go_prefix = f"{go_path}." if go_path else ""
        for name, each in value.items():
            field = fields.get(name)
            if field is None:
                if schema.open:
                    out[name] = _copied(each)
                else:
                    self.unknown.append(prefix + name)
            elif field.type == "string" and type(each) is str:
                out[name] = each  # most of what an object holds: no path is needed for what fits
            elif each is not None:
                out[name] = self._value(field, each, prefix + name, schema, go_prefix + name)
        if self._custom:
            self._complete(schema, out, prefix)
        return out

    def _complete(self, schema: Schema, out: dict[str, Any], prefix: str) -> None:
        for name, field in schema.fields.items():
            if name not in out and field.default is not None:
                out[name] = self._value(field, _copied(field.default), prefix + name, schema, "")
        for name in schema.required:
            if name not in out:
                self.causes.append(Cause(prefix + name, "Required value", "FieldValueRequired"))

    def _scalar(self, schema: Schema, value: Any, path: str, parent: Schema, go_path: str) -> Any:
        kind = schema.type
        expected = _PLAIN.get(kind)
        if expected is not None:
            fits = isinstance(value, expected) and (kind == "boolean" or not isinstance(value, bool))
            if not fits and kind == "integer" and isinstance(value, float) and value.is_integer():
                value, fits = int(value), True
            if fits:
                if schema.minimum is not None or schema.maximum is not None:
                    self._range(schema, value, path)
                return value
        elif kind == "quantity" and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            try:
                return canonical(str(value))
            except ValueError:
                raise DecodeError(MALFORMED) from None
        elif kind in ("time", "microtime") and isinstance(value, str):
            return _time(kind, value)
        return self._mismatch(schema, value, path, parent, go_path)

    def _range(self, schema: Schema, value: Any, path: str) -> None:
        for limit, word, outside in (
            (schema.minimum, "greater", lambda limit: value < limit),
            (schema.maximum, "less", lambda limit: value > limit),
        ):
            if limit is not None and outside(limit):
                text = f"Invalid value: {value}: {path} in body should be {word} than or equal to {limit}"
                self.causes.append(Cause(path, text))

    def _mismatch(self, schema: Schema, value: Any, path: str, parent: Schema, go_path: str) -> Any:
        found = _json_type(value)
        if self._custom and not path.startswith("metadata"):
            wanted = {"list": "array", "map": "object", "time": "string", "number": "number"}
            type_ = wanted.get(schema.type, schema.type)
            found = {"bool": "boolean"}.get(found, found)
            text = f'Invalid value: "{found}": {path} in body must be of type {type_}: "{found}"'
            self.causes.append(Cause(path, text, "FieldValueTypeInvalid"))
            return value
        field = f"{parent.go}.{go_path}" if go_path else parent.go
        raise DecodeError(f"json: cannot unmarshal {found} into Go struct field {field} of type {_go_type(schema)}")


def _time(kind: str, value: str) -> str:
    if kind == "microtime":
        if _MICRO_TIME.match(value):
            return value
        layout, rest = "2006-01-02T15:04:05.000000Z07:00", ".000000"
    else:
        if _TIME.match(value):
            return value
        layout, rest = "2006-01-02T15:04:05Z07:00", "Z07:00"
    seconds = _SECONDS.match(value)
    if seconds is None:
        raise DecodeError(f'parsing time "{value}" as "{layout}": cannot parse "{value}" as "2006"')
    tail = value[seconds.end() :]
    raise DecodeError(f'parsing time "{value}" as "{layout}": cannot parse "{tail}" as "{rest}"')


def _copied(value: Any) -> Any:
    if isinstance(value, _COPIED) or value is None:
        return value
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value]


def deep_copy(value: Any) -> Any:
    """Return a copy of a JSON value that shares nothing with it."""
    return _copied(value)
