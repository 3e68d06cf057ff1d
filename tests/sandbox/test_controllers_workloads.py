"""Deployments, ReplicaSets and Jobs in virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.api import Api, LocalClient, Request
from sandbox.api.messages import dumps
from sandbox.clock import VirtualClock
from sandbox.controllers import Manager

NS = "inference"
Object = dict[str, Any]


class World:
    """A cluster in virtual time; the test is its node agent."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.api = Api(self.clock)
        self.manager = Manager(self.api, self.clock)
        self.client = LocalClient(self.api)
        self.client.create("namespaces", {"metadata": {"name": NS}})
        self.client.create("nodes", {"metadata": {"name": "n1"}})

    def settle(self) -> None:
        self.manager.settle()

    def advance(self, seconds: float) -> None:
        """Let time pass, stopping at every timer on the way."""
        end = self.clock.now() + seconds
        while (due := self.manager.next_due()) is not None and due <= end:
            self.clock.advance(max(0.0, due - self.clock.now()))
            self.settle()
        self.clock.advance(end - self.clock.now())
        self.settle()

    def pods(self, **labels: str) -> list[Object]:
        pods = self.client.list("pods", NS, labels or None)
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def report(self, pod: Object, phase: str = "Running", ready: bool = True) -> None:
        """Write a pod's status as its node agent does."""
        current = self.client.get("pods", NS, pod["metadata"]["name"])
        assert current is not None
        others = [c for c in current["status"].get("conditions", []) if c["type"] != "Ready"]
        since = self.client.create("events", event(pod))["metadata"]["creationTimestamp"]
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": since}
        current["status"] |= {"phase": phase, "podIP": "127.9.0.1", "conditions": [*others, condition]}
        self.client.update("pods", current, "status")

    def run_all(self, **labels: str) -> None:
        """Make every pod run and be ready, and end those that are to go, until nothing changes."""
        self.settle()
        for _ in range(50):
            self.stop_terminating()
            waiting = [pod for pod in self.pods(**labels) if pod["status"]["phase"] == "Pending"]
            if not waiting:
                return
            for pod in waiting:
                self.report(pod)
            self.settle()
        raise AssertionError("the rollout does not end")

    def stop_terminating(self) -> None:
        for pod in self.client.list("pods", NS):
            if "deletionTimestamp" in pod["metadata"]:
                self.client.delete("pods", NS, pod["metadata"]["name"], grace_period_s=0)
        self.settle()

    def deployment(self, name: str = "web") -> Object:
        found = self.client.get("deployments", NS, name)
        assert found is not None
        return found

    def condition(self, type_: str, resource: str = "deployments", name: str = "web") -> Object:
        found = self.client.get(resource, NS, name)
        assert found is not None
        return next(c for c in found["status"]["conditions"] if c["type"] == type_)


def event(pod: Object) -> Object:
    """Return an Event; creating it also tells the time as the API writes it."""
    meta = {"generateName": "note-", "namespace": NS}
    return {"metadata": meta, "involvedObject": {"kind": "Pod", "name": pod["metadata"]["name"]}}


@pytest.fixture
def world() -> World:
    return World()


def make_deployment(image: str = "web:1", **spec: Any) -> Object:
    labels = {"app": "web"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": image}]}}
    body = {"selector": {"matchLabels": labels}, "template": template, **spec}
    return {"metadata": {"name": "web", "namespace": NS}, "spec": body}


def make_job(**spec: Any) -> Object:
    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "bench:1"}]}
    return {"metadata": {"name": "bench", "namespace": NS}, "spec": {"template": {"spec": pod}, **spec}}


def set_image(world: World, image: str) -> None:
    containers = [{"name": "main", "image": image}]
    patch = {"spec": {"template": {"spec": {"containers": containers}}}}
    world.client.patch("deployments", NS, "web", patch)


def test_a_deployment_comes_up_and_says_so(world: World) -> None:
    world.client.create("deployments", make_deployment(replicas=2))
    world.run_all()
    status = world.deployment()["status"]
    assert {k: status[k] for k in ("replicas", "readyReplicas", "availableReplicas")} == {
        "replicas": 2,
        "readyReplicas": 2,
        "availableReplicas": 2,
    }
    assert "unavailableReplicas" not in status
    assert world.condition("Available")["status"] == "True"
    assert world.condition("Progressing")["reason"] == "NewReplicaSetAvailable"
    assert world.deployment()["metadata"]["annotations"] == {"deployment.kubernetes.io/revision": "1"}


def test_a_rolling_update_never_goes_below_what_it_may(world: World) -> None:
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    world.client.create("deployments", make_deployment(replicas=3, strategy=rolling))
    world.run_all()
    lowest = []
    set_image(world, "web:2")
    world.settle()
    while True:
        ready = [p for p in world.pods() if p["status"]["phase"] == "Running"]
        lowest.append(len(ready))
        assert len(world.pods()) <= 4
        pending = [p for p in world.pods() if p["status"]["phase"] == "Pending"]
        if not pending:
            break
        world.report(pending[0])
        world.settle()
    world.stop_terminating()
    assert min(lowest) == 3
    assert {p["spec"]["containers"][0]["image"] for p in world.pods()} == {"web:2"}
    assert world.deployment()["metadata"]["annotations"] == {"deployment.kubernetes.io/revision": "2"}
    assert len(world.client.list("replicasets", NS)) == 2


