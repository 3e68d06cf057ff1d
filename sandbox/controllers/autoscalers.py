"""Keep the target of a HorizontalPodAutoscaler within its bounds; the sandbox has no metrics to follow."""

from __future__ import annotations

from sandbox.api.messages import Object
from sandbox.api.store import Change

from .base import Controller, Key, condition, is_deleted, key_of


class AutoscalerController(Controller):
    """Raise a Deployment to minReplicas and lower it to maxReplicas."""

    watches = ("horizontalpodautoscalers", "deployments")

    def observe(self, change: Change) -> None:
        obj = change.entry.obj
        if change.resource == "horizontalpodautoscalers":
            self.enqueue(key_of(obj))
            return
        namespace, name = key_of(obj)
        for scaler in self.cluster.list("horizontalpodautoscalers", namespace):
            if scaler["spec"]["scaleTargetRef"]["name"] == name:
                self.enqueue(key_of(scaler))

    def sync(self, key: Key) -> None:
        scaler = self.cluster.get("horizontalpodautoscalers", *key)
        if scaler is None or is_deleted(scaler):
            return
        target = scaler["spec"]["scaleTargetRef"]
        found = target["kind"] == "Deployment"
        deployment = self.cluster.get("deployments", key[0], target["name"]) if found else None
        if deployment is None:
            self._report(scaler, 0, 0, "False", "FailedGetScale", "the target of the autoscaler is not there")
            return
        replicas = deployment["spec"]["replicas"]
        if replicas == 0:
            # A target at zero is switched off: the autoscaler leaves it alone.
            text = "scaling is disabled since the replica count of the target is zero"
            self._report(scaler, 0, 0, "True", "SucceededGetScale", text)
            return
        wanted = max(scaler["spec"]["minReplicas"], min(replicas, scaler["spec"]["maxReplicas"]))
        if wanted != replicas:
            self.cluster.write("deployments", deployment, spec={**deployment["spec"], "replicas": wanted})
            text = f"New size: {wanted}; reason: Current number of replicas outside the bounds"
            self.cluster.event(scaler, "Normal", "SuccessfulRescale", text, "horizontal-pod-autoscaler")
        text = "the HPA controller was able to get the target's current scale"
        current = deployment["status"].get("replicas", 0)
        self._report(scaler, current, wanted, "True", "SucceededGetScale", text)

    def _report(self, scaler: Object, current: int, desired: int, able: str, reason: str, message: str) -> None:
        old = scaler.get("status", {})
        conditions = condition(old.get("conditions", ()), "AbleToScale", able, reason, message, self.cluster.now)
        for each in conditions:
            each.pop("lastUpdateTime", None)
        status: Object = {"desiredReplicas": desired, "conditions": conditions}
        if current:
            status["currentReplicas"] = current
        self.cluster.write("horizontalpodautoscalers", scaler, "status", status=status)
