"""Be the processes of a virtual world: engines, the prober, benchmark Jobs; counters instead of sockets."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from tpu_migration.bench.results import render
from tpu_migration.domain.gate import RequestResult

if TYPE_CHECKING:
    from sandbox.world import World

_GPU_BOOT_S, _TPU_BOOT_S, _TOOL_BOOT_S = 40.0, 240.0, 2.0
_TTFT_S, _TPOT_S = 0.15, 0.02


class PodState(NamedTuple):
    """What a kubelet would tell of a pod."""

    ready: bool
    ended: bool = False
    restarts: int = 0


class VirtualPod:
    """One pod that runs on a node; `written` is the state last given to the API."""

    boot_s = _TOOL_BOOT_S

    def __init__(self, world: World, obj: dict[str, Any], node_labels: dict[str, str], address: str) -> None:
        self.world, self.address = world, address
        self.name: str = obj["metadata"]["name"]
        self.container: dict[str, Any] = obj["spec"]["containers"][0]
        self.node_labels = node_labels
        self.started = world.clock.now()
        self.boot_s = self.boot_s / world.speed
        self.grace_s = float(obj["spec"].get("terminationGracePeriodSeconds", 30))
        self.stopped: float | None = None
        self.written: PodState | None = None

    def listens(self, now: float) -> bool:
        """Tell whether the process answers on its port."""
        return now - self.started >= self.boot_s

    def state(self, now: float) -> PodState:
        """Return what decides the pod's status; equal states have equal statuses."""
        return PodState(self.listens(now))

    def status(self, state: PodState) -> dict[str, Any]:
        """Return the pod's status as a kubelet writes it."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started))
        running: dict[str, Any] = {"running": {"startedAt": stamp}}
        ended = {"terminated": {"exitCode": 0, "reason": "Completed"}}
        return {
            "phase": "Succeeded" if state.ended else "Running",
            "podIP": self.address,
            "conditions": [
                {"type": kind, "status": "True" if ok else "False", "lastTransitionTime": stamp}
                for kind, ok in (("PodScheduled", True), ("ContainersReady", state.ready), ("Ready", state.ready))
            ],
            "containerStatuses": [
                {
                    "name": self.container["name"],
                    "ready": state.ready,
                    "restartCount": state.restarts,
                    "image": self.container["image"],
                    "imageID": "",
                    "state": ended if state.ended else running,
                }
            ],
        }

    def tick(self, now: float) -> None:
        """Do what the process does by itself as time passes."""

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

    def options(self) -> dict[str, str]:
        """Return the `--name=value` arguments."""
        pairs = [each.removeprefix("--").partition("=") for each in self.container.get("args") or []]
        return {name: value for name, _, value in pairs}


class PlainPod(VirtualPod):
    """A pod whose work is of no interest to a migration (the guard runs beside the world)."""


class EnginePod(VirtualPod):
    """A vLLM server: requests that run, and counters of those that did."""

    def __init__(self, world: World, obj: dict[str, Any], node_labels: dict[str, str], address: str) -> None:
        super().__init__(world, obj, node_labels, address)
        self.is_tpu = "cloud.google.com/gke-tpu-accelerator" in node_labels
        self.boot_s = (_TPU_BOOT_S if self.is_tpu else _GPU_BOOT_S) / world.speed
        self.first_tokens = self.finished = 0
        self.ends: list[float] = []
        self.compiled = 24 if self.is_tpu else 0
        self.warm: set[str] = set()
        self.dead = False

    def listens(self, now: float) -> bool:
        return super().listens(now) and not self.dead

    def serves(self, now: float) -> bool:
        """Tell whether a request would be answered."""
        return self.listens(now) and self.stopped is None and not self.world.faults.get(self._hung())

    def _hung(self) -> str:
        return "tpu-hung" if self.is_tpu else "gpu-hung"

    def take(self, now: float, seconds: float) -> None:
        """Begin a request that will stream for so many seconds."""
        self.in_flight(now)
        self.first_tokens += 1
        self.ends.append(now + seconds)

    def in_flight(self, now: float) -> int:
        """Return how many requests run, those that have ended counted as finished."""
        running = [end for end in self.ends if end > now]
        self.finished += len(self.ends) - len(running)
        self.ends = running
        return len(running)

    def ended(self, now: float) -> bool:
        if self.stopped is None:
            return False
        return not self.in_flight(now) or now - self.stopped > self.grace_s

    def cut(self, now: float) -> int:
        return self.in_flight(now)

    def compile(self, shapes: str) -> None:
        """Compile what a warm-up's shapes ask for, the first time they come."""
        fresh = set(shapes.split(",")) - self.warm
        self.warm |= fresh
        if self.is_tpu:
            self.compiled += len(fresh)

    def log(self) -> list[str]:
        return [f"Finished XLA compilation of jit(step_{i}) in 9.1 sec" for i in range(self.compiled)]

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        now = self.world.clock.now()
        if self.world.faults.get(self._hung()):
            return 503, b"no answer within the timeout"
        if path == "/v1/models":
            data = [{"id": name, "max_model_len": 32768} for name in self.model_names()]
            return 200, json.dumps({"object": "list", "data": data}).encode()
        if path == "/v1/completions":
            self.take(now, 0.0)
            return 200, b'{"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
        if path == "/metrics":
            return 200, self._metrics(now).encode()
        return 200, b""

    def model_names(self) -> list[str]:
        """Return the names that the arguments say are served."""
        words = [*(self.container.get("command") or []), *(self.container.get("args") or [])]
        text = " ".join(words).replace("=", " ").split()
        index = text.index("--served-model-name")
        names = []
        for word in text[index + 1 :]:
            if word.startswith("-"):
                break
            names.append(word)
        return names

    def _metrics(self, now: float) -> str:
        running = self.in_flight(now)
        label = 'engine="0",model_name="m"'
        quick = 0 if self.world.faults.get("slow-tpu") and self.is_tpu else self.first_tokens
        return (
            f"process_start_time_seconds {self.started:.1f}\n"
            f"vllm:num_requests_running{{{label}}} {running}.0\n"
            f"vllm:num_requests_waiting{{{label}}} 0.0\n"
            f"vllm:num_preemptions_total{{{label}}} 0.0\n"
            f'vllm:request_success_total{{{label},finished_reason="stop"}} {self.finished}.0\n'
            f'vllm:time_to_first_token_seconds_bucket{{{label},le="5.0"}} {quick}.0\n'
            f"vllm:time_to_first_token_seconds_count{{{label}}} {self.first_tokens}.0\n"
        )


