"""Make Node objects as GKE makes them, and put them where pods are scheduled.

`GkeCloud` talks to a `NodePort`: `LocalNodes` writes through the synchronous client of a virtual
world, `KubeNodes` collects changes for an API server that is reached over the network.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from google.cloud import container_v1

from sandbox.gke.capacity import max_pods
from sandbox.gke.machines import MACHINES

POOL_LABEL = "cloud.google.com/gke-nodepool"
PROVIDER = "gce://sandbox/"  # no project of Google's has that name
NOT_READY_TAINT = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}
Node = dict[str, Any]


class NodePort(Protocol):
    """Where the cloud registers its nodes."""

    def create_node(self, node: Node) -> None:
        """Register `node`, or bring the one of that name up to date."""

    def delete_node(self, name: str) -> None:
        """Remove a node; one that is not there is fine."""

    def list_nodes(self) -> list[Node]:
        """Return the registered nodes."""


def build_node(
    name: str, pool: container_v1.NodePool, zone: str, booted: float, *, ready: bool, cordoned: bool
) -> Node:
    """Return the Node object of one machine of `pool` that booted at `booted` (Unix seconds)."""
    machine = MACHINES[pool.config.machine_type]
    labels = {
        "beta.kubernetes.io/arch": "amd64",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/os": "linux",
        "kubernetes.io/hostname": name,
        "node.kubernetes.io/instance-type": machine.name,
        "topology.kubernetes.io/region": zone.rpartition("-")[0],
        "topology.kubernetes.io/zone": zone,
        "cloud.google.com/machine-family": machine.name.split("-", maxsplit=1)[0],
        POOL_LABEL: pool.name,
    }
    taints = [_taint(taint) for taint in pool.config.taints]
    if machine.is_tpu:
        labels["cloud.google.com/gke-tpu-accelerator"] = machine.accelerator
        labels["cloud.google.com/gke-tpu-topology"] = pool.placement_policy.tpu_topology or machine.topologies[0]
        labels["cloud.google.com/gke-accelerator-count"] = str(machine.chips)
    if machine.is_gpu:
        labels["cloud.google.com/gke-accelerator"] = machine.accelerator
    if machine.resource:
        taints.append({"key": machine.resource, "value": "present", "effect": "NoSchedule"})
    if pool.config.spot:
        labels["cloud.google.com/gke-spot"] = "true"
        labels["cloud.google.com/gke-provisioning"] = "spot"
    if pool.config.flex_start:
        labels["cloud.google.com/gke-flex-start"] = "true"
    labels.update(pool.config.labels)
    if not ready:
        taints.append(dict(NOT_READY_TAINT))
    if cordoned:
        taints.append({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"})
    spec: dict[str, Any] = {"providerID": f"{PROVIDER}{zone}/{name}", "taints": taints}
    if cordoned:
        spec["unschedulable"] = True
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {key: value for key, value in spec.items() if value},
        "status": _status(machine.name, max_pods(pool), booted, ready=ready),
    }


def _status(machine_name: str, pods: int, booted: float, *, ready: bool) -> dict[str, Any]:
    machine = MACHINES[machine_name]
    common = {"pods": str(pods), "ephemeral-storage": "94Gi"}
    if machine.resource:
        common[machine.resource] = str(machine.chips)
    stamp = datetime.datetime.fromtimestamp(booted, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {
        "type": "Ready",
        "status": "True" if ready else "False",
        "reason": "KubeletReady" if ready else "KubeletNotReady",
        "message": "kubelet is posting ready status" if ready else "container runtime network not ready",
        "lastHeartbeatTime": stamp,
        "lastTransitionTime": stamp,
    }
    return {
        "capacity": {"cpu": str(machine.cpus), "memory": f"{machine.memory_gib}Gi", **common},
        "allocatable": {
            "cpu": f"{_allocatable_millicpu(machine.cpus)}m",
            "memory": f"{_allocatable_mib(machine.memory_gib)}Mi",
            **common,
        },
        "conditions": [condition],
        "nodeInfo": {"kubeletVersion": "v1.36.1-gke.1000", "operatingSystem": "linux", "architecture": "amd64"},
    }


def _allocatable_millicpu(cpus: int) -> int:
    # GKE reserves 6 % of the first core, 1 % of the second, 0.5 % of the next two, 0.25 % of the rest.
    reserved = 60 + 10 * min(cpus - 1, 1) + 5 * max(min(cpus - 2, 2), 0) + 2.5 * max(cpus - 4, 0)
    return int(cpus * 1000 - reserved)


def _allocatable_mib(memory_gib: int) -> int:
    # GKE reserves 25 % of the first 4 GiB, 20 % of 4, 10 % of 8, 6 % of 112, 2 % of the rest, and 100 MiB.
    reserved, left = 0.0, float(memory_gib)
    for size, share in ((4, 0.25), (4, 0.20), (8, 0.10), (112, 0.06), (float("inf"), 0.02)):
        part = min(left, size)
        reserved += part * share
        left -= part
    return int((memory_gib - reserved) * 1024) - 100


def _taint(taint: container_v1.NodeTaint) -> dict[str, str]:
    effects = {"NO_SCHEDULE": "NoSchedule", "PREFER_NO_SCHEDULE": "PreferNoSchedule", "NO_EXECUTE": "NoExecute"}
    effect = effects.get(taint.effect.name, "NoSchedule")
    return {key: value for key, value in (("key", taint.key), ("value", taint.value), ("effect", effect)) if value}


class MemoryNodes:
    """Keep nodes in a dictionary."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def create_node(self, node: Node) -> None:
        self.nodes[node["metadata"]["name"]] = node

    def delete_node(self, name: str) -> None:
        self.nodes.pop(name, None)

    def list_nodes(self) -> list[Node]:
        return list(self.nodes.values())


