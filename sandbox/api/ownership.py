"""Keep metadata.managedFields: who set which field, and who lost one."""

from __future__ import annotations

from typing import Any, NamedTuple

from . import fieldsets
from .decode import deep_copy
from .fieldsets import Difference, Fields, Path
from .messages import ApiError, Object
from .resources import Resource
from .schema import Schema


class Manager(NamedTuple):
    """One entry of managedFields, without its fields."""

    name: str
    operation: str
    api_version: str
    subresource: str = ""


class Owned(NamedTuple):
    """What a manager owns, and since when."""

    fields: Fields
    time: str


Ownership = dict[Manager, Owned]


def read(obj: Object) -> Ownership:
    """Read managedFields of an object."""
    entries = obj["metadata"].get("managedFields", ())
    out: Ownership = {}
    for entry in entries:
        manager = Manager(
            entry.get("manager", ""),
            entry["operation"],
            entry.get("apiVersion", ""),
            entry.get("subresource", ""),
        )
        out[manager] = Owned(fieldsets.decode(entry.get("fieldsV1", {})), entry.get("time", ""))
    return out


def write(obj: Object, ownership: Ownership) -> Ownership:
    """Write managedFields of an object, appliers first, then by time and name; return what `read` would."""
    entries: list[Object] = []
    order = sorted(ownership.items(), key=lambda e: (e[0].operation, e[1].time, *e[0]))
    written = {manager: owned for manager, owned in order if owned.fields}
    for manager, owned in written.items():
        entry: Object = {
            "manager": manager.name,
            "operation": manager.operation,
            "apiVersion": manager.api_version,
            "time": owned.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": fieldsets.encode(owned.fields),
        }
        if manager.subresource:
            entry["subresource"] = manager.subresource
        entries.append(entry)
    if entries:
        obj["metadata"]["managedFields"] = entries
    else:
        obj["metadata"].pop("managedFields", None)
    return written


# Parts that Go writes even when they are empty, so that creating an object does not "add" them.
_ALWAYS: dict[str, Object] = {
    "deployments": {
        "spec": {
            "selector": None,
            "template": {"metadata": {}, "spec": {"containers": None}},
            "strategy": {},
        },
        "status": {},
    },
    "replicasets": {"spec": {"selector": None}, "status": {}},
    "jobs": {"spec": {"template": {"metadata": {}, "spec": {"containers": None}}}, "status": {}},
    "pods": {"spec": {"containers": None}, "status": {}},
    "services": {"spec": {}, "status": {"loadBalancer": {}}},
    "horizontalpodautoscalers": {"spec": {"scaleTargetRef": {}}, "status": {}},
    "endpointslices": {"endpoints": None, "ports": None},
    "events": {"involvedObject": {}, "source": {}},
    "rolebindings": {"roleRef": {}},
    "clusterrolebindings": {"roleRef": {}},
    "roles": {"rules": None},
    "clusterroles": {"rules": None},
}
_USUAL: Object = {"spec": {}, "status": {}}


def blank(resource: Resource) -> Object:
    """Return what an object of this resource is before it exists."""
    if resource.custom:
        return {"metadata": {}}
    return {"metadata": {}, **deep_copy(_ALWAYS.get(resource.plural, _USUAL))}


def after_update(
    schema: Schema, base: Object, new: Object, ownership: Ownership, manager: Manager, now: str
) -> Ownership:
    """Give `manager` what an update added or changed, and take that from the others."""
    change = fieldsets.difference(schema, base, new)
    touched = change.added | change.modified
    out = _without(ownership, manager, touched, change.removed)
    mine = ownership.get(manager)
    before = mine.fields if mine else fieldsets.NOTHING
    fields = (before | touched) - change.removed
    if fields:
        out[manager] = Owned(fields, mine.time if mine and fields == before else now)
    return out


def after_apply(change: Difference, ownership: Ownership, manager: Manager, fields: Fields, now: str) -> Ownership:
    """Give `manager` exactly what it applied; the others lose what it changed by force."""
    out = _without(ownership, manager, change.added | change.modified, change.removed)
    mine = ownership.get(manager)
    if fields:
        out[manager] = Owned(fields, mine.time if mine and mine.fields == fields else now)
    return out


def _without(ownership: Ownership, manager: Manager, touched: Fields, removed: Fields) -> Ownership:
    out: Ownership = {}
    lost = touched | removed
    for other, owned in ownership.items():
        if other == manager:
            continue
        left = owned.fields - lost if lost else owned.fields
        if left:
            out[other] = Owned(left, owned.time)
    return out


def disown(ownership: Ownership, path: Path) -> Ownership:
    """Take a field from whoever owns it."""
    return {manager: Owned(owned.fields - {path}, owned.time) for manager, owned in ownership.items()}


def is_owned(ownership: Ownership, path: Path) -> bool:
    """Tell whether anybody owns a field."""
    return any(path in owned.fields for owned in ownership.values())


def conflicts(change: Difference, ownership: Ownership, manager: Manager) -> list[tuple[Manager, Owned, Path]]:
    """Return the fields that a change would take from other managers."""
    touched = change.added | change.modified
    found = []
    for other, owned in sorted(ownership.items(), key=lambda e: e[0]):
        if other != manager:
            found += [(other, owned, path) for path in sorted(owned.fields & touched)]
    return found


def _title(manager: Manager, owned: Owned) -> str:
    text = f'"{manager.name}"'
    if manager.subresource:
        text += f' with subresource "{manager.subresource}"'
    if manager.operation == "Update":
        text += f" using {manager.api_version}" + (f" at {owned.time}" if owned.time else "")
    return text


def conflict_error(found: list[tuple[Manager, Owned, Path]]) -> ApiError:
    """Refuse an apply that would take fields from others."""
    causes: list[dict[str, Any]] = []
    by_title: dict[str, list[str]] = {}
    for manager, owned, path in found:
        title, text = _title(manager, owned), fieldsets.path_text(path)
        by_title.setdefault(title, []).append(text)
        causes.append({"reason": "FieldManagerConflict", "message": f"conflict with {title}", "field": text})
    if len(found) == 1:
        title, paths = next(iter(by_title.items()))
        message = f"Apply failed with 1 conflict: conflict with {title}: {paths[0]}"
    else:
        lines: list[str] = []
        for title in sorted(by_title):
            lines.append(f"conflicts with {title}:")
            lines += [f"- {path}" for path in by_title[title]]
        message = f"Apply failed with {len(found)} conflicts: " + "\n".join(lines)
    return ApiError(409, "Conflict", message, {"causes": causes})
