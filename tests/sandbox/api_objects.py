"""Objects to send to the embedded API, and a short way to send them."""

from __future__ import annotations

import json
from typing import Any

from sandbox.api import Api, LocalClient, Request

NS = "inference"


def deployment(name: str = "web", **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "image": "web:1", "env": [{"name": "A", "value": "1"}]}
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    return {
        "metadata": {"name": name, "namespace": NS},
        "spec": {"selector": {"matchLabels": labels}, "template": template, **spec},
    }


def route(weight: int = 1) -> dict[str, Any]:
    backend = {"name": "a", "port": 80, "weight": weight}
    return {"metadata": {"name": "llm", "namespace": NS}, "spec": {"rules": [{"backendRefs": [backend]}]}}


def call(api: Api, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
    text = b"" if body is None else json.dumps(body).encode()
    return api.handle(Request(method, path, headers={"content-type": kind}, body=text))


def bound_pod(client: LocalClient, name: str = "p") -> dict[str, Any]:
    spec = {"containers": [{"name": "main", "image": "web:1"}], "nodeName": "n1"}
    return client.create("pods", {"metadata": {"name": name, "namespace": NS}, "spec": spec})
