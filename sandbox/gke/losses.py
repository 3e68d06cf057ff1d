"""Let machines die: at once, or after the notice that a spot machine gets.

Which ones is drawn from those that are Ready, by the fault's seed. That a machine is off is said by an
annotation on its Node (`sandbox.power`). Kubernetes sees what it sees of a real one: some time later its
node has stopped to report.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from enum import StrEnum
from random import Random
from typing import Any

from sandbox.faults import FaultSource
from sandbox.gke.nodes import Node
from sandbox.power import annotations

FAULTS = ("node-lost", "gpu-gone", "spot-notice")
# GKE taints a spot node that has got its notice, and its kubelet ends the pods (graceful node shutdown).
IMPENDING = {"key": "cloud.google.com/impending-node-termination", "effect": "NoSchedule"}
SILENCE_S = 40.0  # how long a silent node still counts as Ready: GKE's node-monitor-grace-period
REMAKE_S = 100.0  # what a machine takes to come up anew


class Stage(StrEnum):
    """What has become of a machine."""

    ENDING = "ending"  # it has its notice
    OFF = "off"  # it is dead, and nobody has noticed
    SILENT = "silent"  # Kubernetes has
    GONE = "gone"  # its Node is removed, its successor boots
    BACK = "back"


class Losses:
    """Work on the plain state of a `GkeCloud`: a node's `loss` says when its machine dies and comes back.

    Times are the clock's, Unix seconds. `speed` shortens all but the notice, which must hold the pods'
    grace periods.
    """

    def __init__(self, state: dict[str, Any], faults: FaultSource, speed: float) -> None:
        self._state = state
        self._faults = faults
        self._speed = speed

    def advance(self, now: float) -> list[tuple[str, str, Stage]]:
        """Let machines die, be missed and come back; return (pool, node, stage) of those that moved on."""
        for fault in FAULTS:
            self._strike(fault, now)
        moved = []
        for pool, node, known in list(self._nodes()):
            loss = known.get("loss")
            if loss is None or (stage := _stage(loss, now)) == loss["stage"]:
                continue
            loss["stage"] = stage
            if stage is Stage.BACK:
                known["loss"] = None
            moved.append((pool, node, stage))
        return moved

    def next_due(self, now: float) -> float | None:
        """Return the clock's time at which something changes next, or None."""
        times = [at for _, _, known in self._nodes() if known.get("loss") for at in known["loss"]["times"].values()]
        return min((at for at in times if at > now), default=None)

    def _nodes(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for pool, state in self._state["pools"].items():
            for node, known in state["nodes"].items():
                yield pool, node, known

    def _strike(self, name: str, now: float) -> None:
        """Draw machines once for each time that the fault is switched on, as soon as there are any."""
        struck: dict[str, bool] = self._state.setdefault("struck", {})
        fault = self._faults.get(name)
        if fault is None:
            struck.pop(name, None)
            return
        standing = {node: known for _, node, known in self._nodes() if _may_die(known, str(fault["machine"]))}
        if name in struck or not standing:
            return
        struck[name] = True
        count = min(int(fault["count"]), len(standing))
        for node in Random(f"{name}/{fault['seed']}").sample(sorted(standing), count):
            standing[node]["loss"] = {"stage": "", "times": self._times(fault, now)}

    def _times(self, fault: dict[str, Any], now: float) -> dict[str, float]:
        """Return when each stage begins, in their order."""
        off = now + float(fault.get("notice_s") or 0.0)
        times: dict[str, float] = {Stage.ENDING: now} if off > now else {}
        times |= {Stage.OFF: off, Stage.SILENT: off + SILENCE_S / self._speed}
        if fault["returns_after_s"] is not None:
            back = off + float(fault["returns_after_s"]) / self._speed
            times |= {Stage.GONE: max(off, back - REMAKE_S / self._speed), Stage.BACK: back}
        return times


def _may_die(known: dict[str, Any], machine: str) -> bool:
    return bool(known["machine"].startswith(machine) and known["ready"] and not known.get("loss"))


def _stage(loss: dict[str, Any], now: float) -> Stage:
    """Return the last stage that has begun; a Node that is removed is not missed any more."""
    return Stage(max((stage for stage, at in loss["times"].items() if at <= now), key=list(Stage).index))


def show(node: Node, loss: dict[str, Any]) -> Node:
    """Return the Node of a machine that is lost, as Kubernetes sees it."""
    stage, times = loss["stage"], loss["times"]
    notice_s = times[Stage.OFF] - times.get(Stage.ENDING, times[Stage.OFF])
    metadata = {**node["metadata"], "annotations": annotations(stage != Stage.ENDING, notice_s)}
    shown = {**node, "metadata": metadata}
    if Stage.ENDING in times:
        shown["spec"] = {**node["spec"], "taints": [*(node["spec"].get("taints") or []), dict(IMPENDING)]}
    if stage == Stage.SILENT:
        changed = ("Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status.", times[Stage.SILENT])
    elif Stage.ENDING in times:
        changed = ("False", "KubeletNotReady", "node is shutting down", times[Stage.ENDING])
    else:
        return shown
    status, reason, message, since = changed
    stamp = datetime.datetime.fromtimestamp(since, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {"type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": stamp}
    shown["status"] = {**node["status"], "conditions": [{**node["status"]["conditions"][0], **condition}]}
    return shown
