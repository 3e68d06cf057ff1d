"""Match objects against label and field selectors."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from .messages import bad_request

Labels = dict[str, str]
Match = Callable[[Labels], bool]

_SET = re.compile(r"^(?P<key>[^\s!=,()]+)\s+(?P<op>in|notin)\s*\((?P<values>[^)]*)\)$")
_EQUAL = re.compile(r"^(?P<key>[^\s!=,()]+)\s*(?P<op>==|!=|=)\s*(?P<value>[^\s!=,()]*)$")
_KEY = re.compile(r"^(?P<not>!)?\s*(?P<key>[^\s!=,()]+)$")


def _requirement(text: str) -> Match:
    if found := _SET.match(text):
        key = found["key"]
        values = frozenset(value.strip() for value in found["values"].split(","))
        if found["op"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if found := _EQUAL.match(text):
        key, value = found["key"], found["value"]
        if found["op"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if found := _KEY.match(text):
        key = found["key"]
        if found["not"]:
            return lambda labels: key not in labels
        return lambda labels: key in labels
    raise bad_request(f"unable to parse requirement: found '{text}', expected: a label requirement")


@lru_cache(maxsize=1024)
def labels_match(selector: str) -> Match:
    """Return a test for the labels that `selector` (as in ?labelSelector=) chooses."""
    parts = [part.strip() for part in re.split(r",(?![^(]*\))", selector) if part.strip()]
    requirements = [_requirement(part) for part in parts]
    if len(requirements) == 1:
        return requirements[0]
    return lambda labels: all(requirement(labels) for requirement in requirements)


def _field(obj: dict[str, Any], path: str) -> str:
    value: Any = obj
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


@lru_cache(maxsize=1024)
def fields_match(selector: str) -> Callable[[dict[str, Any]], bool]:
    """Return a test for the objects that `selector` (as in ?fieldSelector=) chooses."""
    terms: list[tuple[str, str, bool]] = []
    for part in filter(None, (piece.strip() for piece in selector.split(","))):
        found = _EQUAL.match(part)
        if found is None:
            raise bad_request(f"invalid selector: '{part}'; can't understand '{part}'")
        terms.append((found["key"], found["value"], found["op"] != "!="))
    return lambda obj: all((_field(obj, path) == value) is wanted for path, value, wanted in terms)


def selector_matches(selector: dict[str, Any] | None, labels: Labels) -> bool:
    """Tell whether a LabelSelector object chooses `labels`; an absent one chooses nothing."""
    if selector is None:
        return False
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for term in selector.get("matchExpressions") or ():
        key, operator, values = term["key"], term["operator"], term.get("values") or ()
        matches = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not matches.get(operator, False):
            return False
    return True


def selector_text(selector: dict[str, Any] | None) -> str:
    """Write a LabelSelector object the way `status.selector` of a Scale has it."""
    if not selector:
        return ""
    parts = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    for term in selector.get("matchExpressions") or ():
        values = ",".join(sorted(term.get("values") or ()))
        forms = {
            "In": f"{term['key']} in ({values})",
            "NotIn": f"{term['key']} notin ({values})",
            "Exists": term["key"],
            "DoesNotExist": f"!{term['key']}",
        }
        parts.append(forms[term["operator"]])
    return ",".join(sorted(parts))