def test_recreate_waits_until_the_last_old_pod_is_gone(world: World) -> None:
    world.client.create("deployments", make_deployment(replicas=2, strategy={"type": "Recreate"}))
    world.run_all()
    set_image(world, "web:2")
    world.settle()
    assert world.pods() == []
    assert len(world.client.list("pods", NS)) == 2  # they are still terminating
    world.stop_terminating()
    assert [p["spec"]["containers"][0]["image"] for p in world.pods()] == ["web:2", "web:2"]


def test_going_back_to_an_old_template_uses_its_replica_set_again(world: World) -> None:
    world.client.create("deployments", make_deployment())
    world.run_all()
    (first,) = world.client.list("replicasets", NS)
    for image in ("web:2", "web:1"):
        set_image(world, image)
        world.run_all()
    again = world.client.get("replicasets", NS, first["metadata"]["name"])
    assert again is not None
    assert again["spec"]["replicas"] == 1
    assert again["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"


def test_a_rollout_that_hangs_says_so_at_its_deadline(world: World) -> None:
    world.client.create("deployments", make_deployment(progressDeadlineSeconds=60))
    world.settle()
    world.advance(60)
    assert world.condition("Progressing")["status"] == "True"
    world.advance(2)
    condition = world.condition("Progressing")
    assert (condition["status"], condition["reason"]) == ("False", "ProgressDeadlineExceeded")


def test_a_pod_counts_as_available_after_its_minimum_of_ready_seconds(world: World) -> None:
    world.client.create("deployments", make_deployment(minReadySeconds=30))
    world.run_all()
    assert world.deployment()["status"]["readyReplicas"] == 1
    assert "availableReplicas" not in world.deployment()["status"]
    world.advance(30)
    assert world.deployment()["status"]["availableReplicas"] == 1


def test_scaling_down_takes_the_pod_that_serves_nobody(world: World) -> None:
    world.client.create("deployments", make_deployment(replicas=3))
    world.run_all()
    sick = world.pods()[1]
    world.report(sick, ready=False)
    world.client.patch("deployments", NS, "web", {"spec": {"replicas": 2}})
    world.settle()
    assert sick["metadata"]["name"] not in {p["metadata"]["name"] for p in world.pods()}
    assert len(world.pods()) == 2


def test_a_lost_pod_is_replaced(world: World) -> None:
    world.client.create("deployments", make_deployment(replicas=1))
    world.run_all()
    (lost,) = world.pods()
    world.client.delete("nodes", None, "n1")
    world.settle()
    (new,) = world.pods()
    assert new["metadata"]["uid"] != lost["metadata"]["uid"]
    assert world.deployment()["status"]["unavailableReplicas"] == 1


def test_a_deployment_deleted_in_the_foreground_goes_last(world: World) -> None:
    world.client.create("deployments", make_deployment())
    world.run_all()
    world.client.delete("deployments", NS, "web", propagation="Foreground")
    world.settle()
    assert world.client.get("deployments", NS, "web") is not None
    world.stop_terminating()
    assert world.client.get("deployments", NS, "web") is None
    assert world.client.list("replicasets", NS) == []


def test_a_deployment_deleted_with_orphan_leaves_its_pods(world: World) -> None:
    world.client.create("deployments", make_deployment())
    world.run_all()
    world.client.delete("deployments", NS, "web", propagation="Orphan")
    world.settle()
    (replica_set,) = world.client.list("replicasets", NS)
    assert "ownerReferences" not in replica_set["metadata"]
    assert len(world.pods()) == 1


def test_a_namespace_takes_everything_in_it_along(world: World) -> None:
    world.client.create("deployments", make_deployment())
    world.run_all()
    world.client.delete("namespaces", None, NS)
    world.settle()
    namespace = world.client.get("namespaces", None, NS)
    assert namespace is not None
    assert namespace["status"]["phase"] == "Terminating"
    world.stop_terminating()
    assert world.client.get("namespaces", None, NS) is None
    assert world.client.list("replicasets") == []


def test_a_job_runs_once_and_completes(world: World) -> None:
    world.client.create("jobs", make_job())
    world.settle()
    (pod,) = world.pods()
    assert pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] == "bench"
    world.report(pod)
    world.settle()
    job = world.client.get("jobs", NS, "bench")
    assert job is not None
    assert (job["status"]["active"], job["status"]["ready"]) == (1, 1)
    world.report(pod, "Succeeded", ready=False)
    world.settle()
    done = world.client.get("jobs", NS, "bench")
    assert done is not None
    assert done["status"]["succeeded"] == 1
    assert [c["type"] for c in done["status"]["conditions"]] == ["SuccessCriteriaMet", "Complete"]
    assert "active" not in done["status"]
    assert "completionTime" in done["status"]


