"""Wait for a Deployment's replicas, say what each is about that is not ready, and give up on a hopeless one early."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any

from tpu_migration.clients.kubernetes import Object
from tpu_migration.domain import engine_trouble as trouble
from tpu_migration.domain.compile_log import telling_lines
from tpu_migration.errors import PermanentError
from tpu_migration.stages.base import Context, Waiting
from tpu_migration.stages.objects import has_ended, is_ready, pods_of

_PROGRESS = re.compile(
    r"Precompile .*|Compilation of .+ finished in .*|Memory statistics.*|Init model.*|KV cache size.*"
)
_TAIL = 40  # lines; what a hanging engine repeats is among them
# Twice the kubelet's longest back-off between two pulls (300 s).
IMAGE_PATIENCE_S = 600.0
# GKE repairs a node that stays NotReady after about ten minutes.
NODE_PATIENCE_S = 1200.0
# A backbone of 62 layers compiles for minutes, and weights load for ten without a word.
SILENCE_S = 1200.0
# The longest start seen took 58 minutes; the startup probe would end it after 90, and say less.
START_BUDGET_S = 4500.0


def ready_replicas(ctx: Context, deployment: Object, wanted: int) -> Waiting | list[Object]:
    """Return the ready pods, by name, once there are enough; PermanentError for one that will never be ready."""
    pods = [each for each in pods_of(ctx.kube, ctx.plan.namespace, deployment) if not has_ended(each)]
    ready = sorted((each for each in pods if is_ready(each)), key=lambda pod: str(pod["metadata"]["name"]))
    if len(ready) >= wanted:
        return ready
    waiting = [each for each in pods if not is_ready(each)]
    said: list[str] = ctx.together([lambda pod=each: _look(ctx, pod) for each in waiting])  # type: ignore[misc]
    detail = said[0] if said else _why_no_pods(deployment)
    return Waiting(3.0, f"{len(ready)} of {wanted} replicas of {deployment['metadata']['name']} are ready; {detail}")


def log_before_the_end(ctx: Context, pod: str, container: str) -> str:
    """Return the log of the process that ended last, whether or not another one has begun since."""
    namespace = ctx.plan.namespace
    return ctx.kube.pod_log(namespace, pod, container, previous=True) or ctx.kube.pod_log(namespace, pod, container)


def refuse(pod: str, found: trouble.Trouble) -> PermanentError:
    """Return the error of a pod that is in trouble."""
    return PermanentError(f"pod {pod}: {found}")


def refuse_if_ended_for_good(ctx: Context, pod: Object) -> None:
    """Raise PermanentError for a pod with a container whose end comes again at each start."""
    name = pod["metadata"]["name"]
    for status in _containers(pod):
        if trouble.last_exit(status) is None:
            continue
        judged = ctx.memory.setdefault("judged_exits", {})
        exit_ = f"{pod['metadata']['uid']} {status['name']} {status.get('restartCount', 0)}"
        if exit_ not in judged:
            judged[exit_] = trouble.of_exits(status, log_before_the_end(ctx, name, status["name"]))
        if judged[exit_] is not None:
            raise refuse(name, judged[exit_])


def _why_no_pods(deployment: Object) -> str:
    """Say what keeps pods from being made: a quota or a webhook, GKE Warden for example."""
    for condition in (deployment.get("status") or {}).get("conditions") or []:
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return f"no pod can be made: {condition.get('message', '')}"
    return "the pods are not made yet"


def _containers(pod: Object) -> list[Mapping[str, Any]]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _look(ctx: Context, pod: Object) -> str:
    """Say what a pod that is not ready is doing, in its own words where it has any; PermanentError if in vain."""
    name = pod["metadata"]["name"]
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return _without_node(ctx, pod, condition.get("message", ""))
    refuse_if_ended_for_good(ctx, pod)
    for container in _containers(pod):
        if waiting := (container.get("state") or {}).get("waiting"):
            reason, message = waiting.get("reason", "waiting"), waiting.get("message", "")
            lasting_s = _lasting_s(ctx, pod, "waits", "image" if "Image" in reason else reason)
            if found := trouble.of_waiting(container["name"], reason, message, lasting_s, IMAGE_PATIENCE_S):
                raise refuse(name, found)
            return f"{name}: {reason} {message}".strip()
    return _starting(ctx, pod)


def _without_node(ctx: Context, pod: Object, message: str) -> str:
    name = pod["metadata"]["name"]
    lasting_s = _lasting_s(ctx, pod, "node", "none")
    if lasting_s >= NODE_PATIENCE_S:
        what = f"finds no node for {lasting_s / 60:.0f} minutes: {message[:300]}"
        remedy = "free or repair the TPU pool's nodes (kubectl describe nodes), or see what else runs on them"
        raise refuse(name, trouble.Trouble("no_node", what, (), remedy))
    return f"{name} finds no node: {message}"


def _starting(ctx: Context, pod: Object) -> str:
    """Follow the log of a process that runs and does not serve yet."""
    name, now = pod["metadata"]["name"], ctx.clock.now()
    starting = next((each for each in _containers(pod) if not each.get("ready")), None)
    if starting is None:
        return f"{name}: its containers are ready, its readiness gates are not"
    log = ctx.kube.pod_log(ctx.plan.namespace, name, starting["name"], tail_lines=_TAIL)
    silent_s = _lasting_s(ctx, pod, "log", "\n".join(telling_lines(log, 2)))
    if silent_s >= SILENCE_S:
        raise refuse(name, trouble.of_silence(log, silent_s))
    began = ((starting.get("state") or {}).get("running") or {}).get("startedAt")
    took_s = now - dt.datetime.fromisoformat(began).timestamp() if began else 0.0
    if took_s >= START_BUDGET_S and not starting.get("started"):  # else it served before
        whole = ctx.kube.pod_log(ctx.plan.namespace, name, starting["name"])
        raise refuse(name, trouble.of_slow_start(whole, took_s, START_BUDGET_S))
    told = [found.group(0) for line in log.splitlines() if (found := _PROGRESS.search(line))]
    return f"{name}: {told[-1][:120] if told else 'starting'}"


def _lasting_s(ctx: Context, pod: Object, what: str, value: str) -> float:
    """Return for how long this worker has seen something of a pod stay as it is."""
    now = ctx.clock.monotonic()
    seen: dict[tuple[str, str], tuple[str, float]] = ctx.memory.setdefault("lasting", {})
    key = (pod["metadata"]["uid"], what)
    before, since = seen.get(key, (value, now))
    seen[key] = (value, since if before == value else now)
    return now - seen[key][1]
