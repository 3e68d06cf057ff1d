"""Say whether the machines of a pool are to be had: stock of the zone, quota of the project, faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from google.api_core import exceptions
from google.cloud import container_v1
from google.rpc import code_pb2

from sandbox.gke.machines import MACHINES

_CONDITION = container_v1.StatusCondition.Code


@dataclass(frozen=True)
class Shortage:
    """Why machines are not to be had, as an operation reports it."""

    code: int  # google.rpc.Code
    message: str
    condition: int | None  # StatusCondition.Code; None: it does not come from Compute Engine
    appears_after_s: float | None = None  # the machines turn up all the same, this long after the failure


def capacity_kind(config: container_v1.NodeConfig) -> str:
    """Return how a pool buys its machines: on-demand, spot, flex-start or reservation."""
    if config.spot or config.preemptible:
        return "spot"
    if config.flex_start:
        return "flex-start"
    specific = container_v1.ReservationAffinity.Type.SPECIFIC_RESERVATION
    if config.reservation_affinity.consume_reservation_type == specific:
        return "reservation"
    return "on-demand"


def applies(options: Mapping[str, Any], pool: container_v1.NodePool, zones: list[str]) -> bool:
    """Say whether a fault with these options (machine prefix, zone, capacity) hits `pool`."""
    if not pool.config.machine_type.startswith(options.get("machine") or ""):
        return False
    if options.get("zone") not in (None, *zones):
        return False
    kind = capacity_kind(pool.config)
    if "capacity" in options and kind == "reservation":
        return options["capacity"] == kind  # its machines are put by: it must be meant
    return options.get("capacity") in (None, kind)


def stockout(zone: str, project: str, instance: str, appears_after_s: float | None = None) -> Shortage:
    """Return the shortage of a zone that has no more of a machine."""
    message = (
        f"[ZONE_RESOURCE_POOL_EXHAUSTED]: Instance '{instance}' creation failed: The zone"
        f" 'projects/{project}/zones/{zone}' does not have enough resources available to fulfill the request."
        " Try a different zone, or try again later."
    )
    return Shortage(code_pb2.RESOURCE_EXHAUSTED, message, int(_CONDITION.GCE_STOCKOUT), appears_after_s)


def atomic_stockout(shortage: Shortage) -> Shortage:
    """Return the shortage of a multi-host slice, which comes whole or not at all."""
    return replace(shortage, message=f"Atomic resize failed with [GCE_STOCKOUT]: {shortage.message}")


def late_stockout(appears_after_s: float | None) -> Shortage:
    """Return the shortage of TPU machines that GKE goes on to ask for behind the failed operation."""
    message = (
        "TPU: the nodes cannot be created now due to lack of capacity. They will be created asynchronously once"
        " capacity is available."
    )
    return Shortage(code_pb2.RESOURCE_EXHAUSTED, message, int(_CONDITION.GCE_STOCKOUT), appears_after_s)


def over_quota(metric: str, limit: float, instance: str) -> Shortage:
    """Return the shortage of a project whose quota is used up."""
    scope = "globally" if metric.endswith("ALL_REGIONS") else "in this region"
    message = (
        f"[GCE_QUOTA_EXCEEDED]: Instance '{instance}' creation failed: Quota '{metric}' exceeded."
        f"  Limit: {float(limit)} {scope}."
    )
    return Shortage(code_pb2.RESOURCE_EXHAUSTED, message, int(_CONDITION.GCE_QUOTA_EXCEEDED))


def no_addresses(project: str, region: str, pod_range: str, instance: str) -> Shortage:
    """Return the shortage of a cluster whose range of pod addresses is used up by its nodes' blocks."""
    message = (
        f"[IP_SPACE_EXHAUSTED_WITH_DETAILS]: Instance '{instance}' creation failed: IP space of"
        f" 'projects/{project}/regions/{region}/subnetworks/default' is exhausted. Insufficient free IP addresses in"
        f" the IP range '{pod_range}'. Consider expanding the current IP range or selecting an alternative IP range."
        " If this is a secondary range, consider adding an additional secondary range."
    )
    return Shortage(code_pb2.RESOURCE_EXHAUSTED, message, int(_CONDITION.UNKNOWN))


def max_pods(pool: container_v1.NodePool) -> int:
    """Return how many pods a node of the pool may have."""
    return int(pool.max_pods_constraint.max_pods_per_node) or 110


def addresses_of(pool: container_v1.NodePool) -> int:
    """Return the pod addresses that each node of a pool takes: the block that holds twice its pods.

    https://cloud.google.com/kubernetes-engine/docs/how-to/flexible-pod-cidr: 110 pods take 256, 32 take 64.
    """
    pods = max_pods(pool)
    return 1 << (2 * pods - 1).bit_length()


def quota_metric(pool: container_v1.NodePool) -> str:
    """Return the quota metric that counts the pool's chips; "" if none does (a reservation needs none)."""
    kind = capacity_kind(pool.config)
    metric = MACHINES[pool.config.machine_type].quota
    if not metric or kind == "reservation":
        return ""
    return f"PREEMPTIBLE_{metric}" if kind == "spot" else metric


def check_quota(metric: str, needed: int, used: int, limit: int | None) -> None:
    """Raise PermissionDenied (403) if a regional quota does not cover `needed` more chips."""
    if limit is None or used + needed <= limit:
        return
    left = max(limit - used, 0)
    raise exceptions.PermissionDenied(
        f'Insufficient regional quota to satisfy request: resource "{metric}": request requires'
        f" '{float(needed)}' and is short '{float(needed - left)}'. The project has a quota of"
        f" '{float(limit)}' with '{float(left)}' available."
    )
