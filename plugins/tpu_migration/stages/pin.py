"""Pin the source at full strength while users move, and put back what was there before."""

from __future__ import annotations

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.errors import PermanentError
from tpu_migration.names import record_name
from tpu_migration.record import Record
from tpu_migration.stages.base import Context


def pin_source(ctx: Context, record: Record) -> None:
    """Hold the source at what the peak needs: the HPA may not go below it, no eviction may take one.

    The HPA's original minimum is in the record since preflight, before anything was changed.
    """
    source, namespace = record.source, record.namespace
    if source.hpa:
        ctx.kube.patch(k8s.HPAS, source.hpa, namespace, {"spec": {"minReplicas": source.replicas}})
    deployment = ctx.kube.get(k8s.DEPLOYMENTS, source.deployment, namespace)
    if deployment is None:
        raise PermanentError(f"Deployment {source.deployment}, the way back, is gone")
    ctx.kube.apply(
        {
            "apiVersion": k8s.PDBS.api_version,
            "kind": k8s.PDBS.kind,
            "metadata": {"name": _name(record), "namespace": namespace, "labels": ctx.names.labels},
            "spec": {
                "minAvailable": source.replicas,
                "selector": {"matchLabels": deployment["spec"]["selector"]["matchLabels"]},
            },
        }
    )


def unpin_source(ctx: Context, record: Record) -> None:
    """Take the pin off; an HPA that somebody deleted in the meantime stays deleted."""
    source, namespace = record.source, record.namespace
    if source.hpa and source.hpa_min_replicas is not None:
        hpa = ctx.kube.get(k8s.HPAS, source.hpa, namespace)
        if hpa and hpa["spec"].get("minReplicas") != source.hpa_min_replicas:
            ctx.kube.patch(k8s.HPAS, source.hpa, namespace, {"spec": {"minReplicas": source.hpa_min_replicas}})
    ctx.kube.delete(k8s.PDBS, _name(record), namespace)


def _name(record: Record) -> str:
    return f"{record_name(record.workload)}-pin"
