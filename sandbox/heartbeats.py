"""Keep the nodes alive in the eyes of the control plane: their Leases, and the kubelet's part of their status."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import Awaitable, Callable, Mapping

import aiohttp

from sandbox.container_types import Object, timestamp
from sandbox.kube import KubeClient, KubeError
from sandbox.power import is_off

NAMESPACE = "kube-node-lease"
PERIOD_S = 10.0  # the kubelet's own, for a lease of 40 s
LEASE_S = 40
_UNREACHABLE = (KubeError, aiohttp.ClientError, TimeoutError, OSError)


class Heartbeats:
    """The heartbeats of `nodes` (by name, as last seen); `status` is what a kubelet adds to a node's status."""

    def __init__(
        self,
        kube: KubeClient,
        nodes: Mapping[str, Object],
        status: Callable[[], Object],
        log: Callable[[str], None],
    ) -> None:
        self._kube = kube
        self._nodes = nodes
        self._status = status
        self._log = log
        self._seen = asyncio.Event()

    def look(self) -> None:
        """Look at the nodes soon: one is new, or has changed."""
        self._seen.set()

    async def run(self) -> None:
        """Renew every PERIOD_S, and tend changed nodes at once, until cancelled."""
        loop = asyncio.get_running_loop()
        due: dict[str, float] = {}
        while True:
            self._seen.clear()
            for name, node in list(self._nodes.items()):
                if is_off(node):
                    continue  # a dead machine is silent
                await self._tend(node)
                if due.get(name, 0.0) <= loop.time() and await self._renew(node):
                    due[name] = loop.time() + PERIOD_S
            due = {name: when for name, when in due.items() if name in self._nodes}
            # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_S / 2):
                    await self._seen.wait()

    async def _tend(self, node: Object) -> None:
        """Write what is missing or was given up on; a node that is as it should be costs no call."""
        status = node.get("status") or {}
        wanted = {key: value for key, value in self._status().items() if status.get(key) != value}
        if conditions := revived(status.get("conditions") or []):
            wanted["conditions"] = conditions
        if wanted:
            name = node["metadata"]["name"]
            await self._try(name, self._kube.patch("nodes", None, name, {"status": wanted}, subresource="status"))

    async def _renew(self, node: Object) -> bool:
        name, now = node["metadata"]["name"], datetime.datetime.now(datetime.UTC)
        spec = {
            "holderIdentity": name,
            "leaseDurationSeconds": LEASE_S,
            "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        # Owned by its node: it goes with it.
        owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}
        lease = {"metadata": {"name": name, "ownerReferences": [owner]}, "spec": spec}
        return await self._try(name, self._write(name, lease))

    async def _write(self, name: str, lease: Object) -> None:
        try:
            await self._kube.patch("leases", NAMESPACE, name, lease)
        except KubeError as error:
            if error.code != 404:
                raise
            await self._kube.create("leases", NAMESPACE, lease)

    async def _try(self, name: str, call: Awaitable[object]) -> bool:
        try:
            await call
        except _UNREACHABLE as error:
            if not (isinstance(error, KubeError) and error.code == 404):  # the node has just gone
                self._log(f"heartbeat of node {name}: {type(error).__name__}: {error}; will repeat")
            return False
        return True


def revived(conditions: list[Object]) -> list[Object] | None:
    """Return the conditions of a node that the control plane had given up on (Unknown); None if it has not."""
    if not any(condition["status"] == "Unknown" for condition in conditions):
        return None
    now = timestamp()
    made = []
    for condition in conditions:
        if condition["status"] != "Unknown":
            made.append(condition)
        elif condition["type"] == "Ready":
            said = {"reason": "KubeletReady", "message": "kubelet is posting ready status"}
            made.append({**condition, **said, "status": "True", "lastHeartbeatTime": now, "lastTransitionTime": now})
        else:
            said = {"reason": "KubeletHasNoPressure", "message": "kubelet sees nothing wrong"}
            made.append({**condition, **said, "status": "False", "lastHeartbeatTime": now, "lastTransitionTime": now})
    return made
