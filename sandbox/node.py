"""Be the kubelet of every node: run the pods that are bound to nodes as local processes.

The agent only talks to a Kubernetes API, which in turn asks its endpoint for logs. It watches nodes and
pods; a pod bound to a node that exists gets a `sandbox.pods.Pod`, which lives until its object is deleted
or its node vanishes.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from ipaddress import IPv4Network

from sandbox.addresses import Addresses
from sandbox.container_launch import Settings
from sandbox.container_types import Object
from sandbox.heartbeats import Heartbeats
from sandbox.kubelet import Kubelet
from sandbox.pod_status import FINAL_PHASES
from sandbox.pods import Pod
from sandbox.power import ends_pods_within_s, is_off


class NodeAgent:
    """Run the pods of all nodes for which `owns` holds (default: every node)."""

    def __init__(
        self,
        settings: Settings,
        network: IPv4Network,
        *,
        owns: Callable[[Object], bool] = lambda node: True,
        log: Callable[[str], None] = print,
    ) -> None:
        self.settings = settings
        self.pods: dict[str, Pod] = {}
        self._owns = owns
        self._log = log
        self._addresses = Addresses(network)
        self._nodes: dict[str, Object] = {}
        self.kubelet = Kubelet(settings.logs, self.is_running)
        self._heartbeats = Heartbeats(settings.kube, self._nodes, self.kubelet.status, log)
        self._objects: dict[str, Object] = {}  # every pod that is bound to a node, by uid
        self._pulled: dict[str, set[str]] = {}
        self._synced: set[str] = set()

    def is_running(self, namespace: str, name: str, container: str) -> bool:
        """Tell whether a container's process runs."""
        return any(
            (pod.namespace, pod.name) == (namespace, name) and pod.is_running(container) for pod in self.pods.values()
        )

    async def run(self) -> None:
        """Watch and act until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch("nodes", self._on_node))
            group.create_task(self._watch("pods", self._on_pod))
            group.create_task(self._heartbeats.run())

    async def stop(self) -> None:
        """End the endpoint and the processes of all pods at once; their objects stay. First cancel run()."""
        await self.kubelet.close()
        await asyncio.gather(*(pod.close() for pod in self.pods.values()))

    async def _watch(self, resource: str, act: Callable[[str, Object], None]) -> None:
        async for event_type, item in self.settings.kube.watch(resource):
            if event_type == "SYNC":
                self._synced.add(resource)
                self._look_at_all()
            else:
                act(event_type, item)

    # Observations

    def _on_node(self, event_type: str, node: Object) -> None:
        name = node["metadata"]["name"]
        if event_type != "DELETED":
            if self._owns(node):
                self._nodes[name] = node
                self._look_at_power(node)
                self._heartbeats.look()
                self._look_at_all()
            return
        self._nodes.pop(name, None)
        self._pulled.pop(name, None)
        for pod in self._pods_on(name):
            self._log(f"node {name} is gone: ending pod {pod.namespace}/{pod.name}")
            pod.remove()

    def _look_at_power(self, node: Object) -> None:
        """Take the machine's pods along when it dies; end them in time when it has its notice."""
        name, left_s = node["metadata"]["name"], ends_pods_within_s(node)
        for pod in self._pods_on(name):
            if is_off(node):
                pod.lose()
            elif left_s is not None:
                pod.shut_down(left_s)

    def _pods_on(self, name: str) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.node["metadata"]["name"] == name]

    def _on_pod(self, event_type: str, item: Object) -> None:
        uid = item["metadata"]["uid"]
        if event_type == "DELETED":
            self._objects.pop(uid, None)
            if uid in self.pods:
                self.pods[uid].drop()
        elif item["spec"].get("nodeName"):
            self._objects[uid] = item
            self._look_at(uid)

    # Decisions

    def _look_at_all(self) -> None:
        for uid in list(self._objects):
            self._look_at(uid)

    def _look_at(self, uid: str) -> None:
        """Start or end what the pod's object asks for; does nothing if that is under way."""
        if self._synced != {"nodes", "pods"}:
            return
        item = self._objects[uid]
        node = self._nodes.get(item["spec"]["nodeName"])
        if node is not None and (is_off(node) or (ends_pods_within_s(node) is not None and uid not in self.pods)):
            return  # nobody is there to start or end anything
        deleted = "deletionTimestamp" in item["metadata"]
        pod = self.pods.get(uid)
        if pod is None and node is not None and self._is_registered(node):
            if (item.get("status") or {}).get("phase") in FINAL_PHASES and not deleted:
                return
            pod = self._adopt(item, node)
        if pod is not None and deleted:
            grace = item["metadata"].get("deletionGracePeriodSeconds")
            pod.terminate(pod.grace_s if grace is None else float(grace))

    def _is_registered(self, node: Object) -> bool:
        """Tell whether the node's status says where its kubelet is, which the heartbeats see to."""
        status = node.get("status") or {}
        return all(status.get(key) == value for key, value in self.kubelet.status().items())

    def _adopt(self, item: Object, node: Object) -> Pod:
        pulled = self._pulled.setdefault(node["metadata"]["name"], set())
        ip = self._addresses.take()
        pod = Pod(self.settings, item, node, ip, pulled=pulled, on_end=self._forget)
        self.pods[pod.uid] = pod
        return pod

    def _forget(self, pod: Pod) -> None:
        """Drop a pod that has ended, its address and its directories; its logs stay for whoever asks why."""
        if self.pods.pop(pod.uid, None) is not None:
            self._addresses.give_back(pod.ip)
            shutil.rmtree(self.settings.directory / "volumes" / pod.uid, ignore_errors=True)
