"""Count how many pods a PodDisruptionBudget lets go."""

from __future__ import annotations

from sandbox.api.messages import Object
from sandbox.api.selectors import selector_matches
from sandbox.api.store import Change

from .base import Controller, Key, controller_of, is_deleted, is_finished, is_ready, key_of
from .rollout import resolve


class BudgetController(Controller):
    """Keep the status of PodDisruptionBudgets."""

    watches = ("poddisruptionbudgets", "pods", "deployments")

    def observe(self, change: Change) -> None:
        obj = change.entry.obj
        if change.resource == "poddisruptionbudgets":
            self.enqueue(key_of(obj))
            return
        for budget in self.cluster.list("poddisruptionbudgets", obj["metadata"]["namespace"]):
            labels = obj["metadata"].get("labels", {})
            if change.resource == "deployments" or selector_matches(budget["spec"].get("selector"), labels):
                self.enqueue(key_of(budget))

    def sync(self, key: Key) -> None:
        budget = self.cluster.get("poddisruptionbudgets", *key)
        if budget is None or is_deleted(budget):
            return
        selector = budget["spec"].get("selector")
        pods = [
            pod
            for pod in self.cluster.list("pods", key[0])
            if selector_matches(selector, pod["metadata"].get("labels", {})) and not is_finished(pod)
        ]
        healthy = sum(is_ready(pod) and not is_deleted(pod) for pod in pods)
        expected, desired = self._expected(budget["spec"], pods)
        allowed = max(0, healthy - desired)
        status: Object = {
            "observedGeneration": budget["metadata"]["generation"],
            "currentHealthy": healthy,
            "desiredHealthy": desired,
            "disruptionsAllowed": allowed,
            "expectedPods": expected,
            "conditions": [self._condition(budget, allowed)],
        }
        self.cluster.write("poddisruptionbudgets", budget, "status", status=status)

    def _expected(self, spec: Object, pods: list[Object]) -> tuple[int, int]:
        """Return how many pods there should be, and how many of them must be healthy."""
        if isinstance(spec.get("minAvailable"), int):
            return len(pods), spec["minAvailable"]
        scale = 0
        for key in {self._workload(pod) for pod in pods} - {None}:
            workload = self.cluster.get(*key)  # type: ignore[misc]
            scale += workload["spec"].get("replicas", 0) if workload else 0
        if "minAvailable" in spec:
            return scale, resolve(spec["minAvailable"], scale, True)
        return scale, max(0, scale - resolve(spec.get("maxUnavailable", 1), scale, True))

    def _workload(self, pod: Object) -> tuple[str, str, str] | None:
        """Return what decides how many pods like this one there are: its Deployment or ReplicaSet."""
        owner = controller_of(pod)
        namespace = pod["metadata"]["namespace"]
        if owner is None or owner["kind"] != "ReplicaSet":
            return None
        replica_set = self.cluster.get("replicasets", namespace, owner["name"])
        above = controller_of(replica_set) if replica_set else None
        if above and above["kind"] == "Deployment":
            return "deployments", namespace, above["name"]
        return "replicasets", namespace, owner["name"]

    def _condition(self, budget: Object, allowed: int) -> Object:
        status, reason = ("True", "SufficientPods") if allowed else ("False", "InsufficientPods")
        old = next(iter(budget.get("status", {}).get("conditions", ())), None)
        kept = old is not None and old["status"] == status
        return {
            "type": "DisruptionAllowed",
            "status": status,
            "reason": reason,
            "message": "",
            "observedGeneration": budget["metadata"]["generation"],
            "lastTransitionTime": old["lastTransitionTime"] if old is not None and kept else self.cluster.now,
        }
