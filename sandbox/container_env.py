"""Work out a container's environment, command and arguments as the kubelet does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Object = dict[str, Any]
# (kind, name) → its data as text; what is not there is missing from the mapping.
Sources = Mapping[tuple[str, str], Mapping[str, str]]

CONFIG_MAP, SECRET = "configmaps", "secrets"
_SUBSCRIPT = re.compile(r"^metadata\.(labels|annotations)\['(.+)'\]$")


class ConfigError(Exception):
    """A reference of the container cannot be resolved: the kubelet's CreateContainerConfigError."""


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace each $(NAME) that is known; `$$` escapes, what is unknown stays as it is."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^()]*)\)", replace, text)


def references(container: Object) -> set[tuple[str, str]]:
    """Return the ConfigMaps and Secrets that the environment of the container refers to."""
    found = set()
    for source in container.get("envFrom") or []:
        for key, kind in (("configMapRef", CONFIG_MAP), ("secretRef", SECRET)):
            if key in source:
                found.add((kind, source[key]["name"]))
    for variable in container.get("env") or []:
        origin = variable.get("valueFrom") or {}
        for key, kind in (("configMapKeyRef", CONFIG_MAP), ("secretKeyRef", SECRET)):
            if key in origin:
                found.add((kind, origin[key]["name"]))
    return found


def resolve(container: Object, pod: Object, sources: Sources) -> dict[str, str]:
    """Return the variables that the manifest gives the container; raises ConfigError."""
    env: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        for key, kind in (("configMapRef", CONFIG_MAP), ("secretRef", SECRET)):
            if key in source:
                data = _data(source[key], kind, sources)
                env |= {f"{source.get('prefix', '')}{name}": value for name, value in data.items()}
    for variable in container.get("env") or []:
        origin = variable.get("valueFrom")
        if origin:
            value = _value_from(origin, pod, sources)
            if value is not None:
                env[variable["name"]] = value
        else:
            env[variable["name"]] = expand(variable.get("value") or "", env)
    return env


def _data(reference: Object, kind: str, sources: Sources) -> Mapping[str, str]:
    data = sources.get((kind, reference["name"]))
    if data is None and not reference.get("optional"):
        raise ConfigError(f'{kind.removesuffix("s")} "{reference["name"]}" not found')
    return data or {}


def _value_from(origin: Object, pod: Object, sources: Sources) -> str | None:
    for key, kind in (("configMapKeyRef", CONFIG_MAP), ("secretKeyRef", SECRET)):
        if key in origin:
            reference = origin[key]
            value = _data(reference, kind, sources).get(reference["key"])
            if value is None and not reference.get("optional"):
                raise ConfigError(f"couldn't find key {reference['key']} in {kind} {reference['name']}")
            return value
    if "fieldRef" in origin:
        return field(origin["fieldRef"]["fieldPath"], pod)
    raise ConfigError(f"the sandbox knows no env valueFrom {sorted(origin)}")


def field(path: str, pod: Object) -> str:
    """Return what the downward API gives for a field path; raises ConfigError for one it does not know."""
    if match := _SUBSCRIPT.match(path):
        return str((pod["metadata"].get(match[1]) or {}).get(match[2], ""))
    status = pod.get("status") or {}
    known = {
        "metadata.name": pod["metadata"]["name"],
        "metadata.namespace": pod["metadata"]["namespace"],
        "metadata.uid": pod["metadata"]["uid"],
        "spec.nodeName": pod["spec"].get("nodeName", ""),
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName", "default"),
        "status.podIP": status.get("podIP", ""),
        "status.podIPs": status.get("podIP", ""),
        "status.hostIP": status.get("hostIP", ""),
    }
    if path not in known:
        raise ConfigError(f"the sandbox knows no fieldRef {path}")
    return str(known[path])
