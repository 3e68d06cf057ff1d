"""Read the faults that are switched on, and say which ones there are.

`faults.json` in the state directory is one JSON object, fault name → options. Every part of the
sandbox reads it for itself, again whenever the file changes, so a fault can be set in the middle
of a run from another process.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Fault:
    """One fault: its name, what it does, its options with their defaults, and the module that does it."""

    name: str
    what: str
    options: dict[str, Any]
    module: str


_ENGINE = {"workload": ""}  # only pods whose name starts so

_TABLE = (
    Fault(
        "stockout",
        "machines that match are not to be had: a create retries about 35 min with the cluster locked,"
        " then ends DONE with an error, and the pool stays behind in ERROR",
        {"machine": "ct", "zone": None, "capacity": None, "appears_after_s": None},
        "sandbox.gke.operations",
    ),
    Fault(
        "late-stockout",
        "capacity runs out while the nodes boot: the operation takes its usual time, then ends DONE with an"
        " error; the nodes turn up all the same `appears_after_s` later",
        {"machine": "ct", "zone": None, "capacity": None, "appears_after_s": 60},
        "sandbox.gke.operations",
    ),
    Fault(
        "quota",
        "the project's quota does not cover the machines: the operation ends DONE with an error",
        {"machine": "ct", "zone": None, "capacity": None, "metric": "TPU_LITE_PODSLICE_V5", "limit": 0.0},
        "sandbox.gke.operations",
    ),
    Fault(
        "pool-stuck",
        "node pool operations of that kind make no progress and hold the cluster's lock until cancelled",
        {"machine": "ct", "operation": "CREATE_NODE_POOL"},
        "sandbox.gke.operations",
    ),
    Fault(
        "gateway-slow",
        "changes of routes and endpoints take `factor` times as long to take effect",
        {"factor": 10},
        "sandbox.gateway.delays",
    ),
    Fault(
        "lb-errors",
        "the load balancer itself answers `status` to `percent` of the requests; no pod sees them",
        {"percent": 5, "status": 502},
        "sandbox.gateway.controller",
    ),
    Fault(
        "image-pull",
        "images whose name contains `image` cannot be pulled",
        {"image": ""},
        "sandbox.pods",
    ),
    Fault("oom", "a TPU engine runs out of HBM while it compiles and exits", _ENGINE, "sandbox.engine.boot"),
    Fault("crash-loop", "a TPU engine exits as soon as it looks for its chips", _ENGINE, "sandbox.engine.boot"),
    Fault("compile-hang", "a TPU engine never ends its precompile", _ENGINE, "sandbox.engine.boot"),
    Fault(
        "recompile",
        "a TPU engine that serves stops for `stall_s` every `every_s` to compile",
        {**_ENGINE, "every_s": 10, "stall_s": 3},
        "sandbox.engine.core",
    ),
    Fault(
        "slow-tpu",
        "every step of a TPU engine takes `factor` times as long",
        {**_ENGINE, "factor": 4},
        "sandbox.engine.core",
    ),
    Fault(
        "errors-under-load",
        "a TPU engine with `at` unfinished requests fails new ones at `rate`",
        {**_ENGINE, "at": 8, "rate": 0.3},
        "sandbox.engine.core",
    ),
    Fault("wrong-answers", "a TPU engine gives other answers", _ENGINE, "sandbox.engine.core"),
    Fault("hang-mid-stream", "a TPU engine stops in the middle of streams", _ENGINE, "sandbox.engine.core"),
    Fault("gpu-hung", "a GPU engine computes nothing any more; HTTP still answers", _ENGINE, "sandbox.engine.core"),
)


def describe() -> list[Fault]:
    """Return every fault that the code knows how to make."""
    return list(_TABLE)


class Faults:
    """The faults that are switched on in one file; a missing file means none."""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._stamp: tuple[int, int, int] | None = None
        self._active: dict[str, dict[str, Any]] = {}

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the options of fault `name`, its defaults filled in, or None while it is off."""
        self._read()
        options = self._active.get(name)
        if options is None:
            return None
        return {**_DEFAULTS.get(name, {}), **options}

    def active(self) -> dict[str, dict[str, Any]]:
        """Return all faults that are on, with the options as they were given."""
        self._read()
        return dict(self._active)

    def set(self, name: str, options: dict[str, Any] | None = None) -> None:
        """Switch fault `name` on, with `options`; the file is replaced in one step."""
        self._write({**self.active(), name: options or {}})

    def clear(self, name: str | None = None) -> None:
        """Switch fault `name` off, or all of them."""
        self._write({} if name is None else {k: v for k, v in self.active().items() if k != name})

    def _read(self) -> None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            self._stamp, self._active = None, {}
            return
        # Size and inode too: two writes may share one tick of the file system's clock.
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            content = json.loads(self._path.read_text() or "{}")
            self._active = {name: dict(options or {}) for name, options in content.items()}
        except (ValueError, TypeError, AttributeError) as error:
            # Written by hand and half done: what was on stays on until the file can be read.
            sys.stderr.write(f"{self._path} must hold one JSON object, fault name → options: {error}\n")

    def _write(self, content: dict[str, dict[str, Any]]) -> None:
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True))
        temporary.replace(self._path)


_DEFAULTS = {fault.name: fault.options for fault in _TABLE}
