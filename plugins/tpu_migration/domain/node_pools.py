"""Describe a node pool to make: the NodePool message that asks GKE for it, and the same as a gcloud command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Accelerator:
    """The GPUs of a machine, as GKE wants them named; a TPU follows from the machine type alone."""

    kind: str  # nvidia-h100-80gb
    count: int


_EFFECTS = {"NoSchedule": "NO_SCHEDULE", "PreferNoSchedule": "PREFER_NO_SCHEDULE", "NoExecute": "NO_EXECUTE"}


@dataclass(frozen=True)
class Taint:
    """What keeps pods that do not tolerate it off the nodes; `effect` as Kubernetes names it."""

    key: str
    value: str
    effect: str  # NoSchedule, PreferNoSchedule, NoExecute

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}"

    @classmethod
    def of_gke(cls, key: str, value: str, effect: str) -> Taint:
        """Read one with the effect as GKE's API names it."""
        return cls(key, value, next((name for name, theirs in _EFFECTS.items() if theirs == effect), effect))


# What a node needs of Google: pull images, write logs and metrics. What its pods may do comes by workload identity.
# https://cloud.google.com/kubernetes-engine/docs/how-to/hardening-your-cluster#use_least_privilege_sa
_SCOPES = tuple(
    f"https://www.googleapis.com/auth/{each}" for each in ("devstorage.read_only", "logging.write", "monitoring")
)


