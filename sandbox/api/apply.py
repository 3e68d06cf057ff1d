"""Merge an applied configuration into the live object, and prune what its manager no longer sets."""

from __future__ import annotations

from typing import Any

from .decode import deep_copy
from .fieldsets import Fields, Path, item_key
from .schema import Schema


def merge(schema: Schema, live: Any, applied: Any) -> Any:
    """Return `live` with `applied` on top: maps and keyed lists merge, all else is replaced."""
    if schema.atomic or live is None:
        return deep_copy(applied)
    if isinstance(live, dict) and isinstance(applied, dict):
        out = dict(live)
        for name, value in applied.items():
            out[name] = merge(schema.child(name), live.get(name), value)
        return out
    if isinstance(live, list) and isinstance(applied, list) and (schema.keys or schema.is_set):
        return _merge_list(schema, live, applied)
    return deep_copy(applied)


def _merge_list(schema: Schema, live: list[Any], applied: list[Any]) -> list[Any]:
    wanted = {item_key(schema, item): item for item in applied}
    known = {item_key(schema, item): item for item in live}
    # The applied order wins among the items that it names; the others keep their places.
    merged = iter([merge(schema.item, known[key], item) for key, item in wanted.items() if key in known])
    out = [next(merged) if key in wanted else item for key, item in known.items()]
    return out + [deep_copy(item) for key, item in wanted.items() if key not in known]


def prune(schema: Schema, obj: Any, dropped: Fields, kept: Fields) -> Any:
    """Remove the fields in `dropped` from `obj`, except those that somebody in `kept` owns."""
    guarded: set[Path] = set()
    for path in kept:
        guarded.update(path[:length] for length in range(1, len(path) + 1))
    doomed = {path for path in dropped if path not in guarded}
    if not doomed:
        return obj
    prefixes: set[Path] = set()
    for path in doomed:
        prefixes.update(path[:length] for length in range(1, len(path)))
    return _prune(schema, obj, (), doomed, prefixes)


def _prune(schema: Schema, value: Any, path: Path, doomed: set[Path], prefixes: set[Path]) -> Any:
    if isinstance(value, dict):
        out: dict[str, Any] = {}
        for name, each in value.items():
            below = (*path, f"f:{name}")
            if below in doomed:
                continue
            left = _prune(schema.child(name), each, below, doomed, prefixes) if below in prefixes else each
            if left or not each:
                out[name] = left
        return out
    if isinstance(value, list):
        items = []
        for each in value:
            below = (*path, item_key(schema, each))
            if below not in doomed:
                items.append(_prune(schema.item, each, below, doomed, prefixes) if below in prefixes else each)
        return items
    return value
