"""Be GKE Warden for TPU pods: refuse those that do not say which slice they want.

The words are those that people report of Standard clusters; the sentence about who asked, which ends the real
message, is left out. Only pods are looked at: a Deployment is taken, and its ReplicaSet reports the refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox.api.messages import ApiError, dumps

_TPU = "google.com/tpu"
_COMPUTE_CLASS = "cloud.google.com/compute-class"  # chooses the slice by itself
_WANTED = ("cloud.google.com/gke-tpu-accelerator", "cloud.google.com/gke-tpu-topology")


def review(plural: str, obj: Mapping[str, Any]) -> None:
    """Raise ApiError (400) for a pod that asks for TPU chips without both selectors."""
    if plural != "pods" or not _asks_for_tpu(obj["spec"]):
        return
    selected = _selected(obj["spec"])
    if _COMPUTE_CLASS in selected:
        return
    missing = [f"Missing nodeSelector/nodeAffinity label {label}." for label in _WANTED if label not in selected]
    if missing:
        details = dumps({"[denied by tpu-accelerator-topology-constraints]": missing}).decode()
        raise ApiError(
            400,
            "GKE Warden constraints violations",
            'admission webhook "warden-validating.common-webhooks.networking.gke.io" denied the request: GKE Warden'
            f" rejected the request because it violates one or more constraints.\nViolations details: {details}",
        )


def _asks_for_tpu(spec: Mapping[str, Any]) -> bool:
    containers = [*(spec.get("initContainers") or ()), *spec["containers"]]
    return any(
        _TPU in (container.get("resources") or {}).get(kind, ())
        for container in containers
        for kind in ("limits", "requests")
    )


def _selected(spec: Mapping[str, Any]) -> set[str]:
    """Return the labels by which a pod chooses its nodes."""
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = required.get("nodeSelectorTerms") or ()
    return {*(spec.get("nodeSelector") or ()), *(e["key"] for t in terms for e in t.get("matchExpressions") or ())}
