"""Decide whether a node suits a pod, and say why not: pure."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from sandbox.api.messages import Object
from sandbox.api.quantities import parse
from sandbox.api.selectors import selector_matches

Amounts = dict[str, Fraction]
AFFINITY = "node(s) didn't match Pod's node affinity/selector"


def requests(pod: Object) -> Amounts:
    """Return what a pod asks for: its containers together, or its largest init container."""
    spec = pod["spec"]
    together: Amounts = {"pods": Fraction(1)}
    for container in spec.get("containers", ()):
        for name, amount in container.get("resources", {}).get("requests", {}).items():
            together[name] = together.get(name, Fraction(0)) + parse(amount)
    for container in spec.get("initContainers", ()):
        for name, amount in container.get("resources", {}).get("requests", {}).items():
            together[name] = max(together.get(name, Fraction(0)), parse(amount))
    return together


def tolerates(toleration: Object, taint: Object) -> bool:
    """Tell whether a toleration covers a taint."""
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    key, operator = toleration.get("key"), toleration.get("operator") or "Equal"
    if not key:
        return operator == "Exists"
    if key != taint["key"]:
        return False
    return operator == "Exists" or (toleration.get("value") or "") == (taint.get("value") or "")


def untolerated(pod: Object, node: Object) -> Object | None:
    """Return the first taint that keeps a pod off a node."""
    tolerations = pod["spec"].get("tolerations", ())
    taints = list(node.get("spec", {}).get("taints", ()))
    for each in node.get("status", {}).get("conditions", ()):
        if each["type"] == "Ready" and each["status"] != "True":
            taints.append({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"})
    for taint in taints:
        if taint["effect"] == "PreferNoSchedule":
            continue
        if not any(tolerates(t, taint) for t in tolerations):
            return taint
    return None


def _term_matches(term: Object, node: Object) -> bool:
    labels = node["metadata"].get("labels", {})
    for requirement in term.get("matchExpressions") or ():
        value = labels.get(requirement["key"])
        if requirement["operator"] in ("Gt", "Lt"):
            limit = int(requirement["values"][0])
            if value is None or not value.lstrip("-").isdigit():
                return False
            if not (int(value) > limit if requirement["operator"] == "Gt" else int(value) < limit):
                return False
        elif not selector_matches({"matchExpressions": [requirement]}, labels):
            return False
    for requirement in term.get("matchFields") or ():
        inside = node["metadata"]["name"] in requirement["values"]
        if inside is not (requirement["operator"] == "In"):
            return False
    return bool(term)


def selects(pod: Object, node: Object) -> bool:
    """Tell whether a pod's nodeSelector and required node affinity take a node."""
    labels = node["metadata"].get("labels", {})
    if not (pod["spec"].get("nodeSelector") or {}).items() <= labels.items():
        return False
    affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    return required is None or any(_term_matches(t, node) for t in required["nodeSelectorTerms"])


def shortages(wanted: Amounts, node: Object, used: Amounts) -> list[str]:
    """Return what a node has too little of."""
    allocatable = node.get("status", {}).get("allocatable", {})
    short = []
    for name, amount in wanted.items():
        if name == "pods" and name not in allocatable:
            continue
        if used.get(name, Fraction(0)) + amount > parse(str(allocatable.get(name, "0"))):
            short.append("Too many pods" if name == "pods" else f"Insufficient {name}")
    return short


def repels(pod: Object, node: Object, neighbours: Iterable[tuple[Object, Object]]) -> str | None:
    """Say which rule about other pods keeps a pod off a node; `neighbours` are (pod, its node)."""
    meta = pod["metadata"]
    labels = node["metadata"].get("labels", {})
    placed = [(p, n) for p, n in neighbours if p["metadata"]["namespace"] == meta["namespace"]]
    anti = pod["spec"].get("affinity", {}).get("podAntiAffinity", {})
    for term in anti.get("requiredDuringSchedulingIgnoredDuringExecution") or ():
        key = term["topologyKey"]
        for other, where in placed:
            same = where["metadata"].get("labels", {}).get(key) == labels.get(key) and key in labels
            if same and selector_matches(term.get("labelSelector"), other["metadata"].get("labels", {})):
                return "node(s) didn't match pod anti-affinity rules"
    for constraint in pod["spec"].get("topologySpreadConstraints") or ():
        if constraint["whenUnsatisfiable"] == "DoNotSchedule" and _skews(constraint, labels, placed):
            return "node(s) didn't match pod topology spread constraints"
    return None


def _skews(constraint: Object, labels: dict[str, str], placed: list[tuple[Object, Object]]) -> bool:
    key = constraint["topologyKey"]
    if key not in labels:
        return True
    counts: dict[str, int] = {value: 0 for value in constraint.get("domains", ())}
    counts.setdefault(labels[key], 0)
    for other, where in placed:
        domain = where["metadata"].get("labels", {}).get(key)
        if domain and selector_matches(constraint.get("labelSelector"), other["metadata"].get("labels", {})):
            counts[domain] = counts.get(domain, 0) + 1
    return counts[labels[key]] + 1 - min(counts.values()) > constraint["maxSkew"]
