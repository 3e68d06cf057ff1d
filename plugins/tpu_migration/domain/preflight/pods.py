"""Read from a Deployment what its pods need before they start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tpu_migration.domain.preflight.findings import Object


@dataclass(frozen=True)
class Reference:
    """Hold what a pod cannot start without: a Secret or a ConfigMap, and the key of it if only one is read."""

    kind: str
    name: str
    key: str = ""


def containers_of(deployment: Object) -> list[dict[str, Any]]:
    """Return a Deployment's init containers and containers."""
    spec = pod_spec(deployment)
    return [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]


def references(deployment: Object) -> list[Reference]:
    """Return the Secrets and ConfigMaps that a pod of the Deployment does not start without; optional ones left out."""
    found: dict[Reference, None] = {}

    def add(kind: str, name: str | None, source: Object, key: str = "") -> None:
        if name and not source.get("optional"):
            found[Reference(kind, name, key)] = None

    for container in containers_of(deployment):
        for entry in container.get("envFrom") or []:
            for kind, source in (("Secret", entry.get("secretRef")), ("ConfigMap", entry.get("configMapRef"))):
                add(kind, (source or {}).get("name"), source or {})
        for variable in container.get("env") or []:
            value = variable.get("valueFrom") or {}
            for kind, source in (("Secret", value.get("secretKeyRef")), ("ConfigMap", value.get("configMapKeyRef"))):
                add(kind, (source or {}).get("name"), source or {}, (source or {}).get("key", ""))
    for volume in pod_spec(deployment).get("volumes") or []:
        for source in [volume, *((volume.get("projected") or {}).get("sources") or [])]:
            secret, config = source.get("secret") or {}, source.get("configMap") or {}
            add("Secret", secret.get("secretName") or secret.get("name"), secret)
            add("ConfigMap", config.get("name"), config)
    return list(found)


def claims_of(deployment: Object) -> list[str]:
    """Return the names of the PersistentVolumeClaims that the pods mount."""
    volumes = pod_spec(deployment).get("volumes") or []
    return [name for each in volumes if (name := (each.get("persistentVolumeClaim") or {}).get("claimName"))]


def pod_spec(deployment: Object) -> dict[str, Any]:
    """Return the spec of a Deployment's pods."""
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec
