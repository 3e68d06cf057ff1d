"""Keep EndpointSlices in step with the pods behind each Service."""

from __future__ import annotations

import json
from typing import Any

from sandbox.api.messages import Object
from sandbox.api.store import Change

from .base import Controller, Key, is_deleted, is_finished, is_ready, key_of, owned_by

SERVICE = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
NAME = "endpointslice-controller.k8s.io"


def _gist(pod: Object | None) -> tuple[Any, ...] | None:
    """Return what of a pod an EndpointSlice depends on."""
    if pod is None:
        return None
    return (
        pod["metadata"].get("labels"),
        pod["status"].get("podIP"),
        pod["spec"].get("nodeName"),
        is_ready(pod),
        is_deleted(pod),
        is_finished(pod),
    )


class EndpointController(Controller):
    """Write one slice for each Service (one for each set of ports, where named ports differ)."""

    watches = ("services", "pods", "endpointslices")

    def observe(self, change: Change) -> None:
        obj = change.entry.obj
        if change.resource == "services":
            self.enqueue(key_of(obj))
        elif change.resource == "endpointslices":
            if change.type == "DELETED" and SERVICE in obj["metadata"].get("labels", {}):
                self.enqueue((obj["metadata"]["namespace"], obj["metadata"]["labels"][SERVICE]))
        else:
            self._observe_pod(change)

    def _observe_pod(self, change: Change) -> None:
        old = change.old.obj if change.old else None
        new = None if change.type == "DELETED" else change.entry.obj
        if _gist(old) == _gist(new):
            return
        labels = [v["metadata"].get("labels", {}) for v in (old, new) if v is not None]
        for service in self.cluster.list("services", change.entry.obj["metadata"]["namespace"]):
            selector = (service["spec"].get("selector") or {}).items()
            if selector and any(selector <= each.items() for each in labels):
                self.enqueue(key_of(service))

    def sync(self, key: Key) -> None:
        service = self.cluster.get("services", *key)
        if service is None or is_deleted(service) or not service["spec"].get("selector"):
            return
        wanted = self._wanted(service)
        slices = [
            s
            for s in self.cluster.controlled(service, "endpointslices")
            if s["metadata"]["labels"].get(MANAGED_BY) == NAME and not is_deleted(s)
        ]
        unplaced = []
        for ports, endpoints in wanted.items():
            current = next((s for s in slices if _ports_key(s.get("ports", [])) == ports), None)
            if current is None:
                unplaced.append((ports, endpoints))
                continue
            slices.remove(current)
            self.cluster.write("endpointslices", current, endpoints=endpoints)
        for ports, endpoints in unplaced:
            # A slice of other ports is used again, so that its name stays while ports come to be known.
            if slices:
                current = slices.pop()
                self.cluster.write("endpointslices", current, endpoints=endpoints, ports=json.loads(ports))
            else:
                self._create(service, json.loads(ports), endpoints)
        for left in slices:
            self.cluster.delete("endpointslices", left)

    def _wanted(self, service: Object) -> dict[str, list[Object]]:
        selector = service["spec"]["selector"].items()
        grouped: dict[str, list[Object]] = {}
        early = service["spec"].get("publishNotReadyAddresses", False)
        for pod in self.cluster.list("pods", service["metadata"]["namespace"]):
            if not selector <= pod["metadata"].get("labels", {}).items():
                continue
            if not pod["status"].get("podIP") or is_finished(pod):
                continue
            ports = _ports_key(_ports(service, pod))
            grouped.setdefault(ports, []).append(self._endpoint(pod, early))
        return grouped or {_ports_key(_ports(service, None)): []}

    def _endpoint(self, pod: Object, early: bool) -> Object:
        serving, terminating = is_ready(pod), is_deleted(pod)
        meta = pod["metadata"]
        endpoint: Object = {
            "addresses": [pod["status"]["podIP"]],
            "conditions": {
                "ready": early or (serving and not terminating),
                "serving": serving,
                "terminating": terminating,
            },
            "targetRef": {
                "kind": "Pod",
                "namespace": meta["namespace"],
                "name": meta["name"],
                "uid": meta["uid"],
            },
        }
        node_name = pod["spec"].get("nodeName")
        if node_name:
            endpoint["nodeName"] = node_name
            node = self.cluster.get("nodes", "", node_name)
            zone = (node or {"metadata": {}})["metadata"].get("labels", {}).get("topology.kubernetes.io/zone")
            if zone:
                endpoint["zone"] = zone
        return endpoint

    def _create(self, service: Object, ports: list[Object], endpoints: list[Object]) -> None:
        meta = service["metadata"]
        labels = {**meta.get("labels", {}), SERVICE: meta["name"], MANAGED_BY: NAME}
        self.cluster.create(
            "endpointslices",
            {
                "metadata": {
                    "generateName": f"{meta['name']}-",
                    "namespace": meta["namespace"],
                    "labels": labels,
                    "ownerReferences": owned_by(service),
                },
                "addressType": "IPv4",
                "endpoints": endpoints,
                "ports": ports,
            },
        )


def _ports_key(ports: list[Object]) -> str:
    return json.dumps(ports, sort_keys=True)


def _ports(service: Object, pod: Object | None) -> list[Object]:
    """Return the ports of a Service as a pod serves them; a name that the pod lacks is left out."""
    ports = []
    for port in service["spec"].get("ports", ()):
        target = port.get("targetPort", port["port"])
        protocol = port.get("protocol", "TCP")
        number = target if isinstance(target, int) else _named(pod, target, protocol)
        if number is not None:
            entry = {"name": port.get("name", ""), "port": number, "protocol": protocol}
            if "appProtocol" in port:
                entry["appProtocol"] = port["appProtocol"]
            ports.append(entry)
    return ports


def _named(pod: Object | None, name: str, protocol: str) -> int | None:
    for container in pod["spec"]["containers"] if pod else ():
        for port in container.get("ports", ()):
            if port.get("name") == name and port.get("protocol", "TCP") == protocol:
                return port["containerPort"]
    return None