def test_a_job_tries_again_with_growing_pauses_and_gives_up_at_its_limit(world: World) -> None:
    world.client.create("jobs", make_job(backoffLimit=1))
    world.settle()
    (first,) = world.pods()
    world.report(first, "Failed", ready=False)
    world.settle()
    assert len(world.pods()) == 1
    world.advance(11)
    (second,) = [p for p in world.pods() if p["metadata"]["uid"] != first["metadata"]["uid"]]
    world.report(second, "Failed", ready=False)
    world.advance(400)
    assert len(world.pods()) == 2
    condition = world.condition("Failed", "jobs", "bench")
    assert condition["reason"] == "BackoffLimitExceeded"


def test_a_job_whose_pod_is_lost_counts_it_as_failed(world: World) -> None:
    world.client.create("jobs", make_job(backoffLimit=0))
    world.settle()
    world.client.delete("nodes", None, "n1")
    world.settle()
    assert world.condition("Failed", "jobs", "bench")["reason"] == "BackoffLimitExceeded"


def test_a_job_ends_at_its_deadline_once_its_pod_has_stopped(world: World) -> None:
    world.client.create("jobs", make_job(activeDeadlineSeconds=60))
    world.settle()
    (pod,) = world.pods()
    world.report(pod)
    world.advance(60)
    assert world.condition("FailureTarget", "jobs", "bench")["reason"] == "DeadlineExceeded"
    job = world.client.get("jobs", NS, "bench")
    assert job is not None
    assert "Failed" not in {c["type"] for c in job["status"]["conditions"]}
    world.stop_terminating()
    assert world.condition("Failed", "jobs", "bench")["reason"] == "DeadlineExceeded"


def test_a_finished_job_is_removed_after_its_time_to_live(world: World) -> None:
    world.client.create("jobs", make_job(ttlSecondsAfterFinished=100))
    world.settle()
    world.report(world.pods()[0], "Succeeded", ready=False)
    world.settle()
    world.advance(99)
    assert world.client.get("jobs", NS, "bench") is not None
    world.advance(2)
    assert world.client.get("jobs", NS, "bench") is None
    assert world.client.list("pods", NS) == []


def test_a_job_deleted_without_a_policy_leaves_its_pods_behind(world: World) -> None:
    world.client.create("jobs", make_job())
    world.settle()
    world.client.delete("jobs", NS, "bench")
    world.settle()
    assert world.client.get("jobs", NS, "bench") is None
    assert len(world.pods()) == 1


def test_an_autoscaler_keeps_a_deployment_within_its_bounds_but_not_one_at_zero(world: World) -> None:
    world.client.create("deployments", make_deployment(replicas=1))
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    spec = {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 4}
    world.client.create("horizontalpodautoscalers", {"metadata": {"name": "h", "namespace": NS}, "spec": spec})
    world.settle()
    assert world.deployment()["spec"]["replicas"] == 2
    world.client.patch("deployments", NS, "web", {"spec": {"replicas": 9}})
    world.settle()
    assert world.deployment()["spec"]["replicas"] == 4
    world.client.patch("deployments", NS, "web", {"spec": {"replicas": 0}})
    world.settle()
    assert world.deployment()["spec"]["replicas"] == 0


def test_a_budget_counts_what_may_go(world: World) -> None:
    world.client.create("deployments", make_deployment(replicas=3))
    selector = {"matchLabels": {"app": "web"}}
    budget = {"metadata": {"name": "b", "namespace": NS}, "spec": {"maxUnavailable": 1, "selector": selector}}
    world.client.create("poddisruptionbudgets", budget)
    world.run_all()
    found = world.client.get("poddisruptionbudgets", NS, "b")
    assert found is not None
    assert found["status"]["expectedPods"] == 3
    assert found["status"]["desiredHealthy"] == 2
    assert found["status"]["disruptionsAllowed"] == 1
    world.report(world.pods()[0], ready=False)
    world.settle()
    found = world.client.get("poddisruptionbudgets", NS, "b")
    assert found is not None
    assert found["status"]["disruptionsAllowed"] == 0


def test_evictions_go_one_by_one_as_replacements_come_up(world: World) -> None:
    world.client.create("deployments", make_deployment(replicas=2))
    selector = {"matchLabels": {"app": "web"}}
    budget = {"metadata": {"name": "b", "namespace": NS}, "spec": {"maxUnavailable": 1, "selector": selector}}
    world.client.create("poddisruptionbudgets", budget)
    world.run_all()
    one, other = (pod["metadata"]["name"] for pod in world.pods())

    def evict(name: str) -> int:
        body = dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}})
        path = f"/api/v1/namespaces/{NS}/pods/{name}/eviction"
        return world.api.handle(Request("POST", path, {}, {"content-type": "application/json"}, body)).status

    assert (evict(one), evict(other)) == (201, 429), "the second comes before any controller has seen the first"
    world.settle()
    assert evict(other) == 429, "the replacement is not ready yet"
    world.run_all()
    assert evict(other) == 201
