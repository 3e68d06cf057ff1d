"""Write dataclasses as tables: their fields, types and defaults, and the remark beside each field."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from tests.docs.markdown import code, table


def remarks(kind: type) -> dict[str, str]:
    """Return the remark at the end of each field's line, or right above it, as the source has them."""
    lines = inspect.getsource(kind).splitlines()
    found = {}
    for number, line in enumerate(lines):
        if match := re.match(r"    (\w+): [^#]*?(?:  # (.*))?$", line):
            above = re.match(r"    # (.*)", lines[number - 1])
            found[match[1]] = match[2] or (above[1] if above else "")
    return found


def docstring(what: Any) -> str:
    """Return a docstring as paragraphs."""
    return (inspect.getdoc(what) or "").strip() + "\n"


def type_of(hint: Any) -> str:
    """Name a type as JSON and YAML do."""
    names = {str: "text", int: "integer", float: "number", bool: "boolean", type(None): "null", Any: "any"}
    if hint in names:
        return names[hint]
    if is_dataclass(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    inner = [each for each in get_args(hint) if each is not ...]
    origin = getattr(hint, "__origin__", None)
    if origin is tuple:
        return f"list of {type_of(inner[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return "object"
    if inner:
        return " or ".join(type_of(each) for each in inner)
    return getattr(hint, "__name__", str(hint)).lower()


def default_of(field: Any) -> str:
    """Return a field's default as JSON; empty for none, and for a whole section."""
    if field.default is not MISSING:
        value = field.default
        if is_dataclass(value):
            return ""
        return code(as_json(value))
    return "" if field.default_factory is MISSING else code(as_json(field.default_factory()))


def as_json(value: Any) -> str:
    """Write a value as JSON; a whole section is left out."""
    if is_dataclass(value):
        return ""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def members_of(kind: type) -> str:
    """Return a table of a dataclass's fields."""
    told, hints = remarks(kind), get_type_hints(kind)
    rows = [(code(f.name), type_of(hints[f.name]), default_of(f), told.get(f.name, "")) for f in fields(kind)]
    return table(["field", "type", "default", "what"], rows)
