"""Remove pods from nodes that are gone, or that a NoExecute taint has cleared."""

from __future__ import annotations

from sandbox.api.messages import Object
from sandbox.api.store import Change
from sandbox.api.times import seconds

from .base import Cluster, Controller, Key, is_deleted, is_finished
from .fits import tolerates


class NodeController(Controller):
    """Do what the pod garbage collector and the taint manager do."""

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
            if gone or old is None or _taints(old) != _taints(obj):
                self.enqueue(("", obj["metadata"]["name"]))
        elif change.type != "DELETED":
            node = obj["spec"].get("nodeName")
            if node and (change.old is None or change.old.obj["spec"].get("nodeName") != node):
                self.enqueue(("", node))

    def sync(self, key: Key) -> None:
        name = key[1]
        node = self.cluster.get("nodes", *key)
        taints = {taint["key"]: taint for taint in _taints(node)} if node else {}
        for known in [k for k in self._since if k[0] == name and k[1] not in taints]:
            del self._since[known]
        for taint in taints.values():
            added = taint.get("timeAdded")
            start = seconds(added) if added else self.cluster.clock.now()
            self._since.setdefault((name, taint["key"]), start)
        for pod in self.cluster.list("pods"):
            if pod["spec"].get("nodeName") != name:
                continue
            if node is None:
                # Nobody is left to stop its containers and report it.
                self.cluster.delete("pods", pod, gracePeriodSeconds=0)
            elif not is_deleted(pod) and not is_finished(pod):
                self._expel(taints, pod, key)

    def _expel(self, taints: dict[str, Object], pod: Object, key: Key) -> None:
        for taint in taints.values():
            patience = _patience(taint, pod)
            if patience is None:
                continue
            leave = self._since[key[1], taint["key"]] + patience
            if self.cluster.clock.now() >= leave:
                meta = pod["metadata"]
                text = f"Taint manager: deleting pod {meta['namespace']}/{meta['name']}"
                self.cluster.event(pod, "Normal", "TaintManagerEviction", text, "taint-eviction-controller")
                self.cluster.delete("pods", pod)
                return
            self.later(key, min(leave, self._due.get(key, leave)))


def _taints(node: Object) -> list[Object]:
    return [t for t in node.get("spec", {}).get("taints", ()) if t["effect"] == "NoExecute"]


def _patience(taint: Object, pod: Object) -> float | None:
    """Return how long a pod may stay under a taint, in seconds; None: for ever."""
    matching = [t for t in pod["spec"].get("tolerations", ()) if tolerates(t, taint)]
    if not matching:
        return 0.0
    limits = [t["tolerationSeconds"] for t in matching if "tolerationSeconds" in t]
    return float(min(limits)) if limits else None
