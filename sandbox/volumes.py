"""Give a pod's volumes a place on this machine.

There are no mount namespaces here: a volume is a directory, and a native process finds it because the
paths in its arguments and environment that lie under a mountPath are rewritten to that directory. Engines
get the same table in SANDBOX_MOUNTS.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sandbox.container_env import CONFIG_MAP, SECRET, ConfigError

Object = dict[str, Any]


def volume_references(pod: Object) -> set[tuple[str, str]]:
    """Return the ConfigMaps and Secrets that the pod mounts."""
    found = set()
    for volume in pod["spec"].get("volumes") or []:
        if "configMap" in volume:
            found.add((CONFIG_MAP, volume["configMap"]["name"]))
        if "secret" in volume:
            found.add((SECRET, volume["secret"]["secretName"]))
    return found


def place(
    pod: Object, container: Object, directory: Path, files: Mapping[tuple[str, str], Mapping[str, bytes]]
) -> dict[str, Path]:
    """Make the directories that the container mounts; return {mountPath: directory}, longest path first.

    `files` holds the content of ConfigMaps and Secrets. A claim's directory outlives the pod, everything
    else belongs to it. Volumes of other kinds are left out. Raises ConfigError if an object is missing.
    """
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or []}
    placed: dict[str, Path] = {}
    for mount in container.get("volumeMounts") or []:
        volume = volumes.get(mount["name"])
        path = volume and _directory(pod, volume, directory)
        if not volume or path is None:
            continue
        path.mkdir(parents=True, exist_ok=True)
        _fill(volume, path, files)
        placed[mount["mountPath"].rstrip("/")] = path / mount.get("subPath", "")
    return dict(sorted(placed.items(), key=lambda item: -len(item[0])))


def _directory(pod: Object, volume: Object, directory: Path) -> Path | None:
    metadata = pod["metadata"]
    if "persistentVolumeClaim" in volume:
        return directory / "claims" / f"{metadata['namespace']}_{volume['persistentVolumeClaim']['claimName']}"
    if any(kind in volume for kind in ("emptyDir", "configMap", "secret")):
        return directory / metadata["uid"] / volume["name"]
    return None


def _fill(volume: Object, path: Path, files: Mapping[tuple[str, str], Mapping[str, bytes]]) -> None:
    for field, name_key, kind in (("configMap", "name", CONFIG_MAP), ("secret", "secretName", SECRET)):
        if field not in volume:
            continue
        name = volume[field][name_key]
        content = files.get((kind, name))
        if content is None and not volume[field].get("optional"):
            raise ConfigError(f'{kind.removesuffix("s")} "{name}" not found')
        chosen = {item["key"]: item["path"] for item in volume[field].get("items") or []}
        for key, data in (content or {}).items():
            if chosen and key not in chosen:
                continue
            target = path / chosen.get(key, key)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def content_of(kind: str, item: Object) -> dict[str, bytes]:
    """Return the data of a ConfigMap or Secret as bytes."""
    if kind == SECRET:
        return {key: base64.b64decode(value) for key, value in (item.get("data") or {}).items()}
    plain = {key: value.encode() for key, value in (item.get("data") or {}).items()}
    binary = {key: base64.b64decode(value) for key, value in (item.get("binaryData") or {}).items()}
    return plain | binary


def rewrite(text: str, mounts: Mapping[str, Path]) -> str:
    """Replace a mount path at the start of the text, or after the "=" of `--flag=path`."""
    flag, equals, value = text.partition("=") if text.startswith("-") else ("", "", text)
    for mount, path in mounts.items():
        if value == mount or value.startswith(f"{mount}/"):
            return f"{flag}{equals}{path}{value[len(mount) :]}"
    return text
