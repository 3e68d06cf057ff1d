"""Compute which fields an object sets, and which ones a change touched: the basis of field ownership.

A set of fields is a frozenset of paths; a path is a tuple of elements in the FieldsV1 notation
("f:spec", 'k:{"name":"vllm"}', 'v:"x"'). The rules follow structured-merge-diff.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NamedTuple

from .schema import Schema

_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
Path = tuple[str, ...]
Fields = frozenset[Path]
NOTHING: Fields = frozenset()

_UNOWNED = frozenset(
    {
        ("f:apiVersion",),
        ("f:kind",),
        ("f:metadata",),
        *(
            ("f:metadata", f"f:{name}")
            for name in (
                "name",
                "namespace",
                "creationTimestamp",
                "selfLink",
                "uid",
                "generation",
                "resourceVersion",
            )
        ),
    }
)


def strip(paths: set[Path] | Fields) -> Fields:
    """Leave out what nobody owns: identity and what the server itself keeps."""
    return frozenset(path for path in paths if path not in _UNOWNED and path[:2] != ("f:metadata", "f:managedFields"))


def item_key(schema: Schema, item: Any) -> str:
    """Return the path element of an item of a keyed list or a set."""
    if schema.is_set or not isinstance(item, dict):
        return "v:" + _ENCODE(item)
    key = {name: item.get(name, schema.key_defaults.get(name)) for name in schema.keys}
    present = {name: value for name, value in sorted(key.items()) if value is not None}
    return "k:" + _ENCODE(present)


def fields_set(schema: Schema, value: Any) -> Fields:
    """Return the fields that an applied configuration sets."""
    out: set[Path] = set()
    _collect(schema, value, (), out)
    return strip(out)


def _merges(schema: Schema, value: Any) -> bool:
    """Tell whether a value is looked into, rather than owned as a whole."""
    if schema.atomic:
        return False
    return isinstance(value, dict) or (isinstance(value, list) and bool(schema.keys or schema.is_set))


def _collect(schema: Schema, value: Any, path: Path, out: set[Path]) -> None:
    if not _merges(schema, value):
        out.add(path)
        return
    if isinstance(value, list):
        for item in value:
            below = (*path, item_key(schema, item))
            out.add(below)
            _collect(schema.item, item, below, out)
        return
    for name, each in value.items():
        below = (*path, f"f:{name}")
        _collect(schema.child(name), each, below, out)
        if each is None or each == {} or schema.type != "object":
            out.add(below)


class Difference(NamedTuple):
    """What a change did to the fields."""

    added: Fields
    modified: Fields
    removed: Fields


_MISSING: Any = object()


def difference(schema: Schema, old: Any, new: Any) -> Difference:
    """Compare two versions of an object field by field."""
    added: set[Path] = set()
    modified: set[Path] = set()
    removed: set[Path] = set()
    if old != new:
        _compare(schema, old, new, (), (added, modified, removed))
    return Difference(strip(added), strip(modified), strip(removed))


def _compare(schema: Schema, old: Any, new: Any, path: Path, out: tuple[set[Path], set[Path], set[Path]]) -> None:
    added, modified, removed = out
    if old is _MISSING:
        _whole(schema, new, path, added)
    elif new is _MISSING:
        _whole(schema, old, path, removed)
    elif not _merge(schema, old, new):
        modified.add(path)
    else:
        left, right = _children(schema, old), _children(schema, new)
        for name in left.keys() | right.keys():
            before, after = left.get(name, _MISSING), right.get(name, _MISSING)
            if before is not after and before != after:
                if schema.type == "list":
                    _compare(schema.item, before, after, (*path, name), out)
                else:
                    _compare(schema.child(name), before, after, (*path, f"f:{name}"), out)


def _merge(schema: Schema, old: Any, new: Any) -> bool:
    """Tell whether two different values are compared part by part, rather than as wholes."""
    present = [value for value in (old, new) if value is not None]
    return any(present) and all(_merges(schema, value) for value in present) and len({type(v) for v in present}) == 1


def _whole(schema: Schema, value: Any, path: Path, out: set[Path]) -> None:
    """Note a value that came or went with all that is in it."""
    out.add(path)
    if value and _merges(schema, value):
        for name, each in _children(schema, value).items():
            if schema.type == "list":
                _whole(schema.item, each, (*path, name), out)
            else:
                _whole(schema.child(name), each, (*path, f"f:{name}"), out)


def _children(schema: Schema, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    if isinstance(value, list):
        return {item_key(schema, item): item for item in value}
    return {}


@lru_cache(maxsize=4096)  # an object is written many times by the same few managers
def encode(fields: Fields) -> dict[str, Any]:
    """Write a set of fields as FieldsV1; shared, so not to be changed."""
    root: dict[str, Any] = {}
    for path in sorted(fields):
        node = root
        for element in path[:-1]:
            below = node.get(element)
            if below is None:
                below = node[element] = {}
            elif not below:
                # It was a leaf until now; paths are sorted, so a parent comes before its children.
                below["."] = {}
            node = below
        node.setdefault(path[-1], {})
    return root


def decode(node: dict[str, Any], path: Path = ()) -> Fields:
    """Read a set of fields from FieldsV1."""
    out: set[Path] = set()
    _read(node, path, out)
    return frozenset(out)


def _read(node: dict[str, Any], path: Path, out: set[Path]) -> None:
    if path and (not node or "." in node):
        out.add(path)
    for element, below in node.items():
        if element != ".":
            _read(below, (*path, element), out)


def path_text(path: Path) -> str:
    """Write a path as conflicts name it: .spec.containers[name="vllm"].image."""
    text = ""
    for element in path:
        form, _, rest = element.partition(":")
        if form == "f":
            text += f".{rest}"
        elif form == "k":
            pairs = ",".join(f"{key}={json.dumps(value)}" for key, value in json.loads(rest).items())
            text += f"[{pairs}]"
        else:
            text += f"[={rest}]"
    return text