class Wanted(Protocol):
    """A node pool to make: its name, what of it cannot be changed later, and the NodePool message that asks for it."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> Mapping[str, str]: ...

    @property
    def message(self) -> Any: ...


@dataclass(frozen=True)
class PoolSpec:
    """A single-host node pool to make. A multi-host slice is another shape and not made here."""

    name: str
    machine_type: str
    node_count: int
    zone: str  # or several, with commas between them
    labels: Mapping[str, str]
    spot: bool = False
    reservation: str = ""
    max_pods_per_node: int = 32  # the default of 110 risks IP_SPACE_EXHAUSTED_WITH_DETAILS
    gpus: Accelerator | None = None
    max_nodes: int = 0  # upper bound of the pool's autoscaler, `node_count` the lower one; 0: no autoscaler
    service_account: str = ""  # of the nodes; empty: the project's default one of Compute Engine
    taints: tuple[Taint, ...] = ()

    @property
    def shape(self) -> dict[str, str]:
        """What cannot be changed on a pool that is there, in words."""
        capacity = _capacity(self.spot, self.reservation)
        return _shape(self.machine_type, self.zone.split(","), capacity, self.gpus)

    @property
    def message(self) -> dict[str, Any]:
        """The NodePool message that asks for it."""
        return node_pool(self)


@dataclass(frozen=True)
class Pool:
    """A node pool as GKE sees it."""

    name: str
    status: str
    machine_type: str
    node_count: int  # in each zone, when it was made
    labels: Mapping[str, str] = field(default_factory=dict)
    message: str = ""
    zones: tuple[str, ...] = ()
    spot: bool = False
    reservation: str = ""
    flex_start: bool = False
    gpus: Accelerator | None = None
    service_account: str = ""
    topology: str = ""  # of a TPU slice of several hosts
    self_link: str = ""
    taints: tuple[Taint, ...] = ()
    max_nodes: int = 0  # upper bound of its autoscaler in each zone; 0: it has none
    max_pods_per_node: int = 0  # 0: the cluster's default

    @property
    def shape(self) -> dict[str, str]:
        """What cannot be changed on a pool that is there, in words."""
        capacity = "flex-start" if self.flex_start else _capacity(self.spot, self.reservation)
        return _shape(self.machine_type, self.zones, capacity, self.gpus, self.topology)


def differences(found: Pool, wanted: Wanted) -> list[str]:
    """Return how a pool that is there differs from the one that is wanted, a phrase each; empty: it will do.

    What the wanted one leaves to GKE may be anything.
    """
    has = found.shape
    return [
        f"its {key} is {has[key] or 'none'}, not {value}"
        for key, value in wanted.shape.items()
        if value and has[key] != value
    ]


def _shape(
    machine_type: str, zones: Sequence[str], capacity: str, gpus: Accelerator | None, topology: str = ""
) -> dict[str, str]:
    return {
        "machine type": machine_type,
        "zone": ", ".join(sorted(zones)),
        "capacity": capacity,
        "number of GPUs": f"{gpus.count} x {gpus.kind}" if gpus else "",
        "TPU topology": topology,
    }


def made_again(pool: Pool, node_count: int) -> PoolSpec:
    """Return what asks for a pool like one that is there, of so many nodes in each of its zones.

    Disks, network and the kubelet's settings are left to GKE's defaults.
    """
    return PoolSpec(
        name=pool.name,
        machine_type=pool.machine_type,
        node_count=node_count,
        zone=",".join(pool.zones),
        labels=pool.labels,
        spot=pool.spot,
        reservation=pool.reservation,
        gpus=pool.gpus,
        service_account=pool.service_account,
        taints=pool.taints,
        max_nodes=max(pool.max_nodes, node_count) if pool.max_nodes else 0,
        **({"max_pods_per_node": pool.max_pods_per_node} if pool.max_pods_per_node else {}),
    )


def _capacity(spot: bool, reservation: str) -> str:
    return "spot" if spot else f"reservation {reservation}" if reservation else "on-demand"


def node_pool(spec: PoolSpec) -> dict[str, Any]:
    """Return the NodePool message of a single-host pool, as the GKE API takes it.

    placementPolicy is left out: GKE refuses it for a single host
    (https://cloud.google.com/kubernetes-engine/docs/how-to/tpus#create-node-pool). So is the version: nodes
    then get the control plane's, which preflight looked at, and no skew begins. An upgrade takes one node
    away before it brings its successor (maxSurge 0): of what is scarce there is no spare machine to begin with.
    """
    config: dict[str, Any] = {
        "machine_type": spec.machine_type,
        "labels": dict(spec.labels),
        "spot": spec.spot,
        "workload_metadata_config": {"mode": "GKE_METADATA"},
        "shielded_instance_config": {"enable_secure_boot": True, "enable_integrity_monitoring": True},
        "oauth_scopes": list(_SCOPES),
    }
    if spec.service_account:
        config["service_account"] = spec.service_account
    if spec.taints:
        config["taints"] = [{"key": t.key, "value": t.value, "effect": _EFFECTS[t.effect]} for t in spec.taints]
    if spec.gpus:
        config["accelerators"] = [
            {
                "accelerator_type": spec.gpus.kind,
                "accelerator_count": spec.gpus.count,
                "gpu_driver_installation_config": {"gpu_driver_version": "DEFAULT"},
            }
        ]
    if spec.reservation:
        config["reservation_affinity"] = {
            "consume_reservation_type": "SPECIFIC_RESERVATION",
            "key": "compute.googleapis.com/reservation-name",
            "values": [spec.reservation],
        }
    pool = {
        "name": spec.name,
        "initial_node_count": spec.node_count,
        "config": config,
        "locations": spec.zone.split(","),
        "max_pods_constraint": {"max_pods_per_node": spec.max_pods_per_node},
        "management": {"auto_upgrade": True, "auto_repair": True},
        "upgrade_settings": {"strategy": "SURGE", "max_surge": 0, "max_unavailable": 1},
    }
    if spec.max_nodes:
        bounds = {"enabled": True, "min_node_count": spec.node_count, "max_node_count": spec.max_nodes}
        pool["autoscaling"] = bounds
    return pool


def gcloud_line(spec: PoolSpec, project_id: str, location: str, cluster: str) -> str:
    """Return the command that asks for the same pool at a terminal.

    https://cloud.google.com/sdk/gcloud/reference/container/node-pools/create
    """
    words = ["gcloud", "container", "node-pools", "create", spec.name]
    words += [f"--project={project_id}", f"--location={location}", f"--cluster={cluster}"]
    words += [f"--machine-type={spec.machine_type}", f"--num-nodes={spec.node_count}", f"--node-locations={spec.zone}"]
    if spec.gpus:
        words.append(f"--accelerator=type={spec.gpus.kind},count={spec.gpus.count},gpu-driver-version=default")
    if spec.labels:
        words.append("--node-labels=" + ",".join(f"{key}={value}" for key, value in spec.labels.items()))
    if spec.taints:
        words.append("--node-taints=" + ",".join(str(each) for each in spec.taints))
    if spec.spot:
        words.append("--spot")
    if spec.reservation:
        words += ["--reservation-affinity=specific", f"--reservation={spec.reservation}"]
    if spec.service_account:
        words.append(f"--service-account={spec.service_account}")
    if spec.max_nodes:
        words += ["--enable-autoscaling", f"--min-nodes={spec.node_count}", f"--max-nodes={spec.max_nodes}"]
    words += [f"--scopes={','.join(_SCOPES)}", "--max-surge-upgrade=0", "--max-unavailable-upgrade=1"]
    words += [f"--max-pods-per-node={spec.max_pods_per_node}", "--workload-metadata=GKE_METADATA"]
    words += [
        "--shielded-secure-boot",
        "--shielded-integrity-monitoring",
        "--enable-autoupgrade",
        "--enable-autorepair",
    ]
    return shlex.join(words)
