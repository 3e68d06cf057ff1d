"""Give the target's pods labels that no selector of the source matches, and the other way round."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tpu_migration.domain.translation.model import NAME_LIMIT, Manifest, Notes, shorten

# Only the target's pods carry it; its value is the target Deployment's name.
TARGET_LABEL = "tpu-migration/target"

# Labels by which Services and tools tell workloads apart, whether their selectors were given or not.
_IDENTITY = frozenset(
    {
        "app",
        "name",
        "run",
        "k8s-app",
        "service",
        "release",
        "deployment",
        "deploymentName",
        "component",
        "model",
        "app.kubernetes.io/name",
        "app.kubernetes.io/instance",
        "app.kubernetes.io/component",
        "ai.gke.io/model",
        "llm-d.ai/model",
        "serving.kserve.io/inferenceservice",
    }
)
_TOOLS = (
    "app.kubernetes.io/managed-by",
    "helm.sh/chart",
    "argocd.argoproj.io/",
    "kustomize.toolkit.fluxcd.io/",
    "helm.toolkit.fluxcd.io/",
    "pod-template-hash",
    "controller-uid",
)

# An empty selector of these means every pod: no label escapes it, and none needs to.
EVERY_POD = frozenset({"PodDisruptionBudget", "PodMonitoring", "PodMonitor"})
_SELECTING = EVERY_POD | {"Deployment", "ReplicaSet", "StatefulSet", "DaemonSet"}

Selector = Mapping[str, Any]


@dataclass(frozen=True)
class Identity:
    """Hold the target's labels: of its objects, its pods, and what selects these pods and nothing else."""

    labels: dict[str, str]
    pod_labels: dict[str, str]
    selector: dict[str, str]
    keys: frozenset[str]
    suffix: str

    def of(self, metadata: Any) -> dict[str, str]:
        """Give a copied object labels of its own, so that no selector takes it for the source's."""
        own = _own(_texts(metadata))
        found = {key: _other(value, self.suffix) if key in self.keys else value for key, value in own.items()}
        return {**found, TARGET_LABEL: self.pod_labels[TARGET_LABEL]}


def selects(selector: Selector | None, labels: Mapping[str, str]) -> bool:
    """Tell whether a label selector (matchLabels, matchExpressions) matches; an empty one matches everything."""
    selector = selector or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for expression in selector.get("matchExpressions") or []:
        key, values = expression.get("key"), expression.get("values") or []
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not holds.get(str(expression.get("operator")), False):
            return False
    return True


def pod_selector(document: Manifest) -> Selector | None:
    """Give the selector by which an object picks pods; None for one that picks none."""
    spec = document.get("spec") or {}
    selector = spec.get("selector")
    kind = document.get("kind")
    if kind in {"Service", "ReplicationController"}:
        return {"matchLabels": selector} if selector else None
    if kind == "InferencePool" and selector:
        # v1 has matchLabels, v1alpha2 a plain mapping.
        return selector if "matchLabels" in selector else {"matchLabels": selector}
    if kind in _SELECTING:
        return selector if isinstance(selector, dict) else None
    return None


def identity(
    deployment: Manifest,
    rivals: Callable[[Mapping[str, str]], list[Selector]],
    selector_keys: Collection[str],
    name: str,
    suffix: str,
    notes: Notes,
) -> Identity:
    """Derive labels for the target.

    `rivals` finds the selectors, the source's own included, that match given labels though they must not;
    `selector_keys` are the labels that any selector around the source asks for.
    """
    spec = deployment.get("spec") or {}
    source = _texts((spec.get("template") or {}).get("metadata"))
    keys = _IDENTITY.union(selector_keys)
    base = _own(source)
    labels = base
    for attempt in range(1, 10):
        tail = suffix if attempt == 1 else f"{suffix}-{attempt}"
        labels = {key: _other(value, tail) if key in keys else value for key, value in base.items()}
        labels[TARGET_LABEL] = shorten(name, "")
        if _escape_all(rivals, labels, tail):
            break
    else:
        notes.block(
            "spec.template.metadata.labels",
            "a selector in this file matches every pod: users would be sent to the TPU at once",
            "give the Service a selector that names its workload",
        )
    why = "no Service of the source may select a TPU pod, and no Service of the target a GPU pod"
    for key in sorted(set(source) | set(labels)):
        notes.change(f"spec.template.metadata.labels {key}", source.get(key), labels.get(key), why)
    matched = spec.get("selector") or {}
    selector = {key: labels[key] for key in matched.get("matchLabels") or {} if key in labels}
    selector[TARGET_LABEL] = labels[TARGET_LABEL]
    notes.change("spec.selector", matched, {"matchLabels": selector}, why)
    found = Identity({}, labels, selector, keys, suffix)
    own = found.of(deployment.get("metadata"))
    why = "tools must not take the target for the source"
    notes.change("metadata.labels", (deployment.get("metadata") or {}).get("labels"), own, why)
    return replace(found, labels=own)


def _texts(metadata: Any) -> dict[str, str]:
    return {str(key): str(value) for key, value in ((metadata or {}).get("labels") or {}).items()}


def _escape_all(rivals: Callable[[Mapping[str, str]], list[Selector]], labels: dict[str, str], suffix: str) -> bool:
    """Change the labels until no rival matches; an escape from one can lead to another, so look again."""
    for _ in range(4):
        found = rivals(labels)
        if not found:
            return True
        for selector in found:
            _escape(selector, labels, suffix)
    return not rivals(labels)


def _own(labels: Mapping[str, str]) -> dict[str, str]:
    """Leave out the labels of tools that would take the target for theirs, and prune or revert it."""
    return {key: value for key, value in labels.items() if not key.startswith(_TOOLS)}


def _other(value: str, suffix: str) -> str:
    return shorten(value, suffix) if value else suffix.strip("-._")[:NAME_LIMIT]


def _escape(selector: Selector, labels: dict[str, str], suffix: str) -> None:
    """Change the labels so that a selector made of expressions does not match them."""
    if not selects(selector, labels):
        return
    for expression in selector.get("matchExpressions") or []:
        key, operator = str(expression.get("key")), expression.get("operator")
        values = [str(value) for value in expression.get("values") or []]
        if operator == "In":
            labels[key] = _other(labels[key], suffix)
        elif operator == "Exists":
            labels.pop(key, None)
        elif operator == "NotIn" and values:
            labels[key] = values[0]
        elif operator == "DoesNotExist":
            labels[key] = "tpu"
        if not selects(selector, labels):
            return
