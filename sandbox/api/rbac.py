"""Decide who may do what, from the stored Roles and bindings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .messages import Object
from .store import Change, Store

_RESOURCES = frozenset({"roles", "rolebindings", "clusterroles", "clusterrolebindings"})
_REMEMBERED = 4096  # decisions; the same few clients ask the same few things all the time


class Action(NamedTuple):
    """What somebody wants to do; `resource` includes the subresource ("pods/proxy")."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""


def groups_of(user: str) -> set[str]:
    """Return the groups that a user is in by its name."""
    if user == "system:anonymous":
        return {"system:unauthenticated"}
    groups = {"system:authenticated"}
    parts = user.split(":")
    if parts[:2] == ["system", "serviceaccount"] and len(parts) == 4:
        groups |= {"system:serviceaccounts", f"system:serviceaccounts:{parts[2]}"}
    return groups


def _is_subject(subject: Object, user: str, groups: set[str], namespace: str) -> bool:
    kind, name = subject.get("kind"), subject.get("name")
    if kind == "ServiceAccount":
        return user == f"system:serviceaccount:{subject.get('namespace') or namespace}:{name}"
    return name in groups if kind == "Group" else kind == "User" and name == user


def _allows(rule: Object, action: Action) -> bool:
    def covers(field: str, *wanted: str) -> bool:
        given: Iterable[str] = rule.get(field) or ()
        return "*" in given or any(each in given for each in wanted)

    subresource = action.resource.partition("/")[2]
    wanted = (action.resource, f"*/{subresource}") if subresource else (action.resource,)
    names = rule.get("resourceNames") or ()
    return (
        covers("verbs", action.verb)
        and covers("apiGroups", action.group)
        and covers("resources", *wanted)
        and (not names or action.name in names)
    )


class Authorizer:
    """Evaluate RBAC over a store; superusers and members of system:masters may do all."""

    def __init__(self, store: Store, superusers: Iterable[str]) -> None:
        self._store = store
        self.superusers = set(superusers)
        # The rules of a user in a namespace, and whether any of them speaks of single objects.
        self._rules_of: dict[tuple[str, str], tuple[list[Object], bool]] = {}
        self._decided: dict[tuple[str, Action], bool] = {}
        store.listen(self._forget)

    def _forget(self, change: Change) -> None:
        if change.resource in _RESOURCES:
            self._rules_of.clear()
            self._decided.clear()

    def allows(self, user: str, action: Action) -> bool:
        """Tell whether `user` may do `action`."""
        if user in self.superusers:
            return True
        where = (user, action.namespace)
        if where not in self._rules_of:
            found = list(self._rules(user, groups_of(user), action.namespace))
            self._rules_of[where] = found, any(rule.get("resourceNames") for rule in found)
        rules, by_name = self._rules_of[where]
        if not by_name:
            action = action._replace(name="")  # which object it is makes no difference
        asked = (user, action)
        if asked not in self._decided:
            if len(self._decided) >= _REMEMBERED:
                self._decided.clear()
            self._decided[asked] = any(_allows(rule, action) for rule in rules)
        return self._decided[asked]

    def rules(self, user: str, namespace: str) -> list[Object]:
        """Return the rules that hold for `user` in a namespace."""
        if user in self.superusers:
            return [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
        return list(self._rules(user, groups_of(user), namespace))

    def _rules(self, user: str, groups: set[str], namespace: str) -> Iterator[Object]:
        yield from self._bound("clusterrolebindings", None, user, groups)
        if namespace:
            yield from self._bound("rolebindings", namespace, user, groups)

    def _bound(self, resource: str, namespace: str | None, user: str, groups: set[str]) -> Iterator[Object]:
        for entry in self._store.list(resource, namespace):
            binding = entry.obj
            own = binding["metadata"].get("namespace", "")
            if not any(_is_subject(s, user, groups, own) for s in binding.get("subjects") or ()):
                continue
            reference = binding["roleRef"]
            cluster = reference["kind"] == "ClusterRole"
            role = self._store.get("clusterroles" if cluster else "roles", "" if cluster else own, reference["name"])
            if role is not None:
                yield from role.obj.get("rules") or ()

    def denial(self, user: str, action: Action) -> str:
        """Say what is denied, in the words of the real server."""
        where = f'in the namespace "{action.namespace}"' if action.namespace else "at the cluster scope"
        return f'User "{user}" cannot {action.verb} resource "{action.resource}" in API group "{action.group}" {where}'
