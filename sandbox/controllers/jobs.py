"""Run a Job's pods to completion, or to its limits."""

from __future__ import annotations

from sandbox.api.messages import ApiError, Object
from sandbox.api.store import Change
from sandbox.api.times import seconds, stamp

from .base import Cluster, Controller, Key, controller_of, is_deleted, is_finished, is_ready, key_of, owned_by

COMPONENT = "job-controller"
BACKOFF_S, MAX_BACKOFF_S, RETRY_S = 10.0, 360.0, 5.0


class JobController(Controller):
    """Create pods until enough have succeeded; count each pod's end once, even if it is deleted later."""

    watches = ("jobs", "pods")

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        # Job uid → pod uid → phase in which the pod ended.
        self._ended: dict[str, dict[str, str]] = {}

    def observe(self, change: Change) -> None:
        obj = change.entry.obj
        if change.resource == "jobs":
            if change.type == "DELETED":
                self._ended.pop(obj["metadata"]["uid"], None)
            self.enqueue(key_of(obj))
            return
        owner = controller_of(obj)
        if not owner or owner["kind"] != "Job":
            return
        phase = obj["status"].get("phase", "")
        if is_finished(obj) or change.type == "DELETED":
            # A pod that vanishes before its end has failed, whoever removed it.
            ended = self._ended.setdefault(owner["uid"], {})
            ended.setdefault(obj["metadata"]["uid"], phase if is_finished(obj) else "Failed")
        self.enqueue((obj["metadata"]["namespace"], owner["name"]))

    def sync(self, key: Key) -> None:
        job = self.cluster.get("jobs", *key)
        if job is None or is_deleted(job):
            return
        if _finished(job) is not None:
            self._expire(job, key)
            return
        status = dict(job["status"])
        if not job["spec"].get("suspend"):
            status.setdefault("startTime", self.cluster.now)
        ended = self._ended.get(job["metadata"]["uid"], {}).values()
        succeeded = sum(phase == "Succeeded" for phase in ended)
        failed = len(ended) - succeeded
        pods = [p for p in self.cluster.controlled(job, "pods") if not is_finished(p)]
        active = [p for p in pods if not is_deleted(p)]
        verdict = self._verdict(job, status, succeeded, failed, key)
        if verdict is not None or job["spec"].get("suspend"):
            for pod in active:
                self.cluster.delete("pods", pod)
        else:
            self._grow(job, len(active), succeeded, failed, key)
        self._report(job, status, verdict, (succeeded, failed), key)

    def _verdict(
        self, job: Object, status: Object, succeeded: int, failed: int, key: Key
    ) -> tuple[str, str, str] | None:
        """Return the condition that ends the Job, with its reason and message, or None."""
        for each in status.get("conditions", ()):
            if each["type"] in ("SuccessCriteriaMet", "FailureTarget") and each["status"] == "True":
                ends = {"SuccessCriteriaMet": "Complete", "FailureTarget": "Failed"}
                return ends[each["type"]], each["reason"], each["message"]
        spec = job["spec"]
        if succeeded >= spec.get("completions", 1):
            return "Complete", "CompletionsReached", "Reached expected number of succeeded pods"
        if failed > spec["backoffLimit"]:
            return "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        deadline = spec.get("activeDeadlineSeconds")
        if deadline is not None and "startTime" in status:
            end = seconds(status["startTime"]) + deadline
            if self.cluster.clock.now() >= end:
                return "Failed", "DeadlineExceeded", "Job was active longer than specified deadline"
            self.later(key, end)
        return None

    def _grow(self, job: Object, active: int, succeeded: int, failed: int, key: Key) -> None:
        spec = job["spec"]
        wanted = min(spec["parallelism"], spec.get("completions", 1) - succeeded)
        if active >= wanted:
            return
        now = self.cluster.clock.now()
        if failed:
            last = max((_end(p) for p in self.cluster.controlled(job, "pods") if is_finished(p)), default=0.0)
            ready = last + min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (failed - 1))
            if ready > now:
                self._sooner(key, ready)
                return
        for _ in range(wanted - active):
            self._create(job, key)

    def _sooner(self, key: Key, at: float) -> None:
        self.later(key, min(at, self._due.get(key, at)))

    def _create(self, job: Object, key: Key) -> None:
        meta, template = job["metadata"], job["spec"]["template"]
        pod = {
            "metadata": {
                **{k: template["metadata"][k] for k in ("labels", "annotations") if k in template["metadata"]},
                "generateName": f"{meta['name']}-",
                "namespace": meta["namespace"],
                "ownerReferences": owned_by(job),
            },
            "spec": template["spec"],
        }
        try:
            created = self.cluster.create("pods", pod)
        except ApiError as error:
            self.cluster.event(job, "Warning", "FailedCreate", f"Error creating: {error}", COMPONENT)
            self._sooner(key, self.cluster.clock.now() + RETRY_S)
            return
        text = f"Created pod: {created['metadata']['name']}"
        self.cluster.event(job, "Normal", "SuccessfulCreate", text, COMPONENT)

    def _report(
        self, job: Object, status: Object, verdict: tuple[str, str, str] | None, ends: tuple[int, int], key: Key
    ) -> None:
        pods = [p for p in self.cluster.controlled(job, "pods") if not is_finished(p)]
        active = [p for p in pods if not is_deleted(p)]
        counts = {
            "active": len(active),
            "ready": sum(is_ready(p) for p in active),
            "terminating": len(pods) - len(active),
            "succeeded": ends[0],
            "failed": ends[1],
        }
        for name, value in counts.items():
            # These two are pointers in Go: a zero is written.
            if value or name in ("ready", "terminating"):
                status[name] = value
            else:
                status.pop(name, None)
        status["uncountedTerminatedPods"] = {}
        if verdict is not None:
            self._conclude(status, verdict, bool(pods))
        self.cluster.write("jobs", job, "status", status=status)
        if verdict is not None and not pods:
            text = "Job completed" if verdict[0] == "Complete" else verdict[2]
            kind, reason = ("Normal", "Completed") if verdict[0] == "Complete" else ("Warning", verdict[1])
            self.cluster.event(job, kind, reason, text, COMPONENT)
            self.enqueue(key)

    def _conclude(self, status: Object, verdict: tuple[str, str, str], waiting: bool) -> None:
        end, reason, message = verdict
        first = {"Complete": "SuccessCriteriaMet", "Failed": "FailureTarget"}[end]
        conditions = list(status.get("conditions", ()))
        # The end is declared at once, and reached when no pod is left.
        for type_ in (first,) if waiting else (first, end):
            if not any(c["type"] == type_ for c in conditions):
                times = {"lastProbeTime": self.cluster.now, "lastTransitionTime": self.cluster.now}
                conditions.append({"type": type_, "status": "True", **times, "reason": reason, "message": message})
        status["conditions"] = conditions
        if end == "Complete" and not waiting:
            status.setdefault("completionTime", self.cluster.now)

    def _expire(self, job: Object, key: Key) -> None:
        ttl = job["spec"].get("ttlSecondsAfterFinished")
        end = _finished(job)
        if ttl is None or end is None:
            return
        if self.cluster.clock.now() >= end + ttl:
            self.cluster.delete("jobs", job, propagationPolicy="Background")
        else:
            self.later(key, end + ttl)


def _finished(job: Object) -> float | None:
    for each in job["status"].get("conditions", ()):
        if each["type"] in ("Complete", "Failed") and each["status"] == "True":
            return seconds(each["lastTransitionTime"])
    return None


def _end(pod: Object) -> float:
    """Return when a pod ended, by its containers, or failing that by its creation."""
    times = [
        container["state"]["terminated"]["finishedAt"]
        for container in pod["status"].get("containerStatuses", ())
        if container.get("state", {}).get("terminated", {}).get("finishedAt")
    ]
    return seconds(max(times, default=pod["metadata"].get("creationTimestamp", stamp(0))))
