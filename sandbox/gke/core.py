"""Be GKE's ClusterManager for one cluster: node pools and operations under a clock, without I/O.

Requests and answers are `google.cloud.container_v1` types, errors are `google.api_core.exceptions`.
Everything it remembers is one JSON-ready structure (`state`). Time moves only in `tick()`.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from google.api_core import exceptions
from google.cloud import container_v1

from sandbox.clock import Clock
from sandbox.faults import FaultSource, NoFaults
from sandbox.gke import capacity, entries, messages, validation
from sandbox.gke.autoscaler import Autoscaler
from sandbox.gke.entries import spec_of
from sandbox.gke.fleet import Fleet, Supply
from sandbox.gke.losses import Losses
from sandbox.gke.machines import MACHINES
from sandbox.gke.names import Target, target_of
from sandbox.gke.nodes import NodePort
from sandbox.gke.operations import Operations

_SERVICE = "https://container.googleapis.com/v1"


class GkeCloud:
    """One project with one cluster; `location` is a region, or the zone of a zonal cluster."""

    def __init__(
        self,
        clock: Clock,
        nodes: NodePort,
        *,
        speed: float = 1.0,
        project: str = "sandbox-project",
        location: str = "us-west4",
        zones: tuple[str, ...] = ("us-west4-a", "us-west4-b"),
        cluster: str = "sandbox",
        endpoint: str = "",
        ca_pem: bytes = b"",
        stock: dict[str, int] | None = None,
        quota: dict[str, int] | None = None,
        pod_range: str = "",
        faults: FaultSource | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        """Begin with `state` of an earlier run, or empty.

        `stock` counts the machines of a zone, by "ZONE/MACHINE" or "ZONE/MACHINE:CAPACITY" (spot, …);
        `quota` counts chips by metric; a regional one is checked before an operation begins, GPUS_ALL_REGIONS
        by Compute Engine in its course; `pod_range` (CIDR) is what nodes take their blocks of pod addresses from.
        What is not named there is unlimited.
        """
        self.project, self.location, self.cluster = project, location, cluster
        self.zones = zones
        self.endpoint, self.ca_pem = endpoint, ca_pem
        self._clock = clock
        self._quota = quota or {}
        self.state: dict[str, Any] = state or {"counter": 0, "ticked": clock.now(), "pools": {}, "operations": {}}
        self.speed = speed
        faults = faults or NoFaults()
        region = location if location not in zones else location.rpartition("-")[0]
        supply = Supply(stock or {}, self._quota, pod_range, region)
        self._fleet = Fleet(self.state, nodes, project, cluster, supply, faults)
        self._operations = Operations(self.state, self._fleet, faults)
        self._losses = Losses(self.state, faults, speed)
        self._autoscaler = Autoscaler(self.state, self._fleet, speed)
        self._created = clock.now()
        self._fleet.republish()

    # ------------------------------------------------------------------ time

    def tick(self) -> None:
        """Advance operations to the clock's now, and lose the machines that a fault takes."""
        now = self._clock.now()
        elapsed = (now - self.state["ticked"]) * self.speed
        self.state["ticked"] = now
        self._operations.advance(max(elapsed, 0.0), now)
        for pool, node, stage in self._losses.advance(now):
            self._fleet.follow(pool, node, stage, now)

    def next_due(self) -> float | None:
        """Return the clock's time at which `tick` has something to do next, or None while all is at rest."""
        left = self._operations.seconds_to_next_event()
        times = [self._losses.next_due(self.state["ticked"])]
        times.append(None if left is None else self.state["ticked"] + left / self.speed)
        return min((at for at in times if at is not None), default=None)

    @property
    def autoscaled(self) -> bool:
        """Tell whether any pool is autoscaled, so that pods matter."""
        return self._autoscaler.has_pools

    def autoscale(self, pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Fill or empty the autoscaled pools by the cluster's pods; return Events about them, to be created."""
        return self._autoscaler.look(pods, self._clock.now())

    # ----------------------------------------------------------------- pools

    def create_node_pool(self, request: container_v1.CreateNodePoolRequest) -> container_v1.Operation:
        """Start a CREATE_NODE_POOL operation (about 120 s for a TPU pool)."""
        self._cluster(target_of(request))
        pool = request.node_pool
        zones = list(pool.locations) or [self.zones[0]]
        machine = validation.check_pool(pool, zones, list(self.zones))
        if pool.name in self.state["pools"]:
            raise exceptions.AlreadyExists(f"Already exists: {self._path(pool.name)}.")
        self._check_quota(pool, pool.initial_node_count * len(zones) * machine.chips)
        self._check_lock()
        self._store(pool, zones, "PROVISIONING")
        return self._start("CREATE_NODE_POOL", pool.name, target=pool.initial_node_count)

    def add_running_pool(self, pool: container_v1.NodePool) -> None:
        """Let `pool` have been there all along, its nodes Ready: the fleet that a migration finds."""
        zones = list(pool.locations) or [self.zones[0]]
        validation.check_pool(pool, zones, list(self.zones))
        if pool.name in self.state["pools"]:
            return
        self._store(pool, zones, "RUNNING")
        self._fleet.register(pool.name, pool.initial_node_count, self._clock.now(), ready=True)

    def get_node_pool(self, request: container_v1.GetNodePoolRequest) -> container_v1.NodePool:
        """Return one pool."""
        target = target_of(request)
        return messages.pool_message(self._pool(target), f"{_SERVICE}/{self._path(target.pool)}")

    def list_node_pools(self, request: container_v1.ListNodePoolsRequest) -> container_v1.ListNodePoolsResponse:
        """Return all pools of the cluster."""
        self._cluster(target_of(request))
        return container_v1.ListNodePoolsResponse(node_pools=self._pool_messages())

    def set_node_pool_size(self, request: container_v1.SetNodePoolSizeRequest) -> container_v1.Operation:
        """Start a SET_NODE_POOL_SIZE operation; the size is nodes a zone."""
        target = target_of(request)
        pool = self._pool(target)
        spec = spec_of(pool)
        validation.check_size(spec, request.node_count)
        more = max(request.node_count - pool["count"], 0) * len(pool["zones"])
        self._check_quota(spec, more * MACHINES[spec.config.machine_type].chips)
        self._check_lock()
        pool["status"] = "RECONCILING"
        return self._start("SET_NODE_POOL_SIZE", target.pool, target=request.node_count)

    def set_node_pool_autoscaling(self, request: container_v1.SetNodePoolAutoscalingRequest) -> container_v1.Operation:
        """Start the short operation that sets a pool's autoscaling; bounds are nodes a zone."""
        validation.check_bounds(request.autoscaling)
        return self._set(request, "UPDATE_CLUSTER", autoscaling=request.autoscaling)

    def set_node_pool_management(self, request: container_v1.SetNodePoolManagementRequest) -> container_v1.Operation:
        """Start the short operation that sets a pool's auto-repair and auto-upgrade (neither acts here)."""
        return self._set(request, "SET_NODE_POOL_MANAGEMENT", management=request.management)

    def _set(self, request: Any, kind: str, **settings: Any) -> container_v1.Operation:
        target = target_of(request)
        pool = self._pool(target)
        self._check_lock()
        spec = spec_of(pool)
        for name, value in settings.items():
            setattr(spec, name, value)
        pool.update(spec=entries.text_of(spec), status="RECONCILING")
        return self._start(kind, target.pool, target=pool["count"])

    def delete_node_pool(self, request: container_v1.DeleteNodePoolRequest) -> container_v1.Operation:
        """Start a DELETE_NODE_POOL operation (about 60 s)."""
        target = target_of(request)
        pool = self._pool(target)
        self._check_lock()
        pool["status"], pool["appears_in"] = "STOPPING", None
        return self._start("DELETE_NODE_POOL", target.pool, target=0)

    # ------------------------------------------------------------ operations

    def get_operation(self, request: container_v1.GetOperationRequest) -> container_v1.Operation:
        """Return one operation; a finished one may carry an error."""
        return self._message(self._operation(target_of(request)))

    def list_operations(self, request: container_v1.ListOperationsRequest) -> container_v1.ListOperationsResponse:
        """Return all operations, oldest first."""
        self._place(target_of(request))
        operations = [self._message(operation) for operation in self.state["operations"].values()]
        return container_v1.ListOperationsResponse(operations=operations)

    def cancel_operation(self, request: container_v1.CancelOperationRequest) -> None:
        """Abort a running create or resize; what it made so far stays behind in a pool in ERROR."""
        operation = self._operation(target_of(request))
        if operation["status"] == "DONE":
            raise exceptions.FailedPrecondition(f"Operation {operation['name']} is already done.")
        if operation["type"] == "DELETE_NODE_POOL":
            raise exceptions.FailedPrecondition(f"Operation {operation['name']} cannot be cancelled.")
        self._operations.abort(operation)

    # --------------------------------------------------------------- cluster

    def get_cluster(self, request: container_v1.GetClusterRequest) -> container_v1.Cluster:
        """Return the cluster with the endpoint and authority of its Kubernetes API."""
        self._cluster(target_of(request))
        return self._cluster_message()

    def list_clusters(self, request: container_v1.ListClustersRequest) -> container_v1.ListClustersResponse:
        """Return the one cluster."""
        self._place(target_of(request))
        return container_v1.ListClustersResponse(clusters=[self._cluster_message()])

    def get_server_config(self, request: container_v1.GetServerConfigRequest) -> container_v1.ServerConfig:
        """Return the versions on offer."""
        self._place(target_of(request))
        return container_v1.ServerConfig(
            default_cluster_version=messages.VERSION,
            valid_master_versions=[messages.VERSION],
            valid_node_versions=[messages.VERSION],
            default_image_type="COS_CONTAINERD",
            valid_image_types=["COS_CONTAINERD"],
        )

    def _cluster_message(self) -> container_v1.Cluster:
        pools = self.state["pools"].values()
        base = f"{_SERVICE}/{self._base()}/clusters/{self.cluster}"
        return container_v1.Cluster(
            name=self.cluster,
            location=self.location,
            zone=self.location,
            locations=list(self.zones),
            endpoint=self.endpoint,
            master_auth=container_v1.MasterAuth(cluster_ca_certificate=base64.b64encode(self.ca_pem).decode()),
            status=container_v1.Cluster.Status.RECONCILING if self._running() else container_v1.Cluster.Status.RUNNING,
            current_master_version=messages.VERSION,
            current_node_version=messages.VERSION,
            initial_cluster_version=messages.VERSION,
            current_node_count=sum(len(pool["nodes"]) for pool in pools),
            create_time=messages.stamp(self._created),
            network="default",
            subnetwork="default",
            node_pools=self._pool_messages(),
            self_link=base,
        )

    # --------------------------------------------------------------- helpers

    def _place(self, target: Target) -> None:
        if target.project != self.project or target.location not in (self.location, "-"):
            raise exceptions.NotFound(f"Not found: projects/{target.project}/locations/{target.location}.")

    def _cluster(self, target: Target) -> None:
        known = (self.project, self.location, self.cluster)
        if (target.project, target.location, target.cluster) != known:
            raise exceptions.NotFound(
                f"Not found: projects/{target.project}/locations/{target.location}/clusters/{target.cluster}."
            )

    def _pool(self, target: Target) -> dict[str, Any]:
        self._cluster(target)
        if target.pool not in self.state["pools"]:
            raise exceptions.NotFound(f"Not found: {self._path(target.pool)}.")
        return self.state["pools"][target.pool]

    def _operation(self, target: Target) -> dict[str, Any]:
        self._place(target)
        if target.operation not in self.state["operations"]:
            raise exceptions.NotFound(f"Not found: {self._base()}/operations/{target.operation}.")
        return self.state["operations"][target.operation]

    def _running(self) -> list[dict[str, Any]]:
        return [operation for operation in self.state["operations"].values() if operation["status"] != "DONE"]

    def _check_lock(self) -> None:
        for operation in self._running():
            raise exceptions.FailedPrecondition(f"Cluster is running incompatible operation {operation['name']}.")

    def _check_quota(self, pool: container_v1.NodePool, chips: int) -> None:
        metric = capacity.quota_metric(pool)
        if metric and chips:
            used = self._fleet.chips_in_use(metric)
            capacity.check_quota(metric, chips, used, self._quota.get(metric))

    def _store(self, pool: container_v1.NodePool, zones: list[str], status: str) -> None:
        self.state["counter"] += 1
        etag = self._unique(pool.name)[:16]
        self.state["pools"][pool.name] = entries.new_pool(pool, zones, status, etag)

    def _start(self, kind: str, pool: str, target: int) -> container_v1.Operation:
        now = self._clock.now()
        self.state["counter"] += 1
        unique = self._unique(kind + pool)
        name = f"operation-{int(now * 1000)}-{unique[:8]}-{unique[8:12]}-{unique[12:16]}-{unique[16:28]}"
        nodes = target * len(self.state["pools"][pool]["zones"])
        operation = entries.new_operation(name, kind, self.cluster, pool, target, nodes, now)
        self.state["operations"][name] = operation
        return self._message(operation)

    def _unique(self, what: str) -> str:
        # Not random: the same history gives the same names, which makes simulations repeatable.
        return hashlib.sha256(f"{what}/{self.state['counter']}/{self._clock.now()}".encode()).hexdigest()

    def _message(self, operation: dict[str, Any]) -> container_v1.Operation:
        return messages.operation_message(operation, self.location, f"{_SERVICE}/{self._base()}")

    def _pool_messages(self) -> list[container_v1.NodePool]:
        return [
            messages.pool_message(pool, f"{_SERVICE}/{self._path(name)}") for name, pool in self.state["pools"].items()
        ]

    def _base(self) -> str:
        kind = "zones" if self.location in self.zones else "locations"
        return f"projects/{self.project}/{kind}/{self.location}"

    def _path(self, pool: str) -> str:
        return f"{self._base()}/clusters/{self.cluster}/nodePools/{pool}"
