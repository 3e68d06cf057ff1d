"""An API with its controllers, to install definitions in; and the published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox.api import Api, ApiError, LocalClient, Request
from sandbox.clock import VirtualClock
from sandbox.controllers import Manager

CRDS = Path(__file__).resolve().parents[3] / "shared" / "crds"
FILES = sorted(CRDS.glob("*.yaml"))
needs_crds = pytest.mark.skipif(not FILES, reason="the definitions of ../shared are not on this machine")
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class World:
    """An API with its controllers, and short ways to call it."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.api = Api(self.clock)
        self.manager = Manager(self.api, self.clock)
        LocalClient(self.api).create("namespaces", {"metadata": {"name": "inference"}})

    def send(self, method: str, path: str, body: Any = None, kind: str = "application/json", **query: str) -> Any:
        """Send a request; return its answer, or raise its refusal."""
        data = b"" if body is None else json.dumps(body).encode()
        response = self.api.handle(Request(method, path, query, {"content-type": kind}, data))
        answer = response.json() if response.body.startswith(b"{") else {"message": response.body.decode()}
        if response.status >= 400:
            raise ApiError(response.status, answer.get("reason", ""), answer["message"], answer.get("details"))
        self.manager.settle()
        return answer

    def install(self, file: Path) -> None:
        self.send("POST", DEFINITIONS, yaml.load(file.read_text(), Loader=yaml.CSafeLoader))
