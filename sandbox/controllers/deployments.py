"""Roll a Deployment's pods from one template to the next."""

from __future__ import annotations

import hashlib
import json

from sandbox.api.messages import Object
from sandbox.api.store import Change
from sandbox.api.strategy import SUFFIX
from sandbox.api.times import seconds

from .base import Controller, Key, controller_of, is_deleted, is_finished, key_of, owned_by
from .rollout import availability, created, failing, first_size, limits, next_sizes, progressing, rescaled, total

REVISION = "deployment.kubernetes.io/revision"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
HASH = "pod-template-hash"
COMPONENT = "deployment-controller"


def template_hash(template: Object) -> str:
    """Return the hash that tells one pod template from another."""
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).digest()
    return "".join(SUFFIX[byte % len(SUFFIX)] for byte in digest[:10])


class DeploymentController(Controller):
    """Own ReplicaSets, one for each template, and move replicas between them."""

    watches = ("deployments", "replicasets", "pods")

    def observe(self, change: Change) -> None:
        obj = change.entry.obj
        if change.resource == "deployments":
            self.enqueue(key_of(obj))
            return
        if change.resource == "pods" and change.type != "DELETED":
            return  # only the end of an old pod lets a Recreate go on; ReplicaSets count the rest
        owner = controller_of(obj)
        if change.resource == "pods" and owner and owner["kind"] == "ReplicaSet":
            parent = self.cluster.get("replicasets", obj["metadata"]["namespace"], owner["name"])
            owner = controller_of(parent) if parent else None
        if owner and owner["kind"] == "Deployment":
            self.enqueue((obj["metadata"]["namespace"], owner["name"]))

    def sync(self, key: Key) -> None:
        deployment = self.cluster.get("deployments", *key)
        if deployment is None or is_deleted(deployment):
            return
        sets = self.cluster.controlled(deployment, "replicasets")
        wanted = template_hash(deployment["spec"]["template"])
        new = next((s for s in sets if s["metadata"].get("labels", {}).get(HASH) == wanted), None)
        old = [s for s in sets if s is not new]
        if new is None and not deployment["spec"].get("paused") and self._may_create(deployment, old):
            new = self._create(deployment, old, wanted)
            deployment = self.cluster.get("deployments", *key) or deployment
        if new is not None:
            new = self._renumber(new, old)
        self._resize(deployment, new, old)
        self._forget(deployment, new)
        self._report(deployment, new, key)

    # ReplicaSets

    def _may_create(self, deployment: Object, old: list[Object]) -> bool:
        if deployment["spec"]["strategy"]["type"] != "Recreate":
            return True
        # Recreate: nothing new before the last old pod is gone.
        pods = [pod for s in old for pod in self.cluster.controlled(s, "pods")]
        return not any(s["spec"]["replicas"] for s in old) and all(is_finished(pod) for pod in pods)

    def _create(self, deployment: Object, old: list[Object], hash_: str) -> Object:
        """Create the ReplicaSet of the current template at the size that the rollout begins with, and say so."""
        meta, spec = deployment["metadata"], deployment["spec"]
        size, surge = first_size(spec, old), limits(spec)[0]
        template = spec["template"]
        labels = {**template["metadata"].get("labels", {}), HASH: hash_}
        selector = dict(spec["selector"])
        selector["matchLabels"] = {**selector.get("matchLabels", {}), HASH: hash_}
        replica_set: Object = {
            "metadata": {
                "name": f"{meta['name']}-{hash_}",
                "namespace": meta["namespace"],
                "labels": labels,
                "annotations": {
                    REVISION: str(max((_revision(s) for s in old), default=0) + 1),
                    DESIRED: str(spec["replicas"]),
                    MAXIMUM: str(spec["replicas"] + surge),
                },
                "ownerReferences": owned_by(deployment),
            },
            "spec": {
                "replicas": size,
                "selector": selector,
                "template": {**template, "metadata": {**template["metadata"], "labels": labels}},
            },
        }
        if spec.get("minReadySeconds"):
            replica_set["spec"]["minReadySeconds"] = spec["minReadySeconds"]
        new = self.cluster.create("replicasets", replica_set)
        if size:
            text = f"Scaled up replica set {new['metadata']['name']} from 0 to {size}"
            self.cluster.event(deployment, "Normal", "ScalingReplicaSet", text, COMPONENT)
        self._announce(deployment, new)
        return new

    def _announce(self, deployment: Object, new: Object) -> None:
        """Write that there is a new ReplicaSet, and nothing else yet, as the real controller does."""
        conditions = created(deployment["status"].get("conditions", []), new["metadata"]["name"], self.cluster.now)
        meta = self.cluster.annotate(deployment, **{REVISION: str(_revision(new))})
        status = {**deployment["status"], "conditions": conditions}
        self.cluster.write("deployments", deployment, "status", status=status, metadata=meta)

    def _renumber(self, new: Object, old: list[Object]) -> Object:
        highest = max((_revision(s) for s in old), default=0)
        if _revision(new) > highest:
            return new
        meta = self.cluster.annotate(new, **{REVISION: str(highest + 1)})
        return self.cluster.write("replicasets", new, metadata=meta)

    def _resize(self, deployment: Object, new: Object | None, old: list[Object]) -> None:
        spec = deployment["spec"]
        active = [s for s in (*old, *([new] if new else [])) if s["spec"]["replicas"]]
        asked = str(spec["replicas"])
        if any(_annotation(s, DESIRED) not in ("", asked) for s in active):
            # The Deployment's size has changed: that goes first, the rollout goes on after it.
            before = {s["metadata"]["name"]: int(_annotation(s, MAXIMUM) or 0) for s in active}
            sizes = rescaled(spec, new, old, before)
        else:
            sizes = next_sizes(spec, new, old, spec.get("paused", False))
        surge, _ = limits(spec)
        marks = {DESIRED: asked, MAXIMUM: str(spec["replicas"] + surge if spec["replicas"] else 0)}
        for replica_set in (*old, *([new] if new else [])):
            size = sizes.get(replica_set["metadata"]["name"], replica_set["spec"]["replicas"])
            self._scale(deployment, replica_set, size, marks)

    def _scale(self, deployment: Object, replica_set: Object, size: int, marks: dict[str, str]) -> None:
        before = replica_set["spec"]["replicas"]
        parts: Object = {"metadata": self.cluster.annotate(replica_set, **marks)} if size or before else {}
        if size != before:
            parts["spec"] = {**replica_set["spec"], "replicas": size}
        if parts:
            self.cluster.write("replicasets", replica_set, **parts)
        if size != before:
            way, name = "up" if size > before else "down", replica_set["metadata"]["name"]
            text = f"Scaled {way} replica set {name} from {before} to {size}"
            self.cluster.event(deployment, "Normal", "ScalingReplicaSet", text, COMPONENT)

    def _forget(self, deployment: Object, new: Object | None) -> None:
        limit = deployment["spec"].get("revisionHistoryLimit", 10)
        idle = [
            s
            for s in self.cluster.controlled(deployment, "replicasets")
            if (new is None or s["metadata"]["uid"] != new["metadata"]["uid"])
            and not s["spec"]["replicas"]
            and not s["status"].get("replicas")
            and not is_deleted(s)
        ]
        for replica_set in sorted(idle, key=_revision)[: max(0, len(idle) - limit)]:
            self.cluster.delete("replicasets", replica_set, propagationPolicy="Background")

    # Status

    def _report(self, deployment: Object, new: Object | None, key: Key) -> None:
        sets = self.cluster.controlled(deployment, "replicasets")
        if new is not None:
            new = self.cluster.get("replicasets", *key_of(new))
        spec, old_status = deployment["spec"], deployment["status"]
        available = total(sets, "availableReplicas")
        counts = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": total(sets, "replicas"),
            "updatedReplicas": new["status"].get("replicas", 0) if new else 0,
            "readyReplicas": total(sets, "readyReplicas"),
            "availableReplicas": available,
            "unavailableReplicas": max(0, sum(s["spec"]["replicas"] for s in sets) - available),
        }
        status: Object = {name: value for name, value in counts.items() if value}
        status["terminatingReplicas"] = total(sets, "terminatingReplicas")
        now = self.cluster.now
        conditions = availability(old_status.get("conditions", []), spec, available, now)
        name = new["metadata"]["name"] if new else ""
        conditions = progressing(conditions, spec, counts, old_status, name, self.cluster.clock.now())
        status["conditions"] = failing(conditions, [new, *sets] if new else sets, now)
        revision = str(_revision(new)) if new else ""
        meta = self.cluster.annotate(deployment, **({REVISION: revision} if revision else {}))
        self.cluster.write("deployments", deployment, "status", status=status, metadata=meta)
        self._watch_deadline(spec, conditions, key)

    def _watch_deadline(self, spec: Object, conditions: list[Object], key: Key) -> None:
        for each in conditions:
            unfinished = each["type"] == "Progressing" and each["status"] == "True"
            if unfinished and each["reason"] != "NewReplicaSetAvailable":
                deadline = seconds(each["lastUpdateTime"]) + spec.get("progressDeadlineSeconds", 600)
                self.later(key, deadline + 1)


def _revision(replica_set: Object) -> int:
    return int(_annotation(replica_set, REVISION) or 0)


def _annotation(obj: Object, name: str) -> str:
    return obj["metadata"].get("annotations", {}).get(name, "")
