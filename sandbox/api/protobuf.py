"""Read the few bodies that kubectl sends in Kubernetes' protobuf encoding: its `create` commands and `auth can-i`.

The field numbers are those of the API's published .proto files; the fields are the ones that kubectl fills in.
"""

from __future__ import annotations

import base64
from typing import Any

from .messages import Object

MAGIC = b"k8s\0"
_TEXT, _BYTES, _FLAG, _NUMBER, _MAP, _BINARIES = "text", "bytes", "flag", "number", "map", "binaries"
_LIST = "list of "

_META = {1: ("name", _TEXT), 2: ("generateName", _TEXT), 3: ("namespace", _TEXT)}
_META |= {11: ("labels", _MAP), 12: ("annotations", _MAP)}
_RESOURCE = dict(enumerate(("namespace", "verb", "group", "version", "resource", "subresource", "name"), start=1))
_MESSAGES: dict[str, dict[int, tuple[str, str]]] = {
    "Envelope": {1: ("type", "Type"), 2: ("raw", _BYTES)},
    "Type": {1: ("apiVersion", _TEXT), 2: ("kind", _TEXT)},
    "Meta": _META,
    "Namespace": {1: ("metadata", "Meta")},
    "ServiceAccount": {1: ("metadata", "Meta")},
    "ConfigMap": {1: ("metadata", "Meta"), 2: ("data", _MAP), 4: ("immutable", _FLAG)},
    "Secret": {1: ("metadata", "Meta"), 2: ("data", _BINARIES), 3: ("type", _TEXT), 5: ("immutable", _FLAG)},
    "Deployment": {1: ("metadata", "Meta"), 2: ("spec", "DeploymentSpec")},
    "DeploymentSpec": {1: ("replicas", _NUMBER), 2: ("selector", "Selector"), 3: ("template", "Template")},
    "Job": {1: ("metadata", "Meta"), 2: ("spec", "JobSpec")},
    "JobSpec": {6: ("template", "Template")},
    "Selector": {1: ("matchLabels", _MAP)},
    "Template": {1: ("metadata", "Meta"), 2: ("spec", "PodSpec")},
    "PodSpec": {2: ("containers", _LIST + "Container"), 3: ("restartPolicy", _TEXT)},
    "Container": {
        1: ("name", _TEXT),
        2: ("image", _TEXT),
        3: ("command", _LIST + _TEXT),
        4: ("args", _LIST + _TEXT),
        6: ("ports", _LIST + "Port"),
    },
    "Port": {1: ("name", _TEXT), 3: ("containerPort", _NUMBER), 4: ("protocol", _TEXT)},
    "SelfSubjectAccessReview": {1: ("metadata", "Meta"), 2: ("spec", "AccessSpec")},
    "AccessSpec": {1: ("resourceAttributes", "ResourceAttributes"), 2: ("nonResourceAttributes", "PathAttributes")},
    "ResourceAttributes": {number: (name, _TEXT) for number, name in _RESOURCE.items()},
    "PathAttributes": {1: ("path", _TEXT), 2: ("verb", _TEXT)},
    "SelfSubjectRulesReview": {1: ("metadata", "Meta"), 2: ("spec", "RulesSpec")},
    "RulesSpec": {1: ("namespace", _TEXT)},
    "SelfSubjectReview": {1: ("metadata", "Meta")},
    "Entry": {1: ("key", _TEXT), 2: ("value", _TEXT)},
    "BinaryEntry": {1: ("key", _TEXT), 2: ("value", _BYTES)},
}
_KINDS = frozenset(name for name, fields in _MESSAGES.items() if fields.get(1) == ("metadata", "Meta"))


def decode(body: bytes) -> Object | None:
    """Return the object in a protobuf body; None where it is of a kind that is not read in this encoding."""
    if not body.startswith(MAGIC):
        return None
    envelope = _message("Envelope", body[len(MAGIC) :])
    kind = envelope.get("type", {}).get("kind", "")
    if kind not in _KINDS:
        return None
    return {**envelope["type"], **_message(kind, envelope.get("raw", b""))}


def _message(name: str, data: bytes) -> Object:
    """Decode one message; fields that its table does not name are passed over."""
    out: Object = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        value, at = _field(data, at, tag & 7)
        known = _MESSAGES[name].get(tag >> 3)
        if known is not None:
            _put(out, *known, value)
    return out


def _put(out: Object, name: str, kind: str, value: Any) -> None:
    if kind in (_MAP, _BINARIES):
        entry = _message("Entry" if kind == _MAP else "BinaryEntry", value)
        text = entry.get("value", "" if kind == _MAP else b"")
        out.setdefault(name, {})[entry.get("key", "")] = text if kind == _MAP else base64.b64encode(text).decode()
    elif kind.startswith(_LIST):
        out.setdefault(name, []).append(_value(kind.removeprefix(_LIST), value))
    elif kind != _TEXT or value:  # Go writes every text, also those that are not set
        out[name] = _value(kind, value)


def _value(kind: str, value: Any) -> Any:
    if kind == _TEXT:
        return value.decode()
    if kind == _FLAG:
        return bool(value)
    return value if kind in (_BYTES, _NUMBER) else _message(kind, value)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def _field(data: bytes, at: int, wire: int) -> tuple[Any, int]:
    if wire == 0:
        return _varint(data, at)
    length, at = _varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
    return data[at : at + length], at + length
