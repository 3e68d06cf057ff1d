"""Be the vLLM servers of a virtual world: requests that run, counters of those that did, and what breaks."""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any

from sandbox.virtual_pods import PodState, VirtualPod

if TYPE_CHECKING:
    from sandbox.world import World

_GPU_BOOT_S, _TPU_BOOT_S = 40.0, 240.0
_VERSION = "0.32.0"
_PROGRAMS = 24  # that a start compiles
_PADDINGS = (
    "Prepared token paddings: [16, 32, 64, 128, 256, 512, 1024, 2048]",
    "Prepared request paddings: [8, 16, 32, 64]",
)
_FELT = 2.0  # so many times slower, and users wait longer than any limit; below that the benchmark alone tells
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 10.0, 300.0
# How far into its start an engine breaks, as a share of the time that a start takes.
_BREAKS = {"oom": 0.8, "host-oom": 0.6, "crash-loop": 0.1}
_LAST_WORDS = {
    "host-oom": "INFO Loading weights",
    "late-oom": "ERROR EngineCore encountered a fatal error: RESOURCE_EXHAUSTED: Error loading program 'jit_backbone'",
    "oom": "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Error loading program: Attempting to reserve 9.41G",
    "crash-loop": "RuntimeError: TPU initialization failed: open(/dev/vfio/0): No such file or directory",
}


