"""Taint nodes that are not ready, and remove pods from nodes that are gone or that a NoExecute taint has cleared."""

from __future__ import annotations

from sandbox.api.messages import Object
from sandbox.api.store import Change
from sandbox.api.times import seconds

from .base import Cluster, Controller, Key, is_deleted, is_finished, is_ready
from .fits import tolerates

# What the node lifecycle controller puts on a node by the status of its Ready condition.
_TAINT_OF = {"False": "node.kubernetes.io/not-ready", "Unknown": "node.kubernetes.io/unreachable"}
_EFFECTS = ("NoSchedule", "NoExecute")


class NodeController(Controller):
    """Do what the node lifecycle controller, the pod garbage collector and the taint manager do."""

    watches = ("nodes", "pods")

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        # (node, taint) → since when it is there: a taint need not say so itself.
        self._since: dict[tuple[str, str], float] = {}

    def observe(self, change: Change) -> None:
        obj = change.entry.obj
        if change.resource == "nodes":
            old = change.old.obj if change.old else None
            gone = change.type == "DELETED"
            if gone or old is None or _gist(old) != _gist(obj):
                self.enqueue(("", obj["metadata"]["name"]))
        elif change.type != "DELETED":
            node = obj["spec"].get("nodeName")
            if node and (change.old is None or change.old.obj["spec"].get("nodeName") != node):
                self.enqueue(("", node))

    def sync(self, key: Key) -> None:
        name = key[1]
        node = self.cluster.get("nodes", *key)
        if node is not None:
            node = self._taint(node)
        taints = {taint["key"]: taint for taint in _no_execute(node)} if node else {}
        for known in [k for k in self._since if k[0] == name and k[1] not in taints]:
            del self._since[known]
        for taint in taints.values():
            added = taint.get("timeAdded")
            start = seconds(added) if added else self.cluster.clock.now()
            self._since.setdefault((name, taint["key"]), start)
        lost = node is not None and _ready(node) in _TAINT_OF
        for pod in self.cluster.list("pods"):
            if pod["spec"].get("nodeName") != name:
                continue
            if node is None:
                # Nobody is left to stop its containers and report it.
                self.cluster.delete("pods", pod, gracePeriodSeconds=0)
                continue
            if not is_finished(pod):
                current = self._mark_not_ready(pod) if lost and is_ready(pod) else pod
                if not is_deleted(pod):
                    self._expel(taints, current, key)

    def _taint(self, node: Object) -> Object:
        """Give a node the taints of its Ready condition and take them off again; each says since when."""
        ready = _ready(node)
        if not ready:
            return node  # it has not reported yet
        key = _TAINT_OF.get(ready)
        present = list(node.get("spec", {}).get("taints", ()))
        wanted = [taint for taint in present if taint["key"] == key or taint["key"] not in _TAINT_OF.values()]
        for effect in _EFFECTS if key else ():
            if not any((taint["key"], taint["effect"]) == (key, effect) for taint in wanted):
                wanted.append({"key": key, "effect": effect, "timeAdded": self.cluster.now})
        if wanted == present:
            return node
        spec = {name: value for name, value in node.get("spec", {}).items() if name != "taints"}
        return self.cluster.write("nodes", node, spec={**spec, "taints": wanted} if wanted else spec)

    def _mark_not_ready(self, pod: Object) -> Object:
        """Say that a pod is not ready, for a kubelet that cannot: its endpoint leaves at once."""
        self.cluster.event(pod, "Warning", "NodeNotReady", "Node is not ready", "node-controller")
        conditions = [
            {**each, "status": "False", "lastTransitionTime": self.cluster.now} if each["type"] == "Ready" else each
            for each in pod["status"]["conditions"]
        ]
        return self.cluster.write("pods", pod, "status", status={**pod["status"], "conditions": conditions})

    def _expel(self, taints: dict[str, Object], pod: Object, key: Key) -> None:
        for taint in taints.values():
            patience = _patience(taint, pod)
            if patience is None:
                continue
            leave = self._since[key[1], taint["key"]] + patience / self.cluster.speed
            if self.cluster.clock.now() >= leave:
                meta = pod["metadata"]
                text = f"Taint manager: deleting pod {meta['namespace']}/{meta['name']}"
                self.cluster.event(pod, "Normal", "TaintManagerEviction", text, "taint-eviction-controller")
                self.cluster.delete("pods", pod)
                return
            self.later(key, min(leave, self._due.get(key, leave)))


def _gist(node: Object) -> tuple[object, ...]:
    return _ready(node), node.get("spec", {}).get("taints")


def _ready(node: Object) -> str:
    """Return the status of a node's Ready condition, "" where it has none."""
    conditions = node.get("status", {}).get("conditions", ())
    return next((each["status"] for each in conditions if each["type"] == "Ready"), "")


def _no_execute(node: Object) -> list[Object]:
    return [t for t in node.get("spec", {}).get("taints", ()) if t["effect"] == "NoExecute"]


def _patience(taint: Object, pod: Object) -> float | None:
    """Return how long a pod may stay under a taint, in seconds; None: for ever."""
    matching = [t for t in pod["spec"].get("tolerations", ()) if tolerates(t, taint)]
    if not matching:
        return 0.0
    limits = [t["tolerationSeconds"] for t in matching if "tolerationSeconds" in t]
    return float(min(limits)) if limits else None
