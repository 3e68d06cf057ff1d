"""Move a pod's scheduling from GPU nodes to the nodes of a TPU slice."""

from __future__ import annotations

import re
from typing import Any

from tpu_migration.domain.accelerators import Slice
from tpu_migration.domain.translation.labels import Identity, selects
from tpu_migration.domain.translation.model import Manifest, Notes

_GPU_KEYS = re.compile(
    r"cloud\.google\.com/(gke-accelerator(-count)?|gke-gpu.*|gke-max-shared-clients-per-gpu|compute-class|machine-family"
    r"|gke-nodepool|gke-local-nvme-ssd|gke-ephemeral-storage-local-ssd|gke-spot|gke-provisioning|gke-flex-start"
    r"|reservation-.*|gke-tpu-.*|gke-tcpx.*)$"
    r"|(.*\.)?nvidia\.com/.*|(node|beta)\.kubernetes\.io/instance-type$|kubernetes\.io/hostname$|feature\.node\.kubernetes\.io/pci.*"
)
_GPU_TAINTS = re.compile(
    r"(.*\.)?nvidia\.com/.*|cloud\.google\.com/(gke-accelerator|compute-class|gke-gpu.*)|gpu|.*[/-]gpu", re.I
)
_PLACES = {"topology.kubernetes.io/zone", "topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/zone"}
_WHY = "it names the GPU's nodes"
HOSTNAME = "kubernetes.io/hostname"


def rewrite(
    pod: Manifest, target: Slice, identity: Identity, source_labels: dict[str, str], notes: Notes, path: str
) -> None:
    """Replace node selectors, affinity, tolerations and spreading."""
    _node_selector(pod, target, notes, path)
    for key in ("nodeName", "runtimeClassName", "schedulingGates", "resourceClaims"):
        if key in pod:
            notes.change(f"{path}.{key}", pod.pop(key), None, _WHY)
    _tolerations(pod, target, notes, path)
    affinity = pod.get("affinity") or {}
    _node_affinity(affinity, notes, path)
    _pod_affinity(affinity, identity, source_labels, notes, path)
    _apart(affinity, identity, notes, path)
    pod["affinity"] = affinity
    for rule in pod.get("topologySpreadConstraints") or []:
        if selects(rule.get("labelSelector"), source_labels):
            old = rule.get("labelSelector")
            rule["labelSelector"] = {"matchLabels": dict(identity.selector)}
            rule.pop("matchLabelKeys", None)
            notes.change(f"{path}.topologySpreadConstraints", old, rule["labelSelector"], "it spreads its own pods")


def _node_selector(pod: Manifest, target: Slice, notes: Notes, path: str) -> None:
    selector = {}
    for key, value in (pod.get("nodeSelector") or {}).items():
        if _GPU_KEYS.match(key):
            notes.change(f"{path}.nodeSelector {key}", value, None, _WHY)
            continue
        selector[key] = value
        if key in _PLACES:
            notes.warn(f"{path}.nodeSelector {key}", f"the pod stays in {value}", "see that the TPU node pool is there")
    for key, value in target.node_selectors.items():
        notes.change(f"{path}.nodeSelector {key}", None, value, "GKE Warden wants both TPU selectors")
        selector[key] = value
    pod["nodeSelector"] = selector


def _tolerations(pod: Manifest, target: Slice, notes: Notes, path: str) -> None:
    kept = []
    for toleration in pod.get("tolerations") or []:
        if _GPU_TAINTS.fullmatch(str(toleration.get("key", ""))):
            notes.change(f"{path}.tolerations", toleration, None, "a taint of GPU nodes")
        elif toleration.get("key") != target.taint.key:
            kept.append(toleration)
    own = target.taint.toleration()
    notes.change(f"{path}.tolerations", None, own, "GKE taints every TPU node so")
    pod["tolerations"] = [*kept, own]


def _node_affinity(affinity: Manifest, notes: Notes, path: str) -> None:
    rules = affinity.get("nodeAffinity")
    if not rules:
        return
    required = rules.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = [term for term in required.get("nodeSelectorTerms") or [] if _strip_term(term, notes, path)]
    rules.pop("requiredDuringSchedulingIgnoredDuringExecution", None)
    # Terms are alternatives: where one named only GPUs, any node was one of them.
    if terms and len(terms) == len(required.get("nodeSelectorTerms") or []):
        rules["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
    preferred = [
        item
        for item in rules.pop("preferredDuringSchedulingIgnoredDuringExecution", None) or []
        if _strip_term(item.get("preference") or {}, notes, path)
    ]
    if preferred:
        rules["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
    if not rules:
        affinity.pop("nodeAffinity")


def _strip_term(term: Manifest, notes: Notes, path: str) -> bool:
    """Take GPU expressions out of a term; tell whether anything is left."""
    for field in ("matchExpressions", "matchFields"):
        kept = []
        for expression in term.get(field) or []:
            if field == "matchFields" or _GPU_KEYS.match(str(expression.get("key"))):
                notes.change(f"{path}.affinity.nodeAffinity", expression, None, _WHY)
            else:
                kept.append(expression)
                if expression.get("key") in _PLACES:
                    notes.warn(
                        f"{path}.affinity", f"the pod stays in {expression.get('values')}", "see that TPUs are there"
                    )
        term.pop(field, None)
        if kept:
            term[field] = kept
    return bool(term)


def _pod_affinity(
    affinity: Manifest, identity: Identity, source_labels: dict[str, str], notes: Notes, path: str
) -> None:
    """Point the workload's rules about its own pods at the target's pods."""
    for kind in ("podAffinity", "podAntiAffinity"):
        rules = affinity.get(kind) or {}
        for when in (
            "requiredDuringSchedulingIgnoredDuringExecution",
            "preferredDuringSchedulingIgnoredDuringExecution",
        ):
            for item in rules.get(when) or []:
                term = item.get("podAffinityTerm", item)
                selector = term.get("labelSelector")
                if selector and selects(selector, source_labels):
                    term["labelSelector"] = {"matchLabels": dict(identity.selector)}
                    term.pop("matchLabelKeys", None)
                    why = "it is about the workload's own pods"
                    notes.change(f"{path}.affinity.{kind}", selector, term["labelSelector"], why)


def _apart(affinity: Manifest, identity: Identity, notes: Notes, path: str) -> None:
    """Keep two replicas off one node: a node that fails or is serviced takes one of them only."""
    term: dict[str, Any] = {"labelSelector": {"matchLabels": dict(identity.selector)}, "topologyKey": HOSTNAME}
    rules = affinity.setdefault("podAntiAffinity", {})
    required = rules.setdefault("requiredDuringSchedulingIgnoredDuringExecution", [])
    if term not in required:
        required.append(term)
        notes.change(f"{path}.affinity.podAntiAffinity", None, term, "a node that fails takes one replica only")