class EnginePod(VirtualPod):
    """A vLLM server on a GPU or a TPU."""

    def __init__(self, world: World, obj: dict[str, Any], node_labels: dict[str, str], address: str) -> None:
        super().__init__(world, obj, node_labels, address)
        self.is_tpu = "cloud.google.com/gke-tpu-accelerator" in node_labels
        self._usual_boot_s = self.boot_s = (_TPU_BOOT_S if self.is_tpu else _GPU_BOOT_S) / world.speed
        self.first_tokens = self.finished = self.slow = 0
        self.ends: deque[float] = deque()  # when each stream ends, the next one first: all take equally long
        self.compiled = _PROGRAMS if self.is_tpu else 0
        self.warm: set[str] = set()
        self.dead = False
        self._up = False
        self._stalls = 0
        self._last_exit: int | None = None
        self._before: list[str] = []

    # -------------------------------------------------------------- process

    def fault(self, name: str) -> dict[str, Any] | None:
        """Return the options of a fault that is on and meant for this engine."""
        if self.is_tpu == name.startswith("gpu"):
            return None
        found = self.world.faults.get(name)
        return found if found is not None and self.name.startswith(found.get("workload", "")) else None

    def tick(self, now: float) -> None:
        super().tick(now)
        if self._up:
            self._compile_again(now)
            return
        if now < self.started:
            return  # it waits for its next try
        slow = self.fault("slow-compile")
        self.boot_s = _PROGRAMS * slow["each_s"] if slow is not None else self._usual_boot_s
        for name, share in _BREAKS.items():
            if self.fault(name) is not None and now - self.started >= share * self.boot_s:
                self._crash(now, name)
                return
        if self.fault("compile-hang") is not None:
            self.started = max(self.started, now - self.boot_s / 2)
        self._up = super().listens(now)

    def _crash(self, now: float, name: str) -> None:
        backoff_s = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2**self.restarts) / self.world.speed
        self._before = [*self._lines(now), _LAST_WORDS[name]]
        self._last_exit = 137 if name == "host-oom" else 1
        self.restarts += 1
        self.started = now + backoff_s
        self._up, self.compiled = False, _PROGRAMS
        self.warm.clear()

    def _compile_again(self, now: float) -> None:
        fault = self.fault("recompile")
        if fault is not None and (stalls := int((now - self.started) // fault["every_s"])) != self._stalls:
            self._stalls = stalls
            self.compiled += 1

    def stalled(self, now: float) -> bool:
        """Tell whether it compiles just now, and requests wait."""
        fault = self.fault("recompile")
        return fault is not None and (now - self.started) % fault["every_s"] < fault["stall_s"]

    def state(self, now: float) -> PodState:
        if now < self.started:
            return PodState(False, restarts=self.restarts, waiting="CrashLoopBackOff", last_exit=self._last_exit)
        return super().state(now)._replace(restarts=self.restarts, last_exit=self._last_exit)

    def listens(self, now: float) -> bool:
        return self._up and super().listens(now) and not self.dead

    def computes(self) -> bool:
        """Tell whether a request that has begun goes on to its end."""
        if not self.world.faults.active():
            return True
        return self.fault("gpu-hung") is None and self.fault("hang-mid-stream") is None

    def serves(self, now: float) -> bool:
        """Tell whether a new request would be taken."""
        return self.listens(now) and self.stopped is None and self.fault("gpu-hung") is None

    # ------------------------------------------------------------- requests

    def take(self, now: float, seconds: float) -> bool:
        """Begin a request that will stream for so many seconds, 0: a probe's; False if it fails at once."""
        if self.world.faults.active():
            overload = self.fault("errors-under-load")
            if overload and self.in_flight(now) >= overload["at"] and self.world.random.random() < overload["rate"]:
                return False
            slow = self.fault("slow-tpu")
            self.slow += self.stalled(now) or (slow is not None and slow["factor"] >= _FELT)
        self.first_tokens += 1
        if seconds:
            self.ends.append(now + seconds)
        elif self.computes():
            self.finished += 1
        return True

    def in_flight(self, now: float) -> int:
        """Return how many requests run, those that have ended counted as finished."""
        if not self.computes():
            return len(self.ends)  # none of them gets any further
        while self.ends and self.ends[0] <= now:
            self.ends.popleft()
            self.finished += 1
        return len(self.ends)

    def ended(self, now: float) -> bool:
        if self.stopped is None:
            return False
        return not self.in_flight(now) or now - self.stopped > self.grace_s

    def cut(self, now: float) -> int:
        running = self.in_flight(now)
        self.ends.clear()
        return running

    def compile(self, shapes: str) -> bool:
        """Compile what a warm-up's shapes ask for, the first time they come; False if that ends the engine."""
        fresh = set(shapes.split(",")) - self.warm
        if fresh and self.fault("late-oom") is not None:
            self._crash(self.world.clock.now(), "late-oom")
            return False
        self.warm |= fresh
        if self.is_tpu:
            self.compiled += len(fresh)
        return True

    # ----------------------------------------------------------------- HTTP

    def log(self) -> list[str]:
        now = self.world.clock.now()
        return self._lines(now) if now >= self.started else self._before

    def previous_log(self) -> list[str]:
        return self._before

    def _lines(self, now: float) -> list[str]:
        """Return what this process has logged: at its start, a program after the other."""
        if not self.is_tpu:
            return []
        done = self.compiled
        if not self._up:
            done = min(_PROGRAMS, int(_PROGRAMS * (now - self.started) / self.boot_s))
        return [*_PADDINGS, *(f"Finished XLA compilation of jit(step_{i}) in 9.1 sec" for i in range(done))]

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        now = self.world.clock.now()
        if path == "/v1/models":
            data = [{"id": name, "max_model_len": 32768} for name in self.model_names()]
            return 200, json.dumps({"object": "list", "data": data}).encode()
        if path == "/version":
            return 200, json.dumps({"version": _VERSION}).encode()
        if path == "/v1/completions":
            if not (self.computes() and self.take(now, 0.0)):
                return 503, b"no answer within the timeout"
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
        return (
            f"process_start_time_seconds {self.started:.1f}\n"
            f"vllm:num_requests_running{{{label}}} {running}.0\n"
            f"vllm:num_requests_waiting{{{label}}} 0.0\n"
            f"vllm:num_preemptions_total{{{label}}} 0.0\n"
            f'vllm:request_success_total{{{label},finished_reason="stop"}} {self.finished}.0\n'
            f'vllm:time_to_first_token_seconds_bucket{{{label},le="5.0"}} {self.first_tokens - self.slow}.0\n'
            f"vllm:time_to_first_token_seconds_count{{{label}}} {self.first_tokens}.0\n"
            f'vllm:inter_token_latency_seconds_bucket{{{label},le="1.0"}} {self.first_tokens}.0\n'
            f"vllm:inter_token_latency_seconds_count{{{label}}} {self.first_tokens + self._stalls}.0\n"
        )
