"""Carry node pool operations through their stages: machines, boot, registration, failure, removal.

Seconds here are the cloud's own, before `--speed` divides them. An operation counts the time it has
worked, not the time since it began, so one that is stuck stays where it is.
"""

from __future__ import annotations

import hashlib
from typing import Any

from google.cloud import container_v1
from google.rpc import code_pb2

from sandbox.faults import FaultSource
from sandbox.gke import capacity
from sandbox.gke.capacity import Shortage
from sandbox.gke.losses import Stage, show
from sandbox.gke.machines import MACHINES
from sandbox.gke.nodes import NodePort, build_node

PENDING_S = 2.0
MACHINES_S = 20.0  # after that long an operation asks Compute Engine for machines
STOCKOUT_RETRY_S = 2100.0  # "about 35 minutes", cluster locked (shared facts, vllm-on-tpu)
REGISTER_S = 70.0  # these three after it got machines: a whole create is 120 s
READY_S = 90.0
BOOTED_S = 100.0
CORDON_S = 5.0
REMOVE_S = 45.0
DELETED_S = 60.0
SHRUNK_S = 30.0
ABORT_S = 20.0

_CODE = container_v1.StatusCondition.Code


class Operations:
    """The engine under `GkeCloud`: works on its plain state."""

    def __init__(
        self,
        state: dict[str, Any],
        nodes: NodePort,
        project: str,
        cluster: str,
        stock: dict[str, int],
        faults: FaultSource,
    ) -> None:
        self._state = state
        self._nodes = nodes
        self._project = project
        self._cluster = cluster
        self._stock = stock
        self._faults = faults

    # ------------------------------------------------------------------ time

    def advance(self, seconds: float, now: float) -> None:
        """Let every operation work for `seconds`, and late machines turn up."""
        for operation in list(self._state["operations"].values()):
            if operation["status"] != "DONE":
                self._advance(operation, seconds, now)
        for name, pool in self._state["pools"].items():
            if pool["appears_in"] is not None:
                pool["appears_in"] -= seconds
                if pool["appears_in"] <= 0:
                    pool.update(appears_in=None, status="RUNNING", status_message="", conditions=[])
                    pool["count"] = pool["appears_count"]
                    self.register(name, pool["count"], now, ready=True)

    def seconds_to_next_event(self) -> float | None:
        """Return the least time of work until something may change, None if nothing is under way."""
        left = [pool["appears_in"] for pool in self._state["pools"].values() if pool["appears_in"] is not None]
        for operation in self._state["operations"].values():
            if operation["status"] != "DONE":
                left.append(_next_stage(operation) - operation["elapsed"])
        return max(min(left), 0.0) if left else None

    def abort(self, operation: dict[str, Any]) -> None:
        """Begin to undo an operation; it needs `ABORT_S` more."""
        if operation["status"] != "ABORTING":
            operation.update(status="ABORTING", elapsed=0.0)

    def _advance(self, operation: dict[str, Any], seconds: float, now: float) -> None:
        aborting = operation["status"] == "ABORTING"
        if not aborting and self._stuck(operation):
            operation["detail"] = "Waiting for the node pool's instance group."
            operation["status"] = "RUNNING"
            return
        operation["elapsed"] += seconds
        if aborting:
            if operation["elapsed"] >= ABORT_S:
                self._fail(operation, Shortage(code_pb2.CANCELLED, "Operation was cancelled.", 0), now)
            return
        if operation["elapsed"] < PENDING_S:
            return
        operation["status"] = "RUNNING"
        pool = self._state["pools"][operation["pool"]]
        if operation["type"] == "DELETE_NODE_POOL":
            self._delete(operation, pool, now)
        elif operation["type"] == "SET_NODE_POOL_SIZE" and operation["target"] <= pool["count"]:
            self._shrink(operation, pool, now)
        else:
            self._grow(operation, pool, now)

    def _stuck(self, operation: dict[str, Any]) -> bool:
        fault = self._faults.get("pool-stuck")
        if fault is None or fault.get("operation") != operation["type"]:
            return False
        pool = self._state["pools"][operation["pool"]]
        return capacity.applies(fault, _spec(pool), pool["zones"])

    # ---------------------------------------------------------------- stages

    def _grow(self, operation: dict[str, Any], pool: dict[str, Any], now: float) -> None:
        name = operation["pool"]
        if operation["got_machines_at"] is None:
            if operation["elapsed"] < MACHINES_S:
                return
            shortage = self._shortage(operation, pool)
            if shortage is not None:
                stockout = shortage.condition == int(_CODE.GCE_STOCKOUT)
                operation.update(detail=shortage.message, retried=True)
                if not stockout or operation["elapsed"] >= STOCKOUT_RETRY_S:
                    self._fail(operation, shortage, now)
                return
            # One long tick may have passed the moment; only a retry has got them now and not then.
            got_at = operation["elapsed"] if operation["retried"] else MACHINES_S
            operation.update(got_machines_at=got_at, detail="")
        booting = operation["elapsed"] - operation["got_machines_at"]
        if booting >= REGISTER_S and operation["late"] is None:
            fault = self._faults.get("late-stockout")
            operation["late"] = fault if fault and capacity.applies(fault, _spec(pool), pool["zones"]) else False
        if operation["late"]:
            if booting >= BOOTED_S:
                self._fail(operation, self._late_shortage(operation, pool), now)
            return
        if booting >= READY_S:
            self.register(name, operation["target"], now, ready=True)
            operation["nodes_done"] = operation["nodes_total"]
        elif booting >= REGISTER_S:
            self.register(name, operation["target"], now, ready=False)
        if booting >= BOOTED_S:
            pool.update(count=operation["target"], status="RUNNING", status_message="", conditions=[])
            self._done(operation, now)

    def _shrink(self, operation: dict[str, Any], pool: dict[str, Any], now: float) -> None:
        if operation["elapsed"] < SHRUNK_S:
            return
        self._drop_nodes(operation["pool"], keep=operation["target"])
        pool.update(count=operation["target"], status="RUNNING")
        operation["nodes_done"] = operation["nodes_total"]
        self._done(operation, now)

    def _delete(self, operation: dict[str, Any], pool: dict[str, Any], now: float) -> None:
        if CORDON_S <= operation["elapsed"] < REMOVE_S and not pool["cordoned"]:
            pool["cordoned"] = True
            self._write(operation["pool"])
        if operation["elapsed"] >= REMOVE_S:
            self._drop_nodes(operation["pool"], keep=0)
        if operation["elapsed"] >= DELETED_S:
            del self._state["pools"][operation["pool"]]
            self._done(operation, now)

    def _done(self, operation: dict[str, Any], now: float) -> None:
        operation.update(status="DONE", end=now, detail="")

    def _fail(self, operation: dict[str, Any], shortage: Shortage, now: float) -> None:
        """End an operation the way GKE does: DONE, with an error inside, the pool left behind in ERROR."""
        pool = self._state["pools"][operation["pool"]]
        conditions = [{"code": shortage.condition, "message": shortage.message}] if shortage.condition else []
        message = f"Google Compute Engine: {shortage.message}" if shortage.condition else shortage.message
        operation.update(
            status="DONE",
            end=now,
            detail="",
            error={"code": shortage.code, "message": message},
            conditions=conditions,
        )
        kept = operation["type"] == "SET_NODE_POOL_SIZE" and pool["count"] > 0
        self._drop_nodes(operation["pool"], keep=pool["count"] if kept else 0)
        pool.update(
            status="RUNNING_WITH_ERROR" if kept else "ERROR",
            status_message=message,
            conditions=conditions,
            appears_in=shortage.appears_after_s,
            appears_count=operation["target"],
        )

    # -------------------------------------------------------------- machines

    def _shortage(self, operation: dict[str, Any], pool: dict[str, Any]) -> Shortage | None:
        spec, zones = _spec(pool), pool["zones"]
        per_zone = operation["target"] - len(pool["nodes"]) // len(zones)
        if per_zone <= 0:
            return None
        instance = _node_name(self._cluster, operation["pool"], pool["etag"], zones[0], 0)
        fault = self._faults.get("stockout")
        if fault is not None and capacity.applies(fault, spec, zones):
            zone = fault.get("zone") or zones[0]
            return capacity.stockout(zone, self._project, instance, fault.get("appears_after_s"))
        for zone in zones:
            if per_zone > self._left_in(zone, spec):
                return capacity.stockout(zone, self._project, instance)
        # Last, because a stockout masks the lack of quota.
        fault = self._faults.get("quota")
        if fault is not None and capacity.applies(fault, spec, zones):
            return capacity.over_quota(str(fault["metric"]), float(fault["limit"]), instance)
        return None

    def _late_shortage(self, operation: dict[str, Any], pool: dict[str, Any]) -> Shortage:
        zone = operation["late"].get("zone") or pool["zones"][0]
        instance = _node_name(self._cluster, operation["pool"], pool["etag"], zone, 0)
        return capacity.stockout(zone, self._project, instance, operation["late"].get("appears_after_s"))

    def _left_in(self, zone: str, spec: container_v1.NodePool) -> float:
        machine, kind = spec.config.machine_type, capacity.capacity_kind(spec.config)
        left = float("inf")
        for key, same_kind in ((f"{zone}/{machine}", False), (f"{zone}/{machine}:{kind}", True)):
            if key in self._stock:
                used = self._machines_in(zone, machine, kind if same_kind else None)
                left = min(left, self._stock[key] - used)
        return left

    def _machines_in(self, zone: str, machine: str, kind: str | None) -> int:
        used = 0
        for pool in self._state["pools"].values():
            config = _spec(pool).config
            if config.machine_type == machine and kind in (None, capacity.capacity_kind(config)):
                used += sum(1 for node in pool["nodes"].values() if node["zone"] == zone)
        return used

    def chips_in_use(self, metric: str) -> int:
        """Return the chips that existing pools hold against a quota metric, those still booting included."""
        chips = 0
        for pool in self._state["pools"].values():
            spec = _spec(pool)
            if capacity.quota_metric(spec) == metric and pool["status"] != "ERROR":
                chips += MACHINES[spec.config.machine_type].chips * pool["count"] * len(pool["zones"])
        return chips

    # ----------------------------------------------------------------- nodes

    def register(self, name: str, per_zone: int, now: float, *, ready: bool) -> None:
        """Let pool `name` have `per_zone` nodes in each of its zones; those that are Ready stay so."""
        pool = self._state["pools"][name]
        machine = _spec(pool).config.machine_type
        changed = False
        for zone in pool["zones"]:
            for index in range(per_zone):
                node = _node_name(self._cluster, name, pool["etag"], zone, index)
                new = {"zone": zone, "index": index, "machine": machine, "ready": None, "booted": now, "loss": None}
                known = pool["nodes"].setdefault(node, new)
                if known["ready"] is None or (ready and not known["ready"]):
                    known.update(ready=ready, booted=now)
                    changed = True
        if changed:
            self._write(name)

    def republish(self) -> None:
        """Put every node of a state that was loaded."""
        for name in self._state["pools"]:
            self._write(name)

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
        self._write(name)

    def _write(self, name: str) -> None:
        pool = self._state["pools"][name]
        spec, cordoned = _spec(pool), pool["cordoned"]
        for node, known in pool["nodes"].items():
            if known["loss"] and known["loss"]["stage"] == Stage.GONE:
                continue
            ready = bool(known["ready"])
            wanted = build_node(node, spec, known["zone"], known["booted"], ready=ready, cordoned=cordoned)
            self._nodes.create_node(show(wanted, known["loss"]) if known["loss"] else wanted)

    def _drop_nodes(self, name: str, keep: int) -> None:
        nodes = self._state["pools"][name]["nodes"]
        for node in [node for node, known in nodes.items() if known["index"] >= keep]:
            self._nodes.delete_node(node)
            del nodes[node]


def _next_stage(operation: dict[str, Any]) -> float:
    elapsed = operation["elapsed"]
    if operation["status"] == "ABORTING":
        return ABORT_S
    stages = [PENDING_S, CORDON_S, MACHINES_S, SHRUNK_S, REMOVE_S, DELETED_S, STOCKOUT_RETRY_S]
    got = operation["got_machines_at"]
    got = MACHINES_S if got is None else got
    stages += [got + REGISTER_S, got + READY_S, got + BOOTED_S]
    later = [stage for stage in stages if stage > elapsed]
    return min(later) if later else elapsed + 1.0


def _spec(pool: dict[str, Any]) -> container_v1.NodePool:
    return container_v1.NodePool.from_json(pool["spec"])


def _node_name(cluster: str, pool: str, etag: str, zone: str, index: int) -> str:
    digest = hashlib.sha256(f"{etag}/{zone}/{index}".encode()).hexdigest()
    return f"gke-{cluster[:16]}-{pool[:24]}-{etag[:8]}-{digest[:4]}"
