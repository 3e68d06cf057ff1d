"""Tell who else writes an object: a GitOps controller by itself, or Helm when somebody runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Owner:
    """Hold a controller that puts an object back to its declared state, what shows it, and the remedy for a route."""

    name: str
    evidence: str
    route_remedy: str


# Keys of labels and annotations, managers of fields, and what makes the controller leave backendRefs alone.
# https://argo-cd.readthedocs.io/en/stable/user-guide/diffing/, https://fluxcd.io/flux/components/kustomize/kustomizations/
_CONTROLLERS = {
    "Argo CD": (
        ("argocd.argoproj.io/tracking-id", "argocd.argoproj.io/instance"),
        ("argocd-controller", "argocd-application-controller"),
        "let it ignore the weights: ignoreDifferences on .spec.rules[].backendRefs, with the sync option "
        "RespectIgnoreDifferences=true",
    ),
    "Flux": (
        ("kustomize.toolkit.fluxcd.io/name", "helm.toolkit.fluxcd.io/name"),
        ("kustomize-controller", "helm-controller"),
        "suspend it for the time of the migration (flux suspend), or annotate the route with "
        "kustomize.toolkit.fluxcd.io/reconcile: disabled",
    ),
}


def gitops_owner(obj: Mapping[str, Any]) -> Owner | None:
    """Return the controller that owns the object, by its labels, annotations and managed fields."""
    metadata = obj["metadata"]
    marks = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
    writers = {each.get("manager") for each in metadata.get("managedFields") or []}
    for name, (keys, managers, remedy) in _CONTROLLERS.items():
        if key := next((key for key in keys if key in marks), None):
            return Owner(name, key, remedy)
        if manager := next((each for each in managers if each in writers), None):
            return Owner(name, f"field manager {manager}", remedy)
    return None


def helm_release(obj: Mapping[str, Any]) -> str | None:
    """Return the name of the Helm release that the object belongs to."""
    metadata = obj["metadata"]
    release = (metadata.get("annotations") or {}).get("meta.helm.sh/release-name")
    labels = metadata.get("labels") or {}
    if release:
        return str(release)
    if labels.get("app.kubernetes.io/managed-by") == "Helm":
        return str(labels.get("app.kubernetes.io/instance") or "of unknown name")
    return None
