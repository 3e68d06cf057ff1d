"""Look after a workload that has migrated: what is no longer as proven, who changed it, and whether users are served.

Nobody works on it any more, and the guard helps those alone whom a run was moving. So this is looked at on a
schedule, for as long as its record says that users are on the TPU.
"""

from __future__ import annotations

from collections.abc import Iterator

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Kubernetes, Object
from tpu_migration.clock import Clock
from tpu_migration.domain.ownership import gitops_owner
from tpu_migration.domain.phases import AFTER_COMMIT, Phase
from tpu_migration.domain.routing import RouteError, epoch_of, points_at, rules_of, target_percent
from tpu_migration.names import Names
from tpu_migration.record import Record, RecordError
from tpu_migration.records import all_records
from tpu_migration.restore import observed_safe_route, ready_endpoints, restore
from tpu_migration.stages.objects import is_behind_a_budget, last_writer, other_routes, template_hash


def to_look_after(kube: Kubernetes, namespace: str) -> list[str]:
    """Return the workloads of a namespace that are on TPU for good, and those whose record cannot be read."""
    found = all_records(kube, namespace)
    return sorted(name for name, each in found.items() if isinstance(each, RecordError) or each.phase in AFTER_COMMIT)


def drifts(kube: Kubernetes, record: Record) -> list[str]:
    """Return what is not as it was proven, a sentence each, with who wrote it and what to do; empty: all is well."""
    return [*_route(kube, record), *_target(kube, record), *_source(kube, record)]


def serve_users(kube: Kubernetes, record: Record, actor: str, clock: Clock) -> str:
    """Send users to the safe route if where they are sent nobody is ready, while somebody is on it.

    Return what was done, empty for nothing. Whoever wrote the route is not fought for anything less: as long
    as users are served people decide.
    """
    safe = observed_safe_route(kube, record)
    route = kube.get(k8s.HTTP_ROUTES, record.source.route, record.namespace)
    if route is not None:
        percent = target_percent(rules_of(route), record.source.service, record.target)
        if percent == safe.target_percent:
            return ""
        sent_to = [name for name, share in ((record.target, percent), (record.source.service, 100 - percent)) if share]
        if all(ready_endpoints(kube, record.namespace, name) for name in sent_to):
            return ""
    reason = "users were sent to where nobody is ready"
    done = restore(kube, record.namespace, record.workload, actor=actor, reason=reason, clock=clock)
    return f"{reason}, and are sent to the safe route again ({done.reason})"


def _route(kube: Kubernetes, record: Record) -> Iterator[str]:
    source = record.source
    route = kube.get(k8s.HTTP_ROUTES, source.route, record.namespace)
    if route is None:
        yield f"HTTPRoute {source.route} is gone: somebody deleted it"
        return
    percent, safe = target_percent(rules_of(route), source.service, record.target), observed_safe_route(kube, record)
    if percent != safe.target_percent:
        yield (
            f"HTTPRoute {source.route} gives {record.target} {percent} %, the safe route gives it "
            f"{safe.target_percent} % ({safe.reason}); last written by {_who(route)}. If they mean it, go back with "
            f"the DAG gpu_fallback; else `tpu-migration restore {record.workload}`"
        )
        return
    if percent == 100 and points_at(route, source.service):
        yield (
            f"HTTPRoute {source.route} has a rule that still sends users to {source.service}; last written by "
            f"{_who(route)}. Point it at {record.target}, or go back with the DAG gpu_fallback"
        )
        return
    try:
        epoch = epoch_of(route, record.workload)
    except RouteError as error:
        yield str(error)
        return
    if epoch != record.epoch:
        yield (
            f"HTTPRoute {source.route} carries epoch {epoch}, the record {record.epoch}; last written by "
            f"{_who(route)}. `tpu-migration restore {record.workload}` brings both together"
        )


def _who(obj: Object) -> str:
    owner = gitops_owner(obj)
    return last_writer(obj) + (f" ({owner.name} owns it: put the new weights into its declared state)" if owner else "")


def _target(kube: Kubernetes, record: Record) -> Iterator[str]:
    target = kube.get(k8s.DEPLOYMENTS, record.target, record.namespace)
    if target is None:
        yield f"Deployment {record.target} is gone: somebody deleted it; bring users back with the DAG gpu_fallback"
        return
    if record.template_hash and template_hash(target) != record.template_hash:
        yield (
            f"Deployment {record.target} is not the one that passed the gate: its pod template was changed, last by "
            f"{_who(target)}; what was measured does not hold for it"
        )
    wanted, ready = target["spec"].get("replicas", 1), (target.get("status") or {}).get("readyReplicas", 0)
    if ready < wanted or wanted < record.plan["target_replicas"]:
        yield (
            f"Deployment {record.target} has {ready} ready replicas of {wanted}, the plan's "
            f"{record.plan['target_replicas']} were proven to carry the peak"
        )
    labels = target["spec"]["template"]["metadata"].get("labels") or {}
    if not record.plan.get("accept_single_replica") and not is_behind_a_budget(kube, record.namespace, labels):
        yield f"no PodDisruptionBudget covers the pods of {record.target}: an upgrade could take all of them at once"


def _source(kube: Kubernetes, record: Record) -> Iterator[str]:
    source, names = record.source, Names(record.workload, record.run_id)
    if record.phase is not Phase.MIGRATED or record.source_capacity:
        return  # it was kept, or is being given up at this moment
    if others := other_routes(kube, record.namespace, source.service, (source.route, names.probe_route)):
        told = ", ".join(others)
        yield f"HTTPRoute {told} sends users to {source.service}, which is given up: point it at {record.target}"
    deployment = kube.get(k8s.DEPLOYMENTS, source.deployment, record.namespace)
    replicas = deployment["spec"].get("replicas", 1) if deployment else 0
    if deployment is not None and replicas:
        yield (
            f"Deployment {source.deployment} was given up and asks for {replicas} replicas again, last written by "
            f"{_who(deployment)}: they cost and serve nobody"
        )
