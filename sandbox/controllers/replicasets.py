"""Keep as many pods as a ReplicaSet asks for."""

from __future__ import annotations

from sandbox.api.messages import ApiError, Object
from sandbox.api.store import Change
from sandbox.api.times import seconds

from .base import Controller, Key, controller_of, is_deleted, is_finished, is_ready, key_of, owned_by, ready_since

RETRY_S = 5.0
_PHASES = {"Pending": 0, "Unknown": 1, "Running": 2}
_COST = "controller.kubernetes.io/pod-deletion-cost"


class ReplicaSetController(Controller):
    """Create and delete pods, and count them."""

    watches = ("replicasets", "pods")

    def observe(self, change: Change) -> None:
        obj = change.entry.obj
        if change.resource == "replicasets":
            self.enqueue(key_of(obj))
            return
        for version in (obj, change.old.obj if change.old else None):
            owner = controller_of(version) if version else None
            if owner and owner["kind"] == "ReplicaSet":
                self.enqueue((obj["metadata"]["namespace"], owner["name"]))

    def sync(self, key: Key) -> None:
        replica_set = self.cluster.get("replicasets", *key)
        if replica_set is None:
            return
        error = None
        if not is_deleted(replica_set):
            error = self._manage(replica_set, key)
        current = self.cluster.get("replicasets", *key)
        if current is not None:
            self._report(current, error, key)

    def _manage(self, replica_set: Object, key: Key) -> ApiError | None:
        active = _active(self.cluster.controlled(replica_set, "pods"))
        missing = replica_set["spec"]["replicas"] - len(active)
        try:
            for _ in range(missing):
                self._create(replica_set)
        except ApiError as error:
            self.cluster.event(
                replica_set, "Warning", "FailedCreate", f"Error creating: {error}", "replicaset-controller"
            )
            self.later(key, self.cluster.clock.now() + RETRY_S)
            return error
        if missing < 0:
            for pod in sorted(active, key=_rank)[:-missing]:
                self.cluster.delete("pods", pod)
                text = f"Deleted pod: {pod['metadata']['name']}"
                self.cluster.event(replica_set, "Normal", "SuccessfulDelete", text, "replicaset-controller")
        return None

    def _create(self, replica_set: Object) -> None:
        template = replica_set["spec"]["template"]
        meta = replica_set["metadata"]
        pod = {
            "metadata": {
                "generateName": f"{meta['name']}-",
                "namespace": meta["namespace"],
                **{k: template["metadata"][k] for k in ("labels", "annotations") if k in template["metadata"]},
                "ownerReferences": owned_by(replica_set),
            },
            "spec": template["spec"],
        }
        created = self.cluster.create("pods", pod)
        text = f"Created pod: {created['metadata']['name']}"
        self.cluster.event(replica_set, "Normal", "SuccessfulCreate", text, "replicaset-controller")

    def _report(self, replica_set: Object, error: ApiError | None, key: Key) -> None:
        pods = self.cluster.controlled(replica_set, "pods")
        active = _active(pods)
        wait = replica_set["spec"].get("minReadySeconds", 0)
        now = self.cluster.clock.now()
        since = [at for pod in active if (at := ready_since(pod)) is not None]
        pending = [at + wait for at in since if at + wait > now]
        if pending:
            self.later(key, min(pending))
        labels = replica_set["spec"]["template"]["metadata"].get("labels", {}).items()
        labelled = [pod for pod in active if labels <= pod["metadata"].get("labels", {}).items()]
        terminating = [pod for pod in pods if is_deleted(pod) and not is_finished(pod)]
        counts = {
            "replicas": len(active),
            "fullyLabeledReplicas": len(labelled),
            "readyReplicas": len(since),
            "availableReplicas": len(since) - len(pending),
        }
        # Go leaves zeros out, but for replicas and for the one that is a pointer.
        status: Object = {k: v for k, v in counts.items() if v or k == "replicas"}
        status["terminatingReplicas"] = len(terminating)
        status["observedGeneration"] = replica_set["metadata"]["generation"]
        if error is not None:
            failure = {"type": "ReplicaFailure", "status": "True", "lastTransitionTime": self.cluster.now}
            old = [c for c in replica_set["status"].get("conditions", ()) if c["type"] == "ReplicaFailure"]
            failure |= {"reason": "FailedCreate", "message": str(error)}
            status["conditions"] = old or [failure]
        self.cluster.write("replicasets", replica_set, "status", status=status)


def _active(pods: list[Object]) -> list[Object]:
    return [pod for pod in pods if not is_deleted(pod) and not is_finished(pod)]


def _rank(pod: Object) -> tuple[object, ...]:
    """Order pods for deletion: those that serve least go first."""
    status, meta = pod.get("status", {}), pod["metadata"]
    cost = meta.get("annotations", {}).get(_COST, "0")
    restarts = sum(c.get("restartCount", 0) for c in status.get("containerStatuses", ()))
    since = ready_since(pod)
    return (
        bool(pod["spec"].get("nodeName")),
        _PHASES.get(status.get("phase", "Pending"), 1),
        is_ready(pod),
        int(cost) if cost.lstrip("-").isdigit() else 0,
        -(since or 0),
        -restarts,
        -seconds(meta["creationTimestamp"]),
        meta["name"],
    )
