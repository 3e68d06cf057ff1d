"""Put pods on nodes, or say why they fit on none."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from sandbox.api.messages import Object
from sandbox.api.store import Change
from sandbox.api.subresources import set_node

from .base import Cluster, Controller, Key, is_deleted, is_finished, key_of
from .fits import AFFINITY, Amounts, repels, requests, selects, shortages, untolerated

COMPONENT = "default-scheduler"
NO_NODES = "no nodes available to schedule pods"


class Scheduler(Controller):
    """Schedule pending pods; what each node has given away is kept up to date by the changes."""

    watches = ("pods", "nodes")

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self._on_node: dict[str, dict[Key, tuple[Object, Amounts]]] = {}
        self._pending: dict[Key, None] = {}

    def observe(self, change: Change) -> None:
        if change.resource == "nodes":
            old = change.old.obj if change.old and change.type != "DELETED" else None
            if old is None or _gist(old) != _gist(change.entry.obj):
                self.enqueue(*self._pending)
            return
        pod, key = change.entry.obj, key_of(change.entry.obj)
        node = pod["spec"].get("nodeName")
        ended = change.type == "DELETED" or is_finished(pod)
        if node:
            self._pending.pop(key, None)
            pods = self._on_node.setdefault(node, {})
            if ended:
                if pods.pop(key, None):
                    self.enqueue(*self._pending)  # what it held may be what another waits for
            elif key not in pods:
                pods[key] = (pod, requests(pod))
        elif ended or is_deleted(pod):
            self._pending.pop(key, None)
        elif pod["spec"].get("schedulerName") == COMPONENT and key not in self._pending:
            self._pending[key] = None
            self.enqueue(key)

    def sync(self, key: Key) -> None:
        pod = self.cluster.get("pods", *key)
        if pod is None or pod["spec"].get("nodeName") or is_deleted(pod) or key not in self._pending:
            return
        if pod["spec"].get("schedulingGates"):
            self._refuse(pod, "SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates")
            return
        nodes = self.cluster.list("nodes")
        wanted = requests(pod)
        neighbours = self._neighbours(pod)
        reasons: Counter[str] = Counter()
        suitable: list[Object] = []
        for node in nodes:
            why = self._why_not(pod, node, wanted, neighbours)
            reasons.update(why)
            if not why:
                suitable.append(node)
        if suitable:
            self._assign(pod, min(suitable, key=self._load))
            return
        text = _message(len(nodes), reasons) if nodes else NO_NODES
        self._refuse(pod, "Unschedulable", text)

    def _neighbours(self, pod: Object) -> list[tuple[Object, Object]]:
        spec = pod["spec"]
        if not spec.get("affinity", {}).get("podAntiAffinity") and not spec.get("topologySpreadConstraints"):
            return []
        out = []
        for name, pods in self._on_node.items():
            node = self.cluster.get("nodes", "", name)
            if node is not None:
                out += [(other, node) for other, _ in pods.values()]
        return out

    def _used(self, name: str) -> Amounts:
        used: Amounts = {}
        for _, amounts in self._on_node.get(name, {}).values():
            for resource, amount in amounts.items():
                used[resource] = used.get(resource, Fraction(0)) + amount
        return used

    def _why_not(
        self, pod: Object, node: Object, wanted: Amounts, neighbours: list[tuple[Object, Object]]
    ) -> list[str]:
        if is_deleted(node):
            return ["node(s) were unschedulable"]
        if node.get("spec", {}).get("unschedulable"):
            return ["node(s) were unschedulable"]
        taint = untolerated(pod, node)
        if taint is not None:
            return [f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"]
        if not selects(pod, node):
            return [AFFINITY]
        short = shortages(wanted, node, self._used(node["metadata"]["name"]))
        if short:
            return short
        repelled = repels(pod, node, neighbours)
        return [repelled] if repelled else []

    def _load(self, node: Object) -> tuple[int, str]:
        name = node["metadata"]["name"]
        return len(self._on_node.get(name, {})), name

    def _assign(self, pod: Object, node: Object) -> None:
        name = node["metadata"]["name"]
        entry = self.cluster.store.get("pods", *key_of(pod))
        if entry is None:
            return
        set_node(self.cluster.store, entry, name, "True", None, "", self.cluster.now)
        text = f"Successfully assigned {'/'.join(key_of(pod))} to {name}"
        self.cluster.event(pod, "Normal", "Scheduled", text, COMPONENT)

    def _refuse(self, pod: Object, reason: str, message: str) -> None:
        current = next((c for c in pod["status"].get("conditions", ()) if c["type"] == "PodScheduled"), None)
        if current and (current.get("reason"), current.get("message")) == (reason, message):
            return
        entry = self.cluster.store.get("pods", *key_of(pod))
        if entry is None:
            return
        since = current["lastTransitionTime"] if current else self.cluster.now
        set_node(self.cluster.store, entry, None, "False", reason, message, since)
        if reason == "Unschedulable":
            self.cluster.event(pod, "Warning", "FailedScheduling", message, COMPONENT)


def _gist(node: Object) -> tuple[object, ...]:
    """Return what of a node scheduling depends on."""
    status = node.get("status", {})
    ready = [c["status"] for c in status.get("conditions", ()) if c["type"] == "Ready"]
    meta = node["metadata"]
    return (meta.get("labels"), node.get("spec"), status.get("allocatable"), ready, is_deleted(node))


def _message(nodes: int, reasons: Counter[str]) -> str:
    """Write why no node suits, as kube-scheduler does."""
    listed = ", ".join(sorted(f"{count} {reason}" for reason, count in reasons.items()))
    lacking = sum(count for reason, count in reasons.items() if reason.startswith(("Insufficient", "Too many")))
    lacking = min(lacking, nodes)
    parts = []
    if lacking:
        parts.append(f"{lacking} No preemption victims found for incoming pod")
    if nodes - lacking:
        parts.append(f"{nodes - lacking} Preemption is not helpful for scheduling")
    head = f"0/{nodes} nodes are available"
    return f"{head}: {listed}. no new claims to deallocate, preemption: {head}: {', '.join(parts)}."
