"""Read which faults are switched on for this engine."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

TPU_FAULTS = frozenset(
    {
        "slow-tpu",
        "errors-under-load",
        "hang-mid-stream",
        "oom",
        "late-oom",
        "host-oom",
        "slow-compile",
        "crash-loop",
        "compile-hang",
        "recompile",
        "wrong-answers",
    }
)
GPU_FAULTS = frozenset({"gpu-hung"})


class Faults:
    """The engine's view of faults.json: `{name: {options}}`, re-read when the file changes.

    A fault applies to engines of its own kind only; an option `workload` limits it further,
    to pods whose name starts with that. A missing file means no faults.
    """

    def __init__(self, path: str | None, kind: str, pod: str) -> None:
        self._path = path
        self._mine = TPU_FAULTS if kind == "tpu" else GPU_FAULTS
        self._pod = pod
        self._stamp: tuple[int, int] | None = None
        self._active: dict[str, dict[str, Any]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the file again if it has changed."""
        if not self._path:
            return
        try:
            stat = os.stat(self._path)
        except FileNotFoundError:
            self._stamp, self._active = None, {}
            return
        stamp = (stat.st_mtime_ns, stat.st_size)
        if stamp == self._stamp:
            return
        try:
            with open(self._path, encoding="utf-8") as file:
                listed = json.load(file)
        except (OSError, ValueError) as error:
            # Half-written: whatever was active stays so; the next look reads it again.
            sys.stderr.write(f"WARNING simulated engine cannot read {self._path}: {error}\n")
            return
        self._stamp = stamp
        self._active = {
            name: options or {}
            for name, options in listed.items()
            if name in self._mine and self._pod.startswith((options or {}).get("workload") or "")
        }

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the options of an active fault, or None."""
        return self._active.get(name)
