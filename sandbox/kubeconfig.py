"""Read and write kubeconfigs: how to reach a Kubernetes API, and as whom."""

from __future__ import annotations

import base64
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Access:
    """A Kubernetes API's URL, the file of its authority (None: the system's), and a token or a client certificate.

    `cert_file` and `key_file` are PEM files, both or none.
    """

    url: str
    ca_file: str | None
    token: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def tls(self) -> ssl.SSLContext:
        """Return the context that checks the server and shows the client certificate, if there is one."""
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context


class UnusableKubeconfig(ValueError):
    """A kubeconfig cannot be used; the message names the remedy."""


def write_kubeconfig(path: Path, access: Access, user: str, namespace: str) -> Path:
    """Write a kubeconfig that only its owner can read; certificates are in it, so that it can be moved."""
    cluster: dict[str, Any] = {"server": access.url}
    if access.ca_file:
        cluster["certificate-authority-data"] = _encoded(access.ca_file)
    credentials: dict[str, Any] = {}
    if access.token:
        credentials["token"] = access.token
    if access.cert_file and access.key_file:
        credentials["client-certificate-data"] = _encoded(access.cert_file)
        credentials["client-key-data"] = _encoded(access.key_file)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "sandbox", "cluster": cluster}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "sandbox", "context": {"cluster": "sandbox", "user": user, "namespace": namespace}}],
        "current-context": "sandbox",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    return _write(path, yaml.safe_dump(config, sort_keys=False).encode())


def read_kubeconfig(path: Path, directory: Path) -> Access:
    """Return the access that a kubeconfig's current context gives; what is inline is written to `directory`.

    Raises UnusableKubeconfig for a user with neither a token nor a client certificate: the sandbox runs no
    credential plugins.
    """
    try:
        config = yaml.safe_load(path.read_text())
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"]).get("user") or {}
    except (OSError, KeyError, TypeError, StopIteration, yaml.YAMLError) as error:
        raise UnusableKubeconfig(f"{path} is no kubeconfig with a current context: {error!r}") from error

    def file(holder: dict[str, Any], key: str, name: str) -> str | None:
        if f"{key}-data" in holder:
            return str(_write(directory / name, base64.b64decode(holder[f"{key}-data"])))
        # As kubectl: a relative path starts at the kubeconfig.
        return str(path.parent / holder[key]) if key in holder else None

    token_file = user.get("tokenFile")
    access = Access(
        cluster["server"],
        file(cluster, "certificate-authority", "cluster-ca.crt"),
        user.get("token") or ((path.parent / token_file).read_text().strip() if token_file else None),
        file(user, "client-certificate", "cluster-client.crt"),
        file(user, "client-key", "cluster-client.key"),
    )
    if not access.token and not (access.cert_file and access.key_file):
        raise UnusableKubeconfig(
            f"{path}: user {context['user']!r} has neither a token nor a client certificate; "
            "put a token of `kubectl create token` there"
        )
    return access


def _named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(item for item in items if item["name"] == name)


def _encoded(file: str) -> str:
    return base64.b64encode(Path(file).read_bytes()).decode()


def _write(path: Path, content: bytes) -> Path:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return path
