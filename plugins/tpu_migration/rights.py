"""Know the rights that an account needs in Kubernetes, and ask the cluster which of them it has not.

The manifests that people apply are the one list of them: what they grant is what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tpu_migration.clients.kubernetes import Kubernetes, Object
from tpu_migration.errors import PermanentError
from tpu_migration.resources import manifests


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one kind of thing; `everywhere`: in all namespaces, or on things that are in none."""

    verb: str
    group: str
    resource: str  # with its subresource: pods/proxy
    everywhere: bool = False

    def __str__(self) -> str:
        """Return it as a role names it."""
        return f"{self.verb} {self.resource}{' in the whole cluster' if self.everywhere else ''}"


# A look at the namespace's labels, which only warns: where it may not be made, the page says so.
OPTIONAL = frozenset({Right("get", "", "namespaces", everywhere=True)})


def granted_by(manifest: str) -> tuple[Right, ...]:
    """Return what the roles of a file of include/manifests grant, one by one and in its order."""
    return tuple(
        Right(verb, group, resource, role["kind"] == "ClusterRole")
        for role in manifests(manifest)
        for rule in role.get("rules", ())
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    )


def lacking(
    kube: Kubernetes,
    namespace: str,
    needed: Iterable[Right],
    together: Callable[[Sequence[Callable[[], Any]]], list[Any]] | None = None,
) -> list[Right]:
    """Return the rights that this client has not: one question for all of them, then one for each that it left open.

    A SelfSubjectRulesReview lists what RBAC grants, and what is listed is granted. What is not listed may still be
    granted by an authorizer that makes no lists, such as GKE's for IAM, so a SelfSubjectAccessReview has the word:
    https://kubernetes.io/docs/reference/kubernetes-api/definitions/subject-rules-review-status-v1-authorization/
    """
    try:
        rules = kube.rules(namespace)
    except PermanentError:  # a cluster that gives no such lists answers single questions
        rules = []
    # The list is of one namespace, and does not tell a rule of it from one of all.
    left = [each for each in needed if each.everywhere or not any(_grants(rule, each) for rule in rules)]
    asked = [partial(_may, kube, namespace, each) for each in left]
    answers = together(asked) if together else [ask() for ask in asked]
    return [each for each, allowed in zip(left, answers, strict=True) if not allowed]


def _may(kube: Kubernetes, namespace: str, right: Right) -> bool:
    return kube.may(right.verb, right.group, right.resource, None if right.everywhere else namespace)


def _grants(rule: Object, right: Right) -> bool:
    """Tell whether a rule grants a right on every object of its kind; one by names does not."""
    _, _, subresource = right.resource.partition("/")
    return not rule.get("resourceNames") and (
        _holds(rule, "verbs", right.verb)
        and _holds(rule, "apiGroups", right.group)
        and (_holds(rule, "resources", right.resource) or f"*/{subresource}" in (rule.get("resources") or ()))
    )


def _holds(rule: Object, field: str, wanted: str) -> bool:
    given = rule.get(field) or ()
    return wanted in given or "*" in given