class ProberPod(VirtualPod):
    """The prober: one request a second on the users' way, one each two seconds on each arm."""

    def __init__(self, world: World, obj: dict[str, Any], node_labels: dict[str, str], address: str) -> None:
        super().__init__(world, obj, node_labels, address)
        self.arms = {
            name: {"ok": 0, "failed": 0, "consecutive": 0, "last_ok": None} for name in ("main", "source", "target")
        }
        self._next = self.started + self.boot_s

    def tick(self, now: float) -> None:
        while self._next <= now:
            even = int(self._next) % 2 == 0
            for name, arm in self.arms.items():
                if name != "main" and not even:
                    continue
                ok = self.world.request(None if name == "main" else name, seconds=0.0)
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


class BenchPod(VirtualPod):
    """One block of load: its result follows from the engine it reaches, its time from rate and count."""

    def __init__(self, world: World, obj: dict[str, Any], node_labels: dict[str, str], address: str) -> None:
        super().__init__(world, obj, node_labels, address)
        asked = self.options()
        if "shapes" in asked:
            self.seconds = 5.0 / world.speed
            host = asked["url"].removeprefix("http://").rpartition(":")[0]
            engine = world.pod_at(host)
            if isinstance(engine, EnginePod):
                engine.compile(asked["shapes"])
        else:
            self.seconds = int(asked["requests"]) / float(asked["rate"]) + 5.0 / world.speed

    def state(self, now: float) -> PodState:
        ended = now - self.started >= self.boot_s + self.seconds
        return PodState(ready=self.listens(now) and not ended, ended=ended)

    def log(self) -> list[str]:
        asked = self.options()
        headers = [each for each in self.container.get("args") or [] if each.startswith("--header=x-tpu")]
        on_target = any(each.endswith("=target") for each in headers)
        slow = self.world.faults.get("slow-tpu") or {}
        factor = slow.get("factor", 4.0) if on_target and slow else 1.0
        count = 12 if "shapes" in asked else int(asked["requests"])
        rate = 10.0 if "shapes" in asked else float(asked["rate"])
        results = [_result(index, index / rate, factor, self.world.random.random()) for index in range(count)]
        summary = {
            "requests": count,
            "void": False,
            "void_reasons": [],
            "loop_lag_p99_ms": 1.0,
            "schedule_delay_p99_ms": 1.0,
            "achieved_rate_ratio": 1.0,
        }
        return render(results, summary).splitlines()


def _result(index: int, at_s: float, factor: float, noise: float) -> RequestResult:
    tokens = 64
    ttft, tpot = _TTFT_S * factor * (1 + 0.2 * noise), _TPOT_S * factor * (1 + 0.1 * noise)
    return RequestResult(
        id=str(index),
        scheduled_s=at_s,
        sent_s=at_s,
        ttft_s=ttft,
        tpot_s=tpot,
        e2e_s=ttft + tpot * (tokens - 1),
        prompt_tokens=128,
        output_tokens=tokens,
        ok=True,
        finish_reason="length",
    )
