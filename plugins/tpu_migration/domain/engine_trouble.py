"""Tell apart why an engine does not serve, with the lines of its log that show it, and the remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tpu_migration.domain.compile_log import begun_compile, programs_in, telling_lines

Kind = Literal["host_memory", "hbm", "crash_loop", "hang", "slow_compile", "image", "config", "no_node", "requests"]

MAX_RESTARTS = 3
_LINES = 3

# What says that memory is too small, the most telling first, and what helps against it. It fails again at each start.
_OUT_OF_HBM = (
    (  # tpu_inference/worker/tpu_worker.py
        re.compile(r"total_hbm_used_gb=.*exceeds|Error allocating device buffer"),
        "the weights alone fill the HBM: take a larger slice, or a quantized checkpoint that this TPU can compute",
    ),
    (  # vllm/v1/core/kv_cache_utils.py
        re.compile(r"No available memory for the cache blocks|larger than the available KV cache memory"),
        "too little HBM is left for the KV cache: lower --max-model-len, raise --gpu-memory-utilization (at most 0.90),"
        " or take a larger slice",
    ),
    (  # vllm#8318: the tables in scalar memory grow with context and batch
        re.compile(r"Ran out of memory in memory space [sv]mem"),
        "a kernel's own memory is too small: lower --max-model-len or --max-num-seqs",
    ),
    (
        re.compile(r"RESOURCE_EXHAUSTED|Ran out of memory in memory space hbm|CUDA out of memory"),
        "programs find no HBM beside weights and KV cache: lower --gpu-memory-utilization to 0.85, "
        "--max-num-batched-tokens or --max-num-seqs, or take a larger slice",
    ),
)
_HOST_MEMORY = (
    "raise the container's memory limit (/dev/shm counts, too), or compile fewer programs at a time "
    "(NUM_PRECOMPILE_WORKERS=1)"
)
_CACHE = (
    "compile less (lower --max-num-batched-tokens or --max-num-seqs), and keep VLLM_XLA_CACHE_PATH on a volume, so "
    "that the next start is 2 to 4 times faster (SKIP_JAX_PRECOMPILE=1 only moves compiles under users' requests)"
)
_HANG = "look at the pod's TPU and its node, and start a new run; if it hangs again, take another image version"
# Why a container waits: what no time mends, what an outage of the registry may cause, and its configuration.
HOPELESS = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError"})
_CONFIG = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


@dataclass(frozen=True)
class Trouble:
    """Say what is wrong, by which lines that shows, and what to do."""

    kind: Kind
    what: str
    lines: tuple[str, ...]
    remedy: str

    def __str__(self) -> str:
        shown = f"; its log: {' | '.join(self.lines)}" if self.lines else ""
        return f"{self.what}{shown}; {self.remedy}"


def of_exits(status: Mapping[str, Any], log: str) -> Trouble | None:
    """Judge a container that has ended before; None for one that may yet succeed.

    `status` is its entry in containerStatuses, `log` that of the process that ended.
    """
    ended, restarts = last_exit(status), int(status.get("restartCount", 0))
    if ended is None:
        return None
    name, code = status["name"], ended.get("exitCode")
    if ended.get("reason") == "OOMKilled":
        what = f"container {name} was killed for the host memory it used (OOMKilled, exit code {code})"
        return Trouble("host_memory", what, telling_lines(log, _LINES), _HOST_MEMORY)
    if (hbm := _of_hbm(name, code, log)) is not None:
        return hbm
    if restarts < MAX_RESTARTS:
        return None
    waiting = ((status.get("state") or {}).get("waiting") or {}).get("reason", "restarting")
    what = f"container {name} keeps crashing ({waiting}, {restarts} restarts, exit code {code})"
    if code == 137:
        what += ", ended by SIGKILL, as a startup or liveness probe does"
    return Trouble("crash_loop", what, telling_lines(log, _LINES), "mend what these lines say, and start a new run")


def last_exit(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return how a container ended last; None for one that never did."""
    for state in ("state", "lastState"):
        if ended := (status.get(state) or {}).get("terminated"):
            found: Mapping[str, Any] = ended
            return found
    return None


def _of_hbm(name: str, code: object, log: str) -> Trouble | None:
    for sign, remedy in _OUT_OF_HBM:
        lines = [line.strip()[:300] for line in log.splitlines() if sign.search(line)]
        if lines:
            what = f"container {name} ran out of accelerator memory (HBM; exit code {code})"
            return Trouble("hbm", what, tuple(dict.fromkeys(lines))[:_LINES], remedy)
    return None


def of_waiting(name: str, reason: str, message: str, lasting_s: float, patience_s: float) -> Trouble | None:
    """Judge a container that cannot be started; None while it may still come right."""
    if reason not in HOPELESS | _IMAGE | _CONFIG or (reason not in HOPELESS and lasting_s < patience_s):
        return None
    what = f"container {name} cannot start ({reason}) for {lasting_s:.0f} s: {message[:300]}"
    if reason in _CONFIG:
        return Trouble("config", what, (), "create what its configuration names, or correct it")
    return Trouble("image", what, (), "correct the image's name, or give the node's account the right to pull it")


def of_silence(log: str, silent_s: float) -> Trouble:
    """Name a start that makes no progress any more: no line of the log, no compile that ends."""
    begun = begun_compile(log)
    doing = f"hangs in a compile ({begun})" if begun else "hangs"
    return Trouble("hang", f"{doing}: no progress for {silent_s / 60:.0f} minutes", telling_lines(log, _LINES), _HANG)


def of_slow_start(log: str, took_s: float, budget_s: float) -> Trouble:
    """Name a start that goes on, and takes longer than it may."""
    what = (
        f"compiles for too long: {programs_in(log)} programs in {took_s / 60:.0f} minutes, and a start may take "
        f"{budget_s / 60:.0f}"
    )
    return Trouble("slow_compile", what, telling_lines(log, _LINES), _CACHE)


def of_failed_requests(failed: int, asked: int, error: str, log: str, compiled: int) -> Trouble:
    """Say why a warm-up's requests failed at an engine that did not end; `compiled` programs meanwhile."""
    what = f"{failed} of {asked} requests failed, first: {error}"
    lines = telling_lines(log, _LINES)
    if begun := begun_compile(log):
        return Trouble("slow_compile", f"{what}; it compiles meanwhile ({begun})", lines, _CACHE)
    if "timeout" in error and compiled:
        return Trouble("slow_compile", f"{what}; it compiled {compiled} programs meanwhile", lines, _CACHE)
    if "timeout" in error or "no token" in error:
        return Trouble("hang", f"{what}; it compiles nothing and its process lives: it hangs", lines, _HANG)
    return Trouble("requests", what, lines, "read the pod's log")
