"""Carry node pool operations through their stages: machines, boot, registration, failure, removal.

Seconds here are the cloud's own, before `--speed` divides them. An operation counts the time it has
worked, not the time since it began, so one that is stuck stays where it is.
"""

from __future__ import annotations

from typing import Any

from google.cloud import container_v1
from google.rpc import code_pb2

from sandbox.faults import FaultSource
from sandbox.gke import capacity
from sandbox.gke.capacity import Shortage
from sandbox.gke.entries import spec_of
from sandbox.gke.fleet import Fleet

PENDING_S = 2.0
SETTINGS_S = 5.0  # what a change of settings alone takes
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

# Autoscaling has no operation type of its own.
SETTINGS = frozenset({"UPDATE_CLUSTER", "SET_NODE_POOL_MANAGEMENT"})
_CODE = container_v1.StatusCondition.Code


class Operations:
    """The engine under `GkeCloud`: works on its plain state."""

    def __init__(self, state: dict[str, Any], fleet: Fleet, faults: FaultSource) -> None:
        self._state = state
        self._fleet = fleet
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
                    self._fleet.register(name, pool["count"], now, ready=True)

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
                self._fail(operation, Shortage(code_pb2.CANCELLED, "Operation was cancelled.", None), now)
            return
        if operation["elapsed"] < PENDING_S:
            return
        operation["status"] = "RUNNING"
        pool = self._state["pools"][operation["pool"]]
        if operation["type"] in SETTINGS:
            if operation["elapsed"] >= SETTINGS_S:
                pool["status"] = "RUNNING"
                self._done(operation, now)
        elif operation["type"] == "DELETE_NODE_POOL":
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
        return capacity.applies(fault, spec_of(pool), pool["zones"])

    # ---------------------------------------------------------------- stages

    def _grow(self, operation: dict[str, Any], pool: dict[str, Any], now: float) -> None:
        name = operation["pool"]
        if operation["got_machines_at"] is None:
            if operation["elapsed"] < MACHINES_S:
                return
            shortage = self._fleet.shortage_of(name, operation["target"])
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
            operation["late"] = fault if fault and capacity.applies(fault, spec_of(pool), pool["zones"]) else False
        if operation["late"]:
            if booting >= BOOTED_S:
                self._fail(operation, self._fleet.late_shortage_of(name, operation["late"]), now)
            return
        if booting >= READY_S:
            self._fleet.register(name, operation["target"], now, ready=True)
            operation["nodes_done"] = operation["nodes_total"]
        elif booting >= REGISTER_S:
            self._fleet.register(name, operation["target"], now, ready=False)
        if booting >= BOOTED_S:
            pool.update(count=operation["target"], status="RUNNING", status_message="", conditions=[])
            self._done(operation, now)

    def _shrink(self, operation: dict[str, Any], pool: dict[str, Any], now: float) -> None:
        if operation["elapsed"] < SHRUNK_S:
            return
        self._fleet.shrink(operation["pool"], keep=operation["target"])
        pool.update(count=operation["target"], status="RUNNING")
        operation["nodes_done"] = operation["nodes_total"]
        self._done(operation, now)

    def _delete(self, operation: dict[str, Any], pool: dict[str, Any], now: float) -> None:
        if CORDON_S <= operation["elapsed"] < REMOVE_S and not pool["cordoned"]:
            pool["cordoned"] = True
            self._fleet.write(operation["pool"])
        if operation["elapsed"] >= REMOVE_S:
            self._fleet.shrink(operation["pool"], keep=0)
        if operation["elapsed"] >= DELETED_S:
            del self._state["pools"][operation["pool"]]
            self._done(operation, now)

    def _done(self, operation: dict[str, Any], now: float) -> None:
        operation.update(status="DONE", end=now, detail="")

    def _fail(self, operation: dict[str, Any], shortage: Shortage, now: float) -> None:
        """End an operation the way GKE does: DONE, with an error inside, the pool left behind in ERROR."""
        pool = self._state["pools"][operation["pool"]]
        conditions = [{"code": shortage.condition, "message": shortage.message}] if shortage.condition else []
        message = shortage.message if shortage.condition is None else f"Google Compute Engine: {shortage.message}"
        operation.update(
            status="DONE",
            end=now,
            detail="",
            error={"code": shortage.code, "message": message},
            conditions=conditions,
        )
        kept = operation["type"] == "SET_NODE_POOL_SIZE" and pool["count"] > 0
        self._fleet.shrink(operation["pool"], keep=pool["count"] if kept else 0)
        pool.update(
            status="RUNNING_WITH_ERROR" if kept else "ERROR",
            status_message=message,
            conditions=conditions,
            appears_in=shortage.appears_after_s,
            appears_count=operation["target"],
        )


def _next_stage(operation: dict[str, Any]) -> float:
    elapsed = operation["elapsed"]
    if operation["status"] == "ABORTING":
        return ABORT_S
    stages = [PENDING_S, SETTINGS_S, CORDON_S, MACHINES_S, SHRUNK_S, REMOVE_S, DELETED_S, STOCKOUT_RETRY_S]
    got = operation["got_machines_at"]
    got = MACHINES_S if got is None else got
    stages += [got + REGISTER_S, got + READY_S, got + BOOTED_S]
    later = [stage for stage in stages if stage > elapsed]
    return min(later) if later else elapsed + 1.0
