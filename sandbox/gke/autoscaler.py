"""Be the cluster autoscaler: fill pools for pods that find no node, and empty those that nobody uses.

It works on the machines beside the operations of the API, as on GKE: it takes no cluster lock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from google.cloud import container_v1

from sandbox.controllers.fits import Amounts, requests, selects, shortages, untolerated
from sandbox.gke import messages
from sandbox.gke.entries import spec_of
from sandbox.gke.fleet import Fleet
from sandbox.gke.nodes import build_node
from sandbox.gke.operations import READY_S, REGISTER_S

SCAN_S = 10.0
IDLE_S = 600.0  # how long a node is unneeded before it goes
BACKOFF_S = 300.0  # after a scale-up that got no machines
_FAILED = "Node scale up in zones {} associated with this pod failed: {}. Pod is at risk of not being scheduled."

Object = dict[str, Any]


class Autoscaler:
    """Keep each pool that has autoscaling on within its bounds, by what the pods need."""

    def __init__(self, state: dict[str, Any], fleet: Fleet, speed: float) -> None:
        self._state = state
        self._fleet = fleet
        self._speed = speed

    @property
    def has_pools(self) -> bool:
        """Tell whether any pool is autoscaled."""
        return any(spec_of(pool).autoscaling.enabled for pool in self._state["pools"].values())

    def look(self, pods: Sequence[Object], now: float) -> list[Object]:
        """Act once on the pods as they are; return Events about those that it could, or could not, help."""
        events: list[Object] = []
        waiting = [pod for pod in pods if _is_unschedulable(pod)]
        busy = {
            pod["spec"].get("nodeName") for pod in pods if pod["status"].get("phase") not in ("Succeeded", "Failed")
        }
        for name, pool in self._state["pools"].items():
            spec = spec_of(pool)
            if not spec.autoscaling.enabled or pool["status"] not in ("RUNNING", "RUNNING_WITH_ERROR"):
                continue
            if pool.get("growing"):
                self._go_on(name, pool, now)
                continue
            helped = self._helped(spec, pool, waiting)
            if helped:
                waiting = [pod for pod in waiting if all(pod is not each for each in helped)]
                events += self._grow(name, pool, spec, helped, now)
            else:
                self._empty(name, pool, spec, busy, now)
        return events

    def _helped(self, spec: container_v1.NodePool, pool: dict[str, Any], waiting: list[Object]) -> list[Object]:
        """Return the pods that would fit on a new node of the pool."""
        node = _template(spec, pool)
        return [pod for pod in waiting if _fits(pod, node, {})]

    def _grow(
        self, name: str, pool: dict[str, Any], spec: container_v1.NodePool, pods: list[Object], now: float
    ) -> list[Object]:
        if now < pool.get("backoff_until", 0.0):
            return []
        zones = pool["zones"]
        more = math.ceil(_bins(pods, _template(spec, pool)) / len(zones))
        target = min(pool["count"] + more, spec.autoscaling.max_node_count)
        if target <= pool["count"]:
            return []
        shortage = self._fleet.shortage_of(name, target)
        if shortage is not None:
            pool["backoff_until"] = now + BACKOFF_S / self._speed
            why = "GCE out of resources" if "RESOURCE_POOL_EXHAUSTED" in shortage.message else "GCE quota exceeded"
            text = _FAILED.format(", ".join(zones), why)
            return [_event(pod, "Warning", "FailedScaleUp", text, now) for pod in pods]
        pool["growing"] = {"target": target, "since": now}
        text = (
            f"pod triggered scale-up: [{{{name} {pool['count']}->{target} (max: {spec.autoscaling.max_node_count})}}]"
        )
        return [_event(pod, "Normal", "TriggeredScaleUp", text, now) for pod in pods]

    def _go_on(self, name: str, pool: dict[str, Any], now: float) -> None:
        growing = pool["growing"]
        booting_s = (now - growing["since"]) * self._speed
        if booting_s >= REGISTER_S:
            self._fleet.register(name, growing["target"], now, ready=booting_s >= READY_S)
        if booting_s >= READY_S:
            pool.update(count=growing["target"], growing=None)

    def _empty(self, name: str, pool: dict[str, Any], spec: container_v1.NodePool, busy: set[Any], now: float) -> None:
        for node, known in list(pool["nodes"].items()):
            if node in busy or not known["ready"]:
                known["idle_since"] = None
                continue
            known["idle_since"] = known.get("idle_since") or now
            in_zone = sum(1 for each in pool["nodes"].values() if each["zone"] == known["zone"])
            idle_s = (now - known["idle_since"]) * self._speed
            if idle_s >= IDLE_S and in_zone > spec.autoscaling.min_node_count:
                self._fleet.remove(name, node)


def _is_unschedulable(pod: Object) -> bool:
    conditions = pod["status"].get("conditions") or []
    return any(each["type"] == "PodScheduled" and each.get("reason") == "Unschedulable" for each in conditions)


def _template(spec: container_v1.NodePool, pool: dict[str, Any]) -> Object:
    return build_node("template", spec, pool["zones"][0], 0.0, ready=True, cordoned=False)


def _fits(pod: Object, node: Object, used: Amounts) -> bool:
    return untolerated(pod, node) is None and selects(pod, node) and not shortages(requests(pod), node, used)


def _bins(pods: list[Object], node: Object) -> int:
    """Return how many new nodes the pods need, first fit."""
    bins: list[Amounts] = []
    for pod in pods:
        used = next((each for each in bins if _fits(pod, node, each)), None)
        if used is None:
            bins.append(used := {})
        for resource, amount in requests(pod).items():
            used[resource] = used.get(resource, Fraction(0)) + amount
    return len(bins)


def _event(pod: Object, kind: str, reason: str, message: str, now: float) -> Object:
    meta, stamp = pod["metadata"], messages.stamp(now)[:19] + "Z"
    about = {
        "kind": "Pod",
        "apiVersion": "v1",
        "namespace": meta["namespace"],
        "name": meta["name"],
        "uid": meta["uid"],
    }
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{meta['name']}.", "namespace": meta["namespace"]},
        "involvedObject": about,
        "type": kind,
        "reason": reason,
        "message": message,
        "count": 1,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "source": {"component": "cluster-autoscaler"},
    }
