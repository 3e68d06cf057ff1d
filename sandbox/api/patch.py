"""Apply the patch types that need no server: merge patch (RFC 7386), JSON patch (RFC 6902), strategic."""

from __future__ import annotations

from typing import Any

from .decode import deep_copy
from .messages import bad_request, rejected_patch
from .schema import Schema

MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"


def merge_patch(target: Any, patch: Any) -> Any:
    """Return `target` with `patch` merged in; lists are replaced, null deletes."""
    if not isinstance(patch, dict):
        return deep_copy(patch)
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merge_patch(out.get(key), value)
    return out


def json_patch(document: Any, operations: Any) -> Any:
    """Return `document` with the operations applied in turn; refused as a whole if one fails."""
    if not isinstance(operations, list):
        raise bad_request("error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    document = deep_copy(document)
    for operation in operations:
        try:
            document = _operate(document, operation)
        except (KeyError, IndexError, TypeError, ValueError):
            raise rejected_patch() from None
    return document


def _operate(document: Any, operation: dict[str, Any]) -> Any:
    verb, path = operation["op"], _pointer(operation["path"])
    if verb == "test":
        if _find(document, path) != operation.get("value"):
            raise ValueError("test failed")
        return document
    if verb == "remove":
        return _remove(document, path)
    if verb == "add":
        return _add(document, path, deep_copy(operation["value"]))
    if verb == "replace":
        _find(document, path)
        return _replace(document, path, deep_copy(operation["value"]))
    if verb in ("move", "copy"):
        source = _pointer(operation["from"])
        value = deep_copy(_find(document, source))
        if verb == "move":
            document = _remove(document, source)
        return _add(document, path, value)
    raise ValueError(f"unknown operation {verb}")


def _pointer(text: str) -> list[str]:
    if text == "":
        return []
    if not text.startswith("/"):
        raise ValueError(text)
    return [part.replace("~1", "/").replace("~0", "~") for part in text[1:].split("/")]


def _index(step: str, length: int) -> int:
    if not step.isdigit() or int(step) >= length:
        raise IndexError(step)
    return int(step)


def _find(document: Any, path: list[str]) -> Any:
    for step in path:
        if isinstance(document, list):
            document = document[_index(step, len(document))]
        elif isinstance(document, dict):
            document = document[step]
        else:
            raise KeyError(step)
    return document


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent, last = _find(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        parent.insert(len(parent) if last == "-" else _index(last, len(parent) + 1), value)
    elif isinstance(parent, dict):
        parent[last] = value
    else:
        raise KeyError(last)
    return document


def _replace(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent, last = _find(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        parent[_index(last, len(parent))] = value
    else:
        parent[last] = value
    return document


def _remove(document: Any, path: list[str]) -> Any:
    parent, last = _find(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        del parent[_index(last, len(parent))]
    else:
        del parent[last]
    return document


def strategic_patch(schema: Schema, target: Any, patch: Any) -> Any:
    """Return `target` with a strategic merge patch merged in: keyed lists merge item by item."""
    if not isinstance(patch, dict):
        return deep_copy(patch)
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: deep_copy(value) for key, value in patch.items() if key != "$patch"}
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if key == "$retainKeys":
            out = {name: each for name, each in out.items() if name in value}
        if key.startswith("$deleteFromPrimitiveList/"):
            field = key.partition("/")[2]
            out[field] = [each for each in out.get(field, []) if each not in value]
        if key.startswith("$"):
            continue
        child = schema.child(key)
        if value is None:
            out.pop(key, None)
        elif isinstance(value, list):
            order = patch.get(f"$setElementOrder/{key}")
            out[key] = _merge_list(child, out.get(key) or [], value, order)
        elif isinstance(value, dict) and child.type != "any":
            out[key] = strategic_patch(child, out.get(key), value)
        else:
            out[key] = merge_patch(out.get(key), value)
    return out


def _merge_list(schema: Schema, target: list[Any], patch: list[Any], order: list[Any] | None) -> list[Any]:
    if schema.is_set:
        return target + [each for each in patch if each not in target]
    key = schema.patch_key
    if not key or any(isinstance(each, dict) and each.get("$patch") == "replace" for each in patch):
        return [deep_copy(e) for e in patch if not (isinstance(e, dict) and "$patch" in e)]
    out = list(target)
    for each in patch:
        if not isinstance(each, dict) or key not in each:
            raise bad_request(f"map: {each} does not contain declared merge key: {key}")
        at = next((i for i, item in enumerate(out) if item.get(key) == each[key]), None)
        if each.get("$patch") == "delete":
            if at is not None:
                del out[at]
        elif at is None:
            out.append(strategic_patch(schema.item, {}, each))
        else:
            out[at] = strategic_patch(schema.item, out[at], each)
    if order:
        ranks = {item.get(key): rank for rank, item in enumerate(order)}
        out.sort(key=lambda item: ranks.get(item.get(key), len(ranks)))
    return out
