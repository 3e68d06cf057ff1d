"""Keep what a running sandbox tells others: DIR/state.json, kubeconfigs, faults."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sandbox.supervisor import start_time

STATE_FILE = "state.json"
FAULTS_FILE = "faults.json"
DEFAULT_DIRECTORY = Path(".sandbox")


class NotUp(Exception):
    """There is no sandbox in the directory."""


def write_state(directory: Path, state: Mapping[str, Any]) -> None:
    """Replace DIR/state.json in one step."""
    temporary = directory / f"{STATE_FILE}.new"
    temporary.write_text(json.dumps(state, indent=2) + "\n")
    temporary.chmod(0o600)
    temporary.replace(directory / STATE_FILE)


def read_state(directory: Path) -> dict[str, Any]:
    """Return the content of DIR/state.json; raises NotUp if there is none."""
    path = directory / STATE_FILE
    if not path.exists():
        raise NotUp(f"no sandbox in {directory}: run `python -m sandbox up --dir {directory}`")
    return dict(json.loads(path.read_text()))


def is_up(state: Mapping[str, Any]) -> bool:
    """Tell whether the supervisor that wrote the state is alive."""
    started = state.get("pid_started")
    return started is not None and start_time(int(state["pid"])) == started


@dataclass(frozen=True)
class Access:
    """How to reach a Kubernetes API: its URL, the file of its authority (None: the system's), a token."""

    url: str
    ca_file: str | None
    token: str | None


def write_kubeconfig(path: Path, access: Access, user: str, namespace: str) -> Path:
    """Write a kubeconfig that only its owner can read."""
    cluster: dict[str, Any] = {"server": access.url}
    if access.ca_file:
        cluster["certificate-authority-data"] = base64.b64encode(Path(access.ca_file).read_bytes()).decode()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "sandbox", "cluster": cluster}],
        "users": [{"name": user, "user": {"token": access.token}}],
        "contexts": [{"name": "sandbox", "context": {"cluster": "sandbox", "user": user, "namespace": namespace}}],
        "current-context": "sandbox",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        yaml.safe_dump(config, file, sort_keys=False)
    return path


def read_kubeconfig(path: Path, directory: Path) -> Access:
    """Return the access that a kubeconfig's current context gives; its CA is written to `directory`.

    Raises ValueError for a user without a bearer token: the sandbox's own clients know no other way.
    """
    config = yaml.safe_load(path.read_text())
    context = _named(config["contexts"], config["current-context"])["context"]
    cluster = _named(config["clusters"], context["cluster"])["cluster"]
    user = _named(config["users"], context["user"]).get("user") or {}
    token = user.get("token") or (Path(user["tokenFile"]).read_text().strip() if "tokenFile" in user else None)
    if token is None:
        raise ValueError(f"{path}: user {context['user']!r} has no token; put one of `kubectl create token` there")
    ca_file = cluster.get("certificate-authority")
    if "certificate-authority-data" in cluster:
        ca_path = directory / "cluster-ca.crt"
        ca_path.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
        ca_file = str(ca_path)
    return Access(cluster["server"], ca_file, token)


def _named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(item for item in items if item["name"] == name)
