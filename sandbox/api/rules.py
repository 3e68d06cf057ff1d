"""Evaluate x-kubernetes-validations: the CEL rules of a CustomResourceDefinition's schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from .messages import Cause, Object

_MISSING: Any = object()
_REASONS = {
    "FieldValueForbidden": "Forbidden",
    "FieldValueRequired": "Required value",
    "FieldValueDuplicate": "Duplicate value",
}


class _Rule(NamedTuple):
    text: str
    program: Any
    on_change: bool  # it compares with oldSelf, so it holds for updates only
    message: str
    expression: Any
    reason: str
    field: str


class Rules:
    """The compiled rules of one schema; `skipped` holds those that use functions which only Kubernetes has."""

    def __init__(self, schema: Object) -> None:
        self._schema = schema
        self._compiled: dict[int, list[_Rule]] = {}
        self.skipped: list[str] = []
        for node in _nodes(schema):
            if rules := [rule for each in node.get("x-kubernetes-validations", ()) if (rule := self._compile(each))]:
                self._compiled[id(node)] = rules

    def __bool__(self) -> bool:
        return bool(self._compiled)

    def _compile(self, rule: Object) -> _Rule | None:
        import cel  # half a second, and only a definition with rules needs it

        try:
            program = cel.compile(rule["rule"])
            expression = cel.compile(rule["messageExpression"]) if rule.get("messageExpression") else None
        except (ValueError, RuntimeError):
            self.skipped.append(rule["rule"])
            return None
        message = rule.get("message") or f"failed rule: {rule['rule'].strip()}"
        on_change = "oldSelf" in program.variables()
        reason = rule.get("reason", "FieldValueInvalid")
        return _Rule(rule["rule"], program, on_change, message, expression, reason, rule.get("fieldPath", ""))

    def check(self, obj: Object, old: Object | None) -> list[Cause]:
        """Return the rules that an object breaks."""
        return list(self._value(self._schema, obj, _MISSING if old is None else old, "")) if self._compiled else []

    def _value(self, node: Object, value: Any, old: Any, path: str) -> Iterator[Cause]:
        for rule in self._compiled.get(id(node), ()):
            if not rule.on_change or old is not _MISSING:
                yield from self._ask(rule, node, value, old, path)
        if isinstance(value, dict):
            fields, others = node.get("properties", {}), node.get("additionalProperties")
            for name, each in value.items():
                child = fields.get(name, others)
                if isinstance(child, dict):
                    before = old.get(name, _MISSING) if isinstance(old, dict) else _MISSING
                    yield from self._value(child, each, before, f"{path}.{name}" if path else name)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                yield from self._value(node.get("items") or {}, item, _before(node, item, old), f"{path}[{i}]")

    def _ask(self, rule: _Rule, node: Object, value: Any, old: Any, path: str) -> Iterator[Cause]:
        variables = {"self": value} if old is _MISSING else {"self": value, "oldSelf": old}
        kind = node.get("type", "object")
        try:
            if rule.program.execute(variables) is True:
                return
            message = rule.expression.execute(variables) if rule.expression else rule.message
        except KeyError as error:
            text = f"rule evaluation error: no such key: {error.args[0]} evaluating rule: {rule.text.strip()}"
            yield Cause(path, f'Invalid value: "{kind}": {text}')
            return
        except RuntimeError:
            # A function that only Kubernetes has is found out when it is called.
            if rule.text not in self.skipped:
                self.skipped.append(rule.text)
            return
        where = (path + rule.field).lstrip(".") if rule.field else path
        if rule.reason in _REASONS:
            yield Cause(where, f"{_REASONS[rule.reason]}: {message}", rule.reason)
        else:
            yield Cause(where, f'Invalid value: "{kind}": {message}')


def _before(node: Object, item: Any, old: Any) -> Any:
    """Return the item of the old list that has the same keys; others have no counterpart."""
    keys = node.get("x-kubernetes-list-map-keys")
    if not keys or not isinstance(old, list) or not isinstance(item, dict):
        return _MISSING
    same = (each for each in old if all(each.get(key) == item.get(key) for key in keys))
    return next(same, _MISSING)


def _nodes(node: Any) -> Iterator[Object]:
    if not isinstance(node, dict):
        return
    yield node
    for child in node.get("properties", {}).values():
        yield from _nodes(child)
    for name in ("items", "additionalProperties"):
        yield from _nodes(node.get(name))
