"""Run kubectl in a namespace of its own, and read what it prints."""

from __future__ import annotations

import asyncio
import copy
import json
from dataclasses import dataclass
from typing import Any

from served_api import DEPLOYMENT, Cluster

NODE = {
    "metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/worker": ""}},
    "spec": {},
    "status": {
        "capacity": {"cpu": "64", "memory": "64Gi", "pods": "110"},
        "allocatable": {"cpu": "64", "memory": "64Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "test"},
    },
}


@dataclass
class Shell:
    """kubectl in a namespace of its own."""

    cluster: Cluster
    namespace: str

    async def run(self, line: str, *more: str, stdin: Any = None) -> str:
        """Run a command that must succeed; return what it wrote."""
        code, out = await self._run(line, more, stdin)
        assert code == 0, f"kubectl {line}: {out}"
        return out

    async def fails(self, line: str, *more: str, stdin: Any = None) -> str:
        """Run a command that must fail; return what it wrote."""
        code, out = await self._run(line, more, stdin)
        assert code != 0, f"kubectl {line}: {out}"
        return out

    async def _run(self, line: str, more: tuple[str, ...], stdin: Any) -> tuple[int, str]:
        text = stdin if isinstance(stdin, str) else json.dumps(stdin)
        return await self.cluster.kubectl(f"--namespace={self.namespace}", *line.split(), *more, stdin=text)

    async def rolled_out(self, **changes: Any) -> None:
        """Create the deployment `web`, and wait until its pods are ready."""
        await self.run("create -f -", stdin=deployment(**changes))
        await self.run("rollout status deployment/web --timeout=20s")

    def pods(self) -> list[dict[str, Any]]:
        return self.cluster.local.list("pods", self.namespace)

    def get(self, resource: str, name: str) -> dict[str, Any]:
        obj = self.cluster.local.get(resource, self.namespace, name)
        assert obj is not None
        return obj


def deployment(image: str = "web:1", replicas: int = 2, name: str = "web") -> dict[str, Any]:
    made = copy.deepcopy(DEPLOYMENT)
    made["metadata"] = {"name": name}
    made["spec"]["replicas"] = replicas
    made["spec"]["template"]["spec"]["containers"][0]["image"] = image
    return made


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines()]


async def next_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 20)).decode()


async def end(process: asyncio.subprocess.Process) -> None:
    process.terminate()
    await process.wait()


def lacking(wanted: Any, found: Any, path: str = "") -> list[str]:
    """Say what of `wanted` is not in `found`, which may hold more: defaults, identity, status."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return [each for name, value in wanted.items() for each in lacking(value, found.get(name), f"{path}.{name}")]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [each for i, value in enumerate(wanted) for each in lacking(value, found[i], f"{path}[{i}]")]
    return [] if wanted in (found, None, {}) else [f"{path}: {wanted!r}, found {found!r}"]
