"""Run blocks of load as Jobs inside the cluster, and read their results back whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tpu_migration.bench.results import BenchRun, parse
from tpu_migration.bench.sealed import ResultCorrupt
from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Object
from tpu_migration.errors import PermanentError
from tpu_migration.names import ARM_HEADER
from tpu_migration.record import Source
from tpu_migration.resources import manifests
from tpu_migration.stages.base import Context

TASKS = "/tasks"
T = TypeVar("T")


def run_block(ctx: Context, block: str, arguments: Sequence[str], deadline_s: float) -> BenchRun | None:
    """Return the result of a block of load, or None while its Job runs."""
    return run_job(ctx, block, "bench", lambda: arguments, deadline_s, parse)


def run_job(
    ctx: Context,
    block: str,
    command: str,
    arguments: Callable[[], Sequence[str]],
    deadline_s: float,
    read: Callable[[str], T],
    tasks: str = "",
) -> T | None:
    """Return what a command of the toolbox writes, or None while its Job runs; the Job is made if there is none.

    The Job's name derives from the run and the block, so that a crash in between finds it
    again instead of loading the servers twice. `tasks` names a ConfigMap to mount.
    """
    known: dict[str, T] = ctx.memory.setdefault("blocks", {})
    if block in known:
        return known[block]
    name = ctx.names.job(block)
    job = ctx.kube.get(k8s.JOBS, name, ctx.plan.namespace)
    if job is None:
        ctx.kube.create(_job(ctx, name, command, arguments(), deadline_s, tasks))
        return None
    conditions = {e["type"]: e for e in (job.get("status") or {}).get("conditions") or [] if e["status"] == "True"}
    if not conditions.keys() & {"Complete", "Failed"}:
        return None
    text = _log_of(ctx, name)
    try:
        known[block] = read(text)
    except ResultCorrupt as error:
        failure = conditions.get("Failed", {})
        last = text.strip().splitlines()[-1:] or ["no output"]
        raise PermanentError(
            f"Job {name} gave no whole result ({error}); {failure.get('reason', '')} {failure.get('message', '')} "
            f"last line: {last[0][:200]}"
        ) from error
    return known[block]


def through_gateway(source: Source, arm: str) -> list[str]:
    """Return the arguments of a load that reaches one arm the way users come, by the probe route; none: as they do."""
    return [
        f"--url={source.gateway_url}",
        f"--model={source.served_names[0]}",
        *([f"--header={ARM_HEADER}={arm}"] if arm else []),
        *host_arguments(source),
    ]


def host_arguments(source: Source) -> list[str]:
    """Return the argument that makes a client ask for the host name of the users' route."""
    return [f"--header=Host={source.host}"] if source.host else []


def _log_of(ctx: Context, job: str) -> str:
    pods = ctx.kube.list(k8s.PODS, ctx.plan.namespace, labels=f"job-name={job}")
    if not pods:
        raise PermanentError(f"the pod of Job {job} is gone before its result was read")
    newest = max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
    return ctx.kube.pod_log(ctx.plan.namespace, newest["metadata"]["name"])


def _job(ctx: Context, name: str, command: str, arguments: Sequence[str], deadline_s: float, tasks: str) -> Object:
    job: dict[str, Any] = manifests("bench-job.yaml")[0]
    job["metadata"] |= {"name": name, "namespace": ctx.plan.namespace, "labels": dict(ctx.names.labels)}
    job["spec"]["activeDeadlineSeconds"] = int(deadline_s)
    template = job["spec"]["template"]
    template["metadata"] = {"labels": {**ctx.names.labels, "app": "tpu-migration-bench"}}
    container = template["spec"]["containers"][0]
    container["image"] = ctx.plan.toolbox_image
    container["command"] = [*container["command"][:-1], command]
    container["args"] = [*container["args"], *arguments]
    if tasks:
        container["volumeMounts"] = [{"name": "tasks", "mountPath": TASKS}]
        template["spec"]["volumes"] = [{"name": "tasks", "configMap": {"name": tasks}}]
    return job
