"""Follow a node pool until its nodes can take pods; calling it again after a crash makes no second pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.kubernetes import Kubernetes, Object
from tpu_migration.domain.node_pools import Pool, PoolSpec, Wanted, differences
from tpu_migration.errors import NoCapacityError, PermanentError
from tpu_migration.stages.base import Waiting

POLL_S = 3.0
POOL_LABEL = "cloud.google.com/gke-nodepool"
_ZONE_LABEL = "topology.kubernetes.io/zone"


def under_way(pools: NodePools, name: str) -> str | None:
    """Return the operation that makes a pool which is not to be seen yet: the answer to an earlier create was lost."""
    running = pools.running_operations(name)
    return running[0].name if running else None


@dataclass(frozen=True)
class Request:
    """What is known of the create call for a pool."""

    sent: bool = False  # one may have reached GKE
    operation: str = ""  # that answered it; empty where no answer came


def follow(
    pools: NodePools, wanted: Wanted, request: Request, remember: Callable[[str], object], more: str = ""
) -> Waiting | None:
    """Observe a pool and the operation that makes it, ask for what is missing; None once the pool runs.

    `remember` keeps the name of the operation, `more` is told with the request. Raises NoCapacityError once the
    request came to nothing, PermanentError for a pool of another shape.
    """
    found = pools.get(wanted.name)
    if request.operation and (error := pools.operation(request.operation).error):
        raise NoCapacityError(error)
    if found is None:
        return _ask(pools, wanted, request, remember, more)
    waiting = not_running(found, wanted)
    if waiting and request.sent and not request.operation and (running := under_way(pools, wanted.name)):
        remember(running)
    return waiting


def _ask(pools: NodePools, wanted: Wanted, request: Request, remember: Callable[[str], object], more: str) -> Waiting:
    if running := under_way(pools, wanted.name):
        remember(running)
        return Waiting(POLL_S, f"node pool {wanted.name}: {running} is under way")
    if request.operation:
        raise NoCapacityError(f"node pool {wanted.name} is gone though its creation ended well: somebody deleted it")
    remember(pools.create(wanted))
    return Waiting(POLL_S, f"node pool {wanted.name} asked for{more and ': '}{more}")


def not_running(found: Pool, spec: Wanted) -> Waiting | None:
    """Return what a pool that is there is waited for, or None once it runs.

    Raises PermanentError for a pool of another shape, NoCapacityError for one that GKE gave up on.
    """
    if different := differences(found, spec):
        raise PermanentError(
            f"node pool {found.name} is there, but {', and '.join(different)}: delete it or name another"
        )
    if found.status in ("ERROR", "RUNNING_WITH_ERROR", "STOPPING"):
        raise NoCapacityError(f"node pool {found.name} is {found.status}: {found.message or 'GKE gives no reason'}")
    if found.status not in ("RUNNING", "RECONCILING"):
        return Waiting(POLL_S, f"node pool {found.name} is {found.status.lower()}")
    return None


def ready_nodes(
    kube: Kubernetes, spec: PoolSpec, resource: str, chips: int, labels: Mapping[str, str] | None = None
) -> Waiting | list[str]:
    """Return the names of the pool's nodes that can take a replica each, or what each one lacks.

    `labels` are those that pods select their nodes by; GKE sets them for a TPU's device plugin, too.
    """
    nodes = kube.list(k8s.NODES, labels=f"{POOL_LABEL}={spec.name}")
    wanted = {**(labels or {}), _ZONE_LABEL: spec.zone}
    lacking = {each["metadata"]["name"]: _what_is_missing(each, resource, chips, wanted) for each in nodes}
    ready = sorted(name for name, missing in lacking.items() if not missing)
    if len(ready) >= spec.node_count:
        return ready
    missing = [f"{name} {why}" for name, why in lacking.items() if why]
    detail = f" ({'; '.join(missing)})" if missing else ""
    kind = "TPU" if resource.endswith("tpu") else "GPU"
    return Waiting(POLL_S, f"{len(ready)} of {spec.node_count} {kind} nodes are ready{detail}")


def _what_is_missing(node: Object, resource: str, chips: int, labels: Mapping[str, str]) -> str:
    status, has = node.get("status") or {}, node["metadata"].get("labels") or {}
    conditions = {each["type"]: each["status"] for each in status.get("conditions") or []}
    if conditions.get("Ready") != "True":
        return "is not Ready"
    for key, value in labels.items():
        if has.get(key) != value:
            return f"has {f'{key}={has[key]}' if key in has else f'no label {key}'}, not {value}"
    offered = int((status.get("allocatable") or {}).get(resource, "0"))
    if offered < chips:
        return f"offers {offered} {resource}, not {chips}: its device plugin is not up"
    return ""
