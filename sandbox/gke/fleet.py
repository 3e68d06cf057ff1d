"""Keep the machines of the pools: what is to be had, what is registered, and what its Nodes show."""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from typing import Any

from google.cloud import container_v1

from sandbox.faults import FaultSource
from sandbox.gke import capacity
from sandbox.gke.capacity import Shortage
from sandbox.gke.entries import spec_of
from sandbox.gke.losses import Stage, show
from sandbox.gke.machines import MACHINES
from sandbox.gke.nodes import NodePort, build_node
from sandbox.gke.validation import slice_hosts

ALL_REGIONS = "GPUS_ALL_REGIONS"  # counts TPU chips, too


@dataclass(frozen=True)
class Supply:
    """What there is of everything that machines take: see `GkeCloud`."""

    stock: dict[str, int]
    quota: dict[str, int]
    pod_range: str
    region: str


class Fleet:
    """The machines under `GkeCloud`: works on its plain state, and writes their Nodes."""

    def __init__(
        self,
        state: dict[str, Any],
        nodes: NodePort,
        project: str,
        cluster: str,
        supply: Supply,
        faults: FaultSource,
    ) -> None:
        self._state = state
        self._nodes = nodes
        self._project = project
        self._cluster = cluster
        self._stock, self._quota, self._supply = supply.stock, supply.quota, supply
        self._faults = faults

    def shortage_of(self, name: str, target: int) -> Shortage | None:
        """Say why pool `name` cannot have `target` nodes a zone, or None."""
        pool = self._state["pools"][name]
        spec, zones = spec_of(pool), pool["zones"]
        per_zone = target - len(pool["nodes"]) // len(zones)
        if per_zone <= 0:
            return None
        instance = _node_name(self._cluster, name, pool["etag"], zones[0], 0)
        fault = self._faults.get("stockout")
        if fault is not None and capacity.applies(fault, spec, zones):
            zone = fault.get("zone") or zones[0]
            return capacity.stockout(zone, self._project, instance, fault.get("appears_after_s"))
        for zone in zones:
            if per_zone > self._left_in(zone, spec):
                missing = capacity.stockout(zone, self._project, instance)
                return capacity.atomic_stockout(missing) if slice_hosts(spec) > 1 else missing
        # Last, because a stockout masks the lack of quota.
        fault = self._faults.get("quota")
        if fault is not None and capacity.applies(fault, spec, zones):
            return capacity.over_quota(str(fault["metric"]), float(fault["limit"]), instance)
        more = MACHINES[spec.config.machine_type].chips * per_zone * len(zones)
        limit = self._quota.get(ALL_REGIONS)
        if limit is not None and more and self._chips_of_all() + more > limit:
            return capacity.over_quota(ALL_REGIONS, limit, instance)
        return self._no_addresses(spec, per_zone * len(zones), instance)

    def _no_addresses(self, spec: container_v1.NodePool, more: int, instance: str) -> Shortage | None:
        pod_range = self._supply.pod_range
        if not pod_range:
            return None
        pools = [(spec_of(pool), len(pool["nodes"])) for pool in self._state["pools"].values()]
        taken = sum(capacity.addresses_of(pool) * nodes for pool, nodes in [*pools, (spec, more)])
        if taken <= ipaddress.ip_network(pod_range).num_addresses:
            return None
        return capacity.no_addresses(self._project, self._supply.region, pod_range, instance)

    def late_shortage_of(self, name: str, fault: dict[str, Any]) -> Shortage:
        """Return what the operation says whose machines the fault `late-stockout` lets come later."""
        pool = self._state["pools"][name]
        if MACHINES[spec_of(pool).config.machine_type].is_tpu:
            return capacity.late_stockout(fault.get("appears_after_s"))
        zone = fault.get("zone") or pool["zones"][0]
        instance = _node_name(self._cluster, name, pool["etag"], zone, 0)
        return capacity.stockout(zone, self._project, instance, fault.get("appears_after_s"))

    def _chips_of_all(self) -> int:
        """Count the chips of existing machines, GPU and TPU alike, reserved ones left out."""
        pools = [(spec_of(pool).config, len(pool["nodes"])) for pool in self._state["pools"].values()]
        paid = [(config, nodes) for config, nodes in pools if capacity.capacity_kind(config) != "reservation"]
        return sum(MACHINES[config.machine_type].chips * nodes for config, nodes in paid)

    def _left_in(self, zone: str, spec: container_v1.NodePool) -> float:
        """Return how many machines a zone still has; a reservation has a stock of its own."""
        machine, kind = spec.config.machine_type, capacity.capacity_kind(spec.config)
        own = f"{zone}/{machine}:{kind}"
        left = self._stock[own] - self._machines_in(zone, machine, {kind}) if own in self._stock else float("inf")
        if kind != "reservation" and f"{zone}/{machine}" in self._stock:
            unreserved = {"on-demand", "spot", "flex-start"}
            left = min(left, self._stock[f"{zone}/{machine}"] - self._machines_in(zone, machine, unreserved))
        return left

    def _machines_in(self, zone: str, machine: str, kinds: set[str]) -> int:
        used = 0
        for pool in self._state["pools"].values():
            config = spec_of(pool).config
            if config.machine_type == machine and capacity.capacity_kind(config) in kinds:
                used += sum(1 for node in pool["nodes"].values() if node["zone"] == zone)
        return used

    def chips_in_use(self, metric: str) -> int:
        """Return the chips that existing pools hold against a quota metric, those still booting included."""
        chips = 0
        for pool in self._state["pools"].values():
            spec = spec_of(pool)
            if capacity.quota_metric(spec) == metric and pool["status"] != "ERROR":
                chips += MACHINES[spec.config.machine_type].chips * pool["count"] * len(pool["zones"])
        return chips

    def register(self, name: str, per_zone: int, now: float, *, ready: bool) -> None:
        """Let pool `name` have `per_zone` nodes in each of its zones; those that are Ready stay so."""
        pool = self._state["pools"][name]
        machine = spec_of(pool).config.machine_type
        changed = False
        for zone in pool["zones"]:
            taken = {known["index"] for known in pool["nodes"].values() if known["zone"] == zone}
            free = (index for index in range(per_zone) if index not in taken)
            for index in list(free)[: max(per_zone - len(taken), 0)]:
                node = _node_name(self._cluster, name, pool["etag"], zone, index)
                new = {"zone": zone, "index": index, "machine": machine, "ready": None, "booted": now, "loss": None}
                pool["nodes"][node] = new
        for known in pool["nodes"].values():
            if not known["loss"] and (known["ready"] is None or (ready and not known["ready"])):
                known.update(ready=ready, booted=now)
                changed = True
        if changed:
            self.write(name)

    def republish(self) -> None:
        """Put every node of a state that was loaded."""
        for name in self._state["pools"]:
            self.write(name)

    def follow(self, name: str, node: str, stage: Stage, now: float) -> None:
        """Let Kubernetes see what has become of a machine that was lost."""
        known = self._state["pools"][name]["nodes"][node]
        if stage in (Stage.GONE, Stage.BACK):
            # A machine that is made anew is another Node of the same name: the old one's pods go with it.
            known["ready"] = False
            self._nodes.delete_node(node)
        if stage is Stage.GONE:
            return
        if stage is Stage.BACK:
            known.update(ready=True, booted=now)
        self.write(name)

    def write(self, name: str) -> None:
        """Let the Nodes of a pool show how its machines are."""
        pool = self._state["pools"][name]
        spec, cordoned = spec_of(pool), pool["cordoned"]
        for node, known in pool["nodes"].items():
            if known["loss"] and known["loss"]["stage"] == Stage.GONE:
                continue
            ready = bool(known["ready"])
            wanted = build_node(node, spec, known["zone"], known["booted"], ready=ready, cordoned=cordoned)
            self._nodes.create_node(show(wanted, known["loss"]) if known["loss"] else wanted)

    def remove(self, name: str, node: str) -> None:
        """Take one machine away; its pool keeps what its fullest zone has."""
        pool = self._state["pools"][name]
        self._nodes.delete_node(node)
        del pool["nodes"][node]
        zones = [known["zone"] for known in pool["nodes"].values()]
        pool["count"] = max((zones.count(zone) for zone in pool["zones"]), default=0)

    def shrink(self, name: str, keep: int) -> None:
        """Take machines away until pool `name` has `keep` in each zone at most."""
        pool = self._state["pools"][name]
        for zone in pool["zones"]:
            mine = sorted((known["index"], node) for node, known in pool["nodes"].items() if known["zone"] == zone)
            for _, node in mine[keep:]:
                self._nodes.delete_node(node)
                del pool["nodes"][node]


def _node_name(cluster: str, pool: str, etag: str, zone: str, index: int) -> str:
    digest = hashlib.sha256(f"{etag}/{zone}/{index}".encode()).hexdigest()
    return f"gke-{cluster[:16]}-{pool[:24]}-{etag[:8]}-{digest[:4]}"
