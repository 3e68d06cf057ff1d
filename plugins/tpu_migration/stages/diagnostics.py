"""Keep what the target said last, before it is released: logs, events, what became of pods and nodes, metrics.

It goes into one ConfigMap a workload, which the next fall-back writes over, since the TPU pods and their logs are
gone a moment later. Users are home by then, and nothing of this may hold up the release: what cannot be had is
left out, and said so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Object
from tpu_migration.clients.vllm import Vllm
from tpu_migration.domain.masking import masked
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.names import MANAGED_BY, RUN_LABEL, WORKLOAD_LABEL, record_name, run_hash
from tpu_migration.record import Record
from tpu_migration.stages.base import Context
from tpu_migration.stages.pool import POOL_LABEL

_PODS = 4  # as many are told in full; a ConfigMap holds 1 MiB
_LOG_LINES, _PART_BYTES = 400, 40_000


def diagnostics_name(record: Record) -> str:
    """Return the name of the ConfigMap."""
    return f"{record_name(record.workload)}-diagnostics"


def save_diagnostics(ctx: Context, record: Record) -> None:
    """Write the ConfigMap once a run; whatever fails is logged and passed over."""
    if ctx.memory.get("diagnosed"):
        return
    ctx.memory["diagnosed"] = True  # another worker may come after this one: the ConfigMap tells it
    try:
        target = ctx.kube.get(k8s.DEPLOYMENTS, record.target, record.namespace)
        if target is None or target["metadata"].get("labels", {}).get(RUN_LABEL) != run_hash(record.run_id):
            return
        found = ctx.kube.get(k8s.CONFIG_MAPS, diagnostics_name(record), record.namespace)
        if found and (found.get("data") or {}).get("run") == record.run_id:
            return
        data = {"run": record.run_id, "why": masked(_why(record)), **_collect(ctx, record, target)}
        metadata: dict[str, Any] = {
            "name": diagnostics_name(record),
            "namespace": record.namespace,
            "labels": {**MANAGED_BY, WORKLOAD_LABEL: record.workload},  # not the run's label: it outlives the run
        }
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        if found is None:
            ctx.kube.create(body)
        else:
            metadata["resourceVersion"] = found["metadata"]["resourceVersion"]
            ctx.kube.replace(body)
        ctx.log("%s", data.get("pods", ""))
        name = diagnostics_name(record)
        ctx.log("more: kubectl get configmap %s --namespace %s --output yaml", name, record.namespace)
    except (TransientError, PermanentError) as error:
        ctx.log("no diagnostics are kept: %s", error)


def _why(record: Record) -> str:
    return record.fallback.reason if record.fallback else ""


def _collect(ctx: Context, record: Record, target: Object) -> dict[str, str]:
    namespace, selector = record.namespace, target["spec"]["selector"]["matchLabels"]
    labels = ",".join(f"{key}={value}" for key, value in selector.items())
    pods = ctx.kube.list(k8s.PODS, namespace, labels=labels)
    names = {each["metadata"]["name"] for each in pods}
    parts: dict[str, Callable[[], str]] = {
        "pods": lambda: "\n".join(described(each) for each in pods) or "there are no pods",
        "events": lambda: _events(ctx.kube.list(k8s.EVENTS, namespace), {*names, record.target}),
        "nodes": lambda: "\n".join(
            described(each) for each in ctx.kube.list(k8s.NODES, labels=f"{POOL_LABEL}={record.pool}")
        ),
    }
    vllm = Vllm(ctx.kube, namespace, record.source.port)
    for pod in pods[:_PODS]:
        name = str(pod["metadata"]["name"])
        parts[f"metrics.{name}"] = lambda name=name: vllm.page(name)  # type: ignore[misc]
        statuses = (pod.get("status") or {}).get("containerStatuses") or []
        for status in statuses:
            key, container = f"log.{name}.{status['name']}", str(status["name"])
            parts[key] = lambda n=name, c=container: ctx.kube.pod_log(namespace, n, c, _LOG_LINES)  # type: ignore[misc]
            if status.get("restartCount"):
                parts[f"{key}.previous"] = lambda n=name, c=container: ctx.kube.pod_log(  # type: ignore[misc]
                    namespace, n, c, _LOG_LINES, previous=True
                )
    told = ctx.together([lambda part=part: _part(part) for part in parts.values()])  # type: ignore[misc]
    return dict(zip(parts, told, strict=True))


def _part(read: Callable[[], str]) -> str:
    """Return the end of a text, masked; or why there is none."""
    try:
        text = read()
    except (TransientError, PermanentError) as error:
        return f"could not be read: {error}"
    return masked(text)[-_PART_BYTES:]


def described(obj: Object) -> str:
    """Say of a pod or a node where it is, its conditions, and what its containers do; no environment, no arguments."""
    status: Mapping[str, Any] = obj.get("status") or {}
    lines = [f"{obj['metadata']['name']}: {status.get('phase', '')} {obj.get('spec', {}).get('nodeName', '')}".rstrip()]
    for each in status.get("conditions") or []:
        why = " ".join(str(each[key]) for key in ("reason", "message") if each.get(key))
        lines.append(f"  {each['type']}={each['status']} {why}".rstrip())
    for each in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        lines.append(f"  container {each['name']}: {json.dumps(each.get('state') or {})}")
        lines.append(f"    restarts {each.get('restartCount', 0)}, before: {json.dumps(each.get('lastState') or {})}")
    if allocatable := status.get("allocatable"):
        lines.append(f"  allocatable {json.dumps(allocatable)}")
    return "\n".join(lines)


def _events(events: list[Object], names: set[str]) -> str:
    """Return the events about objects whose names begin with one of `names`, the latest last."""
    told = []
    for each in events:
        about = each.get("involvedObject") or {}
        if not str(about.get("name", "")).startswith(tuple(names)):
            continue
        at = each.get("lastTimestamp") or each.get("eventTime") or each["metadata"].get("creationTimestamp") or ""
        what = f"{each.get('type', '')} {each.get('reason', '')} {about.get('kind', '')}/{about.get('name', '')}"
        told.append((str(at), f"{at} {what}: {each.get('message', '')} (x{each.get('count') or 1})"))
    return "\n".join(line for _, line in sorted(told))
