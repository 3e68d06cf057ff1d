"""Remove pods from nodes that are gone, or that a NoExecute taint has cleared."""

from __future__ import annotations

from sandbox.api.messages import Object
from sandbox.api.store import Change
from sandbox.api.times import seconds

from .base import Controller, Key, is_deleted, is_finished
from .fits import tolerates


class NodeController(Controller):
    """Do what the pod garbage collector and the taint manager do."""

    watches = ("nodes", "pods")

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
        node = self.cluster.get("nodes", *key)
        for pod in self.cluster.list("pods"):
            if pod["spec"].get("nodeName") != key[1]:
                continue
            if node is None:
                # Nobody is left to stop its containers and report it.
                self.cluster.delete("pods", pod, gracePeriodSeconds=0)
            elif not is_deleted(pod) and not is_finished(pod):
                self._expel(node, pod, key)

    def _expel(self, node: Object, pod: Object, key: Key) -> None:
        for taint in _taints(node):
            patience = _patience(taint, pod)
            if patience is None:
                continue
            start = taint.get("timeAdded")
            leave = (seconds(start) if start else self.cluster.clock.now()) + patience
            if self.cluster.clock.now() >= leave:
                text = "Taint manager: deleting pod " + "/".join(
                    (pod["metadata"]["namespace"], pod["metadata"]["name"])
                )
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
