"""Fill the columns that a CustomResourceDefinition adds to the tables of `kubectl get`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .definitions import Definition
from .messages import Object, dumps

_AGE: Object = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
# The steps of a JSONPath that printer columns use: .name, [*], [0] and [?(@.type=="Ready")].
_STEP = re.compile(r"""\.(?P<name>[\w-]+)|\[(?P<index>\*|\d+)\]|\[\?\(@\.(?P<key>\w+)==["'](?P<value>[^"']*)["']\)\]""")


def _listed(definition: Definition) -> tuple[Object, ...]:
    return definition.columns or (_AGE,)


def columns(definition: Definition, column: Callable[[str], Object]) -> list[Object]:
    """Return the column definitions: the name, then those of the definition; a priority above 0 shows with -o wide."""
    out = [column("Name")]
    for each in _listed(definition):
        out.append({**column(each["name"]), "name": each["name"], "priority": each.get("priority", 0)})
    return out


def cells(definition: Definition, obj: Object, age: Callable[[str | None], str]) -> list[Any]:
    """Return the cells of one object's row."""
    row: list[Any] = [obj["metadata"]["name"]]
    for each in _listed(definition):
        found = next(iter(find(obj, each["jsonPath"])), None)
        row.append(age(found) if each["type"] == "date" else text(found) if each["type"] == "string" else found)
    return row


def text(value: Any) -> Any:
    """Write what a column of text shows: other values as JSON."""
    return value if value is None or isinstance(value, str) else dumps(value).decode()


def find(obj: Object, path: str) -> list[Any]:
    """Return the values that a JSONPath leads to."""
    values: list[Any] = [obj]
    for step in _STEP.finditer(path):
        if step["name"]:
            values = [v[step["name"]] for v in values if isinstance(v, dict) and step["name"] in v]
            continue
        items = [v for v in values if isinstance(v, list)]
        if step["index"] == "*":
            values = [item for each in items for item in each]
        elif step["index"]:
            values = [each[int(step["index"])] for each in items if int(step["index"]) < len(each)]
        else:
            values = [i for each in items for i in each if str(i.get(step["key"])) == step["value"]]
    return values
