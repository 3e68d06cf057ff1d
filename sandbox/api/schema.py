"""Describe the types of objects: one description serves decoding, patching, applying and ownership.

The built-in kinds' types come from the installed kubernetes client, which is generated from the
real API's own description. Its model files are read as text: importing them all costs a second and
100 MB, and only their tables of types are wanted.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from .listtypes import ATOMIC, INT64, KEY_DEFAULTS, LISTS, MICRO_TIMES, QUANTITIES, RAW


class Schema:
    """The type of one value.

    `type`: object, map, list, string, integer, boolean, number, time, microtime, quantity or any.
    `keys`: the fields that identify an item of a list (server-side apply); `patch_key`: the one
    that a strategic merge patch goes by; `is_set`: a list of distinct scalars that merges by value;
    `open`: an object that keeps fields which its type does not name.
    """

    __slots__ = (
        "_fields",
        "_item",
        "atomic",
        "default",
        "go",
        "is_set",
        "key_defaults",
        "keys",
        "maximum",
        "minimum",
        "open",
        "patch_key",
        "required",
        "type",
    )

    def __init__(
        self,
        type_: str,
        *,
        go: str = "",
        fields: Callable[[], dict[str, Schema]] | dict[str, Schema] | None = None,
        item: Schema | None = None,
        atomic: bool = False,
        keys: tuple[str, ...] = (),
        patch_key: str = "",
        is_set: bool = False,
        key_defaults: dict[str, object] | None = None,
        default: object = None,
        minimum: int | None = None,
        maximum: int | None = None,
        required: tuple[str, ...] = (),
        open_: bool = False,
    ) -> None:
        self.type = type_
        self.go = go
        self._fields = fields
        self._item = item
        self.atomic = atomic
        self.keys = keys
        self.patch_key = patch_key
        self.is_set = is_set
        self.key_defaults = key_defaults or {}
        self.default = default
        self.minimum = minimum
        self.maximum = maximum
        self.required = required
        self.open = open_

    @property
    def fields(self) -> dict[str, Schema]:
        """The fields of an object."""
        if callable(self._fields):
            self._fields = self._fields()
        return self._fields or {}

    @property
    def item(self) -> Schema:
        """The type of the items of a list or the values of a map."""
        return self._item or ANY

    def child(self, name: str) -> Schema:
        """Return the type of a field or of a map's value; ANY where it is not known."""
        if self.type == "object":
            return self.fields.get(name, ANY)
        return self.item if self.type == "map" else ANY


ANY = Schema("any")
STRING = Schema("string", go="string")
_SCALARS = {
    "str": STRING,
    "bool": Schema("boolean", go="bool"),
    "float": Schema("number", go="float64"),
    "object": ANY,
    "datetime": Schema("time", go="Time"),
}
_INT32 = Schema("integer", go="int32")
_INT64 = Schema("integer", go="int64")
_MICRO_TIME = Schema("microtime", go="MicroTime")
_QUANTITY = Schema("quantity", go="Quantity")
_TABLE = re.compile(r"(openapi_types|attribute_map) = (\{.*?\n    \})", re.DOTALL)


def _models() -> Path:
    spec = importlib.util.find_spec("kubernetes")
    if spec is None or spec.origin is None:
        raise RuntimeError("the sandbox's API reads its types from the package 'kubernetes'; install it")
    return Path(spec.origin).parent / "client" / "models"


def _file_name(model: str) -> str:
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", model)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", words).lower() + ".py"


@cache
def _tables(model: str) -> tuple[dict[str, str], dict[str, str]]:
    text = (_models() / _file_name(model)).read_text()
    tables = {name: ast.literal_eval(literal) for name, literal in _TABLE.findall(text)}
    return tables["openapi_types"], tables["attribute_map"]


def _go_name(model: str) -> str:
    return re.sub(r"^(Core|Discovery|Rbac|Events)?V\d", "", model)


@cache
def builtin(model: str) -> Schema:
    """Return the type of a built-in kind or one of its parts, by its name in the client's models."""
    go = _go_name(model)
    if go in RAW:
        return ANY
    return Schema("object", go=go, fields=lambda: _fields_of(model, go), atomic=go in ATOMIC)


def _fields_of(model: str, go: str) -> dict[str, Schema]:
    types, names = _tables(model)
    return {names[attr]: _typed(text, go, names[attr]) for attr, text in types.items()}


def _typed(text: str, go: str, field: str) -> Schema:
    if text == "int":
        return _INT64 if field in INT64 or (go, field) in INT64 else _INT32
    if text == "datetime" and (go, field) in MICRO_TIMES:
        return _MICRO_TIME
    if text in _SCALARS:
        return _SCALARS[text]
    if found := re.match(r"^list\[(.*)\]$", text):
        keys, patch_key, is_set = LISTS.get((go, field), LISTS.get(("", field), ((), "", False)))
        item = _typed(found[1], go, field)
        if not (keys or is_set):
            return Schema("list", item=item, atomic=True, patch_key=patch_key)
        defaults = {key: value for key, value in KEY_DEFAULTS.items() if key in keys}
        return Schema("list", item=item, keys=keys, patch_key=patch_key, is_set=is_set, key_defaults=defaults)
    if found := re.match(r"^dict[\[(]str, (.*)[\])]$", text):
        if (go, field) in QUANTITIES:
            return Schema("map", item=_QUANTITY)
        return Schema("map", item=_typed(found[1], go, field), atomic=(go, field) in ATOMIC)
    return builtin(text)
