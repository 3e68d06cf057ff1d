"""An API server with one node and the node agent, for the tests of the agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox import watchdog
from sandbox.addresses import loopback_network
from sandbox.api import Api
from sandbox.api.http import serve
from sandbox.clock import SystemClock
from sandbox.container_launch import Settings
from sandbox.faults import Faults
from sandbox.kube import KubeClient
from sandbox.kubeconfig import Access
from sandbox.node import NodeAgent
from sandbox.supervisor import Supervisor

DEADLINE_S = 60.0
SPEED = 200.0
NODE = {
    "metadata": {"name": "node-1", "labels": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}},
    "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.7"}]},
}
# Serves /health with what the file says, and ends itself on SIGTERM with code 0.
SERVER = """
import http.server, pathlib, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(pathlib.Path(sys.argv[2]).read_text())); self.end_headers()
    def log_message(self, *a): pass
signal.signal(signal.SIGTERM, lambda *a: sys.exit(0))
http.server.HTTPServer((sys.argv[1], 8000), Handler).serve_forever()
"""


class World:
    """An API server, one node, and the agent under test."""

    def __init__(self, kube: KubeClient, agent: NodeAgent, directory: Path, faults: Faults) -> None:
        self.kube, self.agent, self.directory, self.faults = kube, agent, directory, faults

    async def pod(self, name: str, *containers: dict, **spec) -> dict:
        """Create a pod that is bound to the node already."""
        body = {
            "metadata": {"name": name, "labels": {"app": "x"}},
            "spec": {"nodeName": "node-1", "containers": list(containers), **spec},
        }
        return await self.kube.create("pods", "default", body)

    async def get(self, name: str) -> dict | None:
        return await self.kube.get("pods", "default", name)

    async def until(self, name: str, holds, why: str) -> dict:
        """Poll a pod until `holds(pod)`; return it."""
        loop = asyncio.get_running_loop()
        end = loop.time() + DEADLINE_S
        while loop.time() < end:
            pod = await self.get(name)
            if holds(pod):
                return pod
            await asyncio.sleep(0.02)
        pytest.fail(f"not within {DEADLINE_S} s: {why}; last seen: {json.dumps((pod or {}).get('status'))}")

    async def eventually(self, holds) -> None:
        """Poll until `await holds()`."""
        async with asyncio.timeout(DEADLINE_S):
            while not await holds():
                await asyncio.sleep(0.02)

    def log(self, name: str, container: str = "main") -> str:
        path = self.directory / "pods" / f"default_{name}_{container}.log"
        return path.read_text() if path.exists() else ""

    async def until_log(self, name: str, text: str, container: str = "main") -> str:
        await self.until(name, lambda _: text in self.log(name, container), f"{text!r} in the log of {name}")
        return self.log(name, container)

    def processes(self) -> set[int]:
        return watchdog.members(self.agent.settings.supervisor.identity)


@contextlib.asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[World]:
    """Run the agent against an API server of its own until the block is left."""
    api = Api(SystemClock())
    server = await serve(api, "127.0.0.1", 0, None, None, lambda token: "admin")
    faults = Faults(tmp_path / "faults.json")
    async with (
        Supervisor(tmp_path / "logs") as supervisor,
        KubeClient(Access(f"http://127.0.0.1:{server.port}", None)) as kube,
    ):
        settings = Settings(kube, supervisor, tmp_path, SPEED, faults, tmp_path / "faults.json")
        agent = NodeAgent(settings, loopback_network(supervisor.identity), log=lambda line: None)
        node = await kube.create("nodes", None, NODE)
        await kube.update("nodes", None, "node-1", {**node, "status": NODE["status"]}, subresource="status")
        watching = asyncio.create_task(agent.run())
        yield World(kube, agent, tmp_path, faults)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await agent.stop()
    await server.close()


def shell(script: str, name: str = "main", **more) -> dict:
    return {"name": name, "image": "example.com/tools:1", "command": ["/bin/sh", "-c", script], **more}


def condition(pod: dict, kind: str) -> str | None:
    return next((c["status"] for c in pod["status"].get("conditions", []) if c["type"] == kind), None)


def state(pod: dict) -> dict:
    return container_status(pod).get("state", {})


def container_status(pod: dict) -> dict:
    """Return the first container's status, empty before the agent has written one."""
    return (pod["status"].get("containerStatuses") or [{}])[0]


def restarts(pod: dict) -> int:
    return container_status(pod).get("restartCount", 0)


def ready(pod: dict) -> bool:
    return condition(pod, "Ready") == "True"


def ended(pod: dict) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def state_reason(pod: dict) -> str | None:
    return state(pod).get("waiting", {}).get("reason")


def probe(**more) -> dict:
    return {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 1, "timeoutSeconds": 5, **more}


def server(health: Path, **more) -> dict:
    return {
        "name": "main",
        "image": "example.com/tools:1",
        "command": [sys.executable, "-c", SERVER],
        "args": ["$(IP)", str(health)],
        "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "ports": [{"name": "http", "containerPort": 8000}],
        **more,
    }
