"""Read what engines count that must not move while they are measured: restarts, preemptions, compiles."""

from __future__ import annotations

from collections.abc import Mapping

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.vllm import Metrics, Vllm
from tpu_migration.domain.compile_log import programs_in
from tpu_migration.domain.gate import ArmEvents
from tpu_migration.errors import PermanentError
from tpu_migration.names import TARGET_ARM
from tpu_migration.record import Record
from tpu_migration.stages.base import Context
from tpu_migration.stages.objects import pods_of, serving_container

EngineState = dict[str, dict[str, float]]


def engine_state(ctx: Context, record: Record, arm: str) -> EngineState:
    """Return the counters of each pod of an arm."""
    name = record.target if arm == TARGET_ARM else record.source.deployment
    deployment = ctx.kube.get(k8s.DEPLOYMENTS, name, ctx.plan.namespace)
    if deployment is None:
        raise PermanentError(f"Deployment {name} is gone: somebody deleted it")
    vllm = Vllm(ctx.kube, ctx.plan.namespace, record.source.port)
    state = {}
    for pod in pods_of(ctx.kube, ctx.plan.namespace, deployment):
        name = pod["metadata"]["name"]
        metrics: Metrics = vllm.metrics(name)
        restarts = sum(e.get("restartCount", 0) for e in pod["status"].get("containerStatuses") or [])
        compiles = 0
        if arm == TARGET_ARM:
            container = serving_container(pod, record.source.port)
            compiles = programs_in(ctx.kube.pod_log(ctx.plan.namespace, name, container))
        state[name] = {"restarts": restarts, "preemptions": metrics.preemptions, "compiles": compiles}
    return state


def events_between(before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]) -> ArmEvents:
    """Return what happened to an arm between two looks; a pod that is gone or new counts as a restart."""

    def grown(what: str) -> int | None:
        growth = [after[name][what] - before[name][what] for name in before.keys() & after.keys()]
        # A count that shrank was begun anew (a log that was rotated, a counter of a new process): unknown.
        return None if any(each < 0 for each in growth) else int(sum(growth))

    replaced = len(before.keys() ^ after.keys())
    restarts = grown("restarts")
    return ArmEvents(grown("compiles"), None if restarts is None else restarts + replaced, grown("preemptions"))