class LocalNodes:
    """Write nodes through a synchronous client (`sandbox.api.LocalClient`)."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def create_node(self, node: Node) -> None:
        current = self._client.get("nodes", None, node["metadata"]["name"])
        if current is None:
            current = self._client.create("nodes", node)
        else:
            current = self._client.update("nodes", merge_node(current, node))
        self._client.update("nodes", merge_status(current, node), subresource="status")

    def delete_node(self, name: str) -> None:
        if self._client.get("nodes", None, name) is not None:
            self._client.delete("nodes", None, name)

    def list_nodes(self) -> list[Node]:
        return [node for node in self._client.list("nodes") if is_ours(node)]


def is_ours(node: Mapping[str, Any]) -> bool:
    """Say whether a node belongs to one of this cloud's pools, and not to a real GKE cluster."""
    pooled = POOL_LABEL in (node["metadata"].get("labels") or {})
    return pooled and str((node.get("spec") or {}).get("providerID", "")).startswith(PROVIDER)


def merge_node(current: Node, wanted: Node) -> Node:
    """Return `current` with the cloud's labels, annotations, taints and cordon, keeping what others put on it.

    Others' are further fields of the spec (podCIDR), and the taints that Kubernetes' own node lifecycle
    controller has put on a node that is not ready.
    """
    metadata = dict(current["metadata"])
    for part in ("labels", "annotations"):
        if both := {**(metadata.get(part) or {}), **(wanted["metadata"].get(part) or {})}:
            metadata[part] = both
    kept_spec = {key: value for key, value in current["spec"].items() if key not in ("taints", "unschedulable")}
    spec = {**kept_spec, **wanted["spec"]}
    if not any(each["type"] == "Ready" and each["status"] == "True" for each in wanted["status"].get("conditions", ())):
        kept = [each for each in current["spec"].get("taints") or [] if each["key"].startswith("node.kubernetes.io/")]
        spec["taints"] = [*(each for each in spec.get("taints") or [] if each not in kept), *kept]
    return {**current, "metadata": metadata, "spec": spec}


def merge_status(current: Node, wanted: Node) -> Node:
    """Return `current` with the machine's status, keeping what its kubelet said (addresses, endpoint)."""
    return {**current, "status": {**(current.get("status") or {}), **wanted["status"]}}


class KubeNodes(MemoryNodes):
    """Hold the nodes that should be, and write them to an API server when `flush` is awaited.

    The cloud's core is synchronous and the network is not. What should be is kept whole, so a write
    that fails is simply made again by the next flush.
    """

    def __init__(self, client: Any, log: Callable[[str], None]) -> None:
        super().__init__()
        self._client = client
        self._log = log
        self._written: dict[str, Node] | None = None

    async def flush(self) -> bool:
        """Make the API server's nodes those of this cloud; False if a write failed and must be repeated."""
        try:
            if self._written is None:  # leftovers of a crashed run are ours to remove
                self._written = {
                    node["metadata"]["name"]: {} for node in await self._client.list("nodes") if is_ours(node)
                }
            for name in [name for name in self._written if name not in self.nodes]:
                await self._client.delete("nodes", None, name)
                del self._written[name]
            for name, node in list(self.nodes.items()):
                if self._written.get(name) != node:
                    await self._write(name, node)
                    self._written[name] = node
        except Exception as error:  # noqa: BLE001  whatever the API server's trouble is, the next flush repeats
            self._log(f"nodes not written, will repeat: {type(error).__name__}: {error}")
            return False
        return True

    async def autoscale(self, look: Callable[[list[Any]], list[Any]]) -> None:
        """Let the autoscaler look at the API server's pods, and create the Events that it returns."""
        try:
            for event in look(await self._client.list("pods")):
                await self._client.create("events", event["metadata"]["namespace"], event)
        except Exception as error:  # noqa: BLE001  as above: the next look sees the same
            self._log(f"pools not autoscaled, will look again: {type(error).__name__}: {error}")

    async def _write(self, name: str, node: Node) -> None:
        current = await self._client.get("nodes", None, name)
        if current is None:
            current = await self._client.create("nodes", None, node)
        else:
            current = await self._client.update("nodes", None, name, merge_node(current, node))
        await self._client.update("nodes", None, name, merge_status(current, node), subresource="status")

    async def remove_all(self) -> None:
        """Take the machines away for good, as far as the API server is there to hear of it."""
        self.nodes.clear()
        await self.flush()
