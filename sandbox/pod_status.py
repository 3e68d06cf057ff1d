"""Write the parts of a pod's status, and its events, as the kubelet writes them."""

from __future__ import annotations

import secrets

from sandbox.container_types import Object, timestamp

FINAL_PHASES = ("Succeeded", "Failed")


def host_ip(node: Object) -> str:
    """Return the node's internal address; a node of the sandbox has one when its kubelet has said so."""
    addresses = (node.get("status") or {}).get("addresses") or []
    return next((a["address"] for a in addresses if a["type"] == "InternalIP"), "127.0.0.1")


def conditions(before: list[Object], *, initialized: bool, ready: bool, done: bool) -> list[Object]:
    """Return the pod's conditions: the kubelet's own made anew, all others (PodScheduled) kept."""
    unready = {} if ready else {"reason": "PodCompleted" if done else "ContainersNotReady"}
    ours: dict[str, tuple[bool, Object]] = {
        "PodReadyToStartContainers": (not done, {}),
        "Initialized": (initialized, {} if initialized else {"reason": "ContainersNotInitialized"}),
        "Ready": (ready, unready),
        "ContainersReady": (ready, unready),
    }
    old = {condition["type"]: condition for condition in before}
    made = []
    for kind, (value, reason) in ours.items():
        text = str(value)
        same = old.get(kind, {}).get("status") == text
        since = old[kind]["lastTransitionTime"] if same else timestamp()
        made.append({"type": kind, "status": text, "lastTransitionTime": since, **reason})
    return [condition for kind, condition in old.items() if kind not in ours] + made


def event_body(pod: Object, node_name: str, kind: str, reason: str, message: str) -> Object:
    """Return an Event about a pod; `kind` is Normal or Warning."""
    now, metadata = timestamp(), pod["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{secrets.token_hex(8)}",
            "namespace": metadata["namespace"],
        },
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
        "type": kind,
        "reason": reason,
        "message": message,
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": {"component": "kubelet", "host": node_name},
    }
