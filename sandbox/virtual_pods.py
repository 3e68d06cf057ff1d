"""Be the pods of a virtual world, as a kubelet sees them; counters instead of sockets."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from sandbox.world import World

_TOOL_BOOT_S = 2.0


class PodState(NamedTuple):
    """What a kubelet tells of a pod."""

    ready: bool
    phase: str = "Running"
    restarts: int = 0
    waiting: str = ""  # why the container does not run
    last_exit: int | None = None  # how the container ended last; 137: for the memory that it used


class VirtualPod:
    """One pod that runs on a node; `written` is the state last given to the API."""

    boot_s = _TOOL_BOOT_S

    def __init__(self, world: World, obj: dict[str, Any], node_labels: dict[str, str], address: str) -> None:
        self.world, self.address = world, address
        self.name: str = obj["metadata"]["name"]
        self.node: str = obj["spec"]["nodeName"]
        self.container: dict[str, Any] = obj["spec"]["containers"][0]
        self.node_labels = node_labels
        self.started = world.clock.now()
        self.boot_s = self.boot_s / world.speed
        self.grace_s = float(obj["spec"].get("terminationGracePeriodSeconds", 30))
        self.stopped: float | None = None
        self.written: PodState | None = None
        self.restarts = 0
        self._pulled = False

    def listens(self, now: float) -> bool:
        """Tell whether the process answers on its port."""
        return self._pulled and now - self.started >= self.boot_s and self.node not in self.world.nodes_off

    def state(self, now: float) -> PodState:
        """Return what decides the pod's status; equal states have equal statuses."""
        if not self._pulled:
            return PodState(False, "Pending", waiting="ImagePullBackOff")
        return PodState(self.listens(now) and self.stopped is None)

    def status(self, state: PodState) -> dict[str, Any]:
        """Return the pod's status as a kubelet writes it."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started))
        now: dict[str, Any] = {"running": {"startedAt": stamp}}
        if state.waiting:
            now = {"waiting": {"reason": state.waiting, "message": f"container {self.container['name']}"}}
        elif state.phase in ("Succeeded", "Failed"):
            now = {"terminated": {"exitCode": 0, "reason": "Completed"}}
        container = {
            "name": self.container["name"],
            "ready": state.ready,
            "restartCount": state.restarts,
            "image": self.container["image"],
            "imageID": "",
            "state": now,
        }
        if state.last_exit is not None:
            reason = "OOMKilled" if state.last_exit == 137 else "Error"
            container["lastState"] = {"terminated": {"exitCode": state.last_exit, "reason": reason}}
        return {
            "phase": state.phase,
            "podIP": self.address,
            "conditions": [
                {"type": kind, "status": "True" if ok else "False", "lastTransitionTime": stamp}
                for kind, ok in (("PodScheduled", True), ("ContainersReady", state.ready), ("Ready", state.ready))
            ],
            "containerStatuses": [container],
        }

    def tick(self, now: float) -> None:
        """Do what the process does by itself as time passes."""
        if self._pulled:
            return
        fault = self.world.faults.get("image-pull")
        if fault is None or fault["image"] not in self.container["image"]:
            self._pulled, self.started = True, now

    def stop(self, now: float) -> None:
        """Begin to end, as after SIGTERM."""
        if self.stopped is None:
            self.stopped = now

    def ended(self, now: float) -> bool:
        """Tell whether the process has ended since `stop`."""
        return self.stopped is not None

    def cut(self, now: float) -> int:
        """Return how many users' streams end with the process."""
        return 0

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Answer an HTTP request."""
        return 404, b'{"detail":"Not Found"}'

    def log(self) -> list[str]:
        """Return the log's lines."""
        return []

    def previous_log(self) -> list[str]:
        """Return the lines of the process before the last restart."""
        return []

    def options(self) -> dict[str, str]:
        """Return the `--name=value` arguments."""
        pairs = [each.removeprefix("--").partition("=") for each in self.container.get("args") or []]
        return {name: value for name, _, value in pairs}


class PlainPod(VirtualPod):
    """A pod whose work is of no interest to a migration (the guard runs beside the world)."""


class ProberPod(VirtualPod):
    """The prober: one request a second on the users' way, one each two seconds on each arm."""

    def __init__(self, world: World, obj: dict[str, Any], node_labels: dict[str, str], address: str) -> None:
        super().__init__(world, obj, node_labels, address)
        self.arms = {
            name: {"ok": 0, "failed": 0, "consecutive": 0, "last_ok": None} for name in ("main", "source", "target")
        }
        self._next = self.started + self.boot_s

    def tick(self, now: float) -> None:
        super().tick(now)
        while self.listens(now) and self._next <= now:
            even = int(self._next) % 2 == 0
            for name, arm in self.arms.items():
                if name != "main" and not even:
                    continue
                ok = not self.world.traffic.send(self.world.traffic.backends(None if name == "main" else name), 0.0)
                arm["ok" if ok else "failed"] += 1
                arm["consecutive"] = 0 if ok else arm["consecutive"] + 1
                if ok:
                    arm["last_ok"] = now
            self._next += 1.0

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        now = self.world.clock.now()
        arms = {
            name: {
                "ok": arm["ok"],
                "failed": arm["failed"],
                "truncated": 0,
                "consecutive_failures": arm["consecutive"],
                "last_ok_s_ago": None if arm["last_ok"] is None else now - arm["last_ok"],
                "last_error": "503" if arm["consecutive"] else None,
                "in_flight": 0,
            }
            for name, arm in self.arms.items()
        }
        return 200, json.dumps({"schema": 1, "started_s_ago": now - self.started, "arms": arms}).encode()
