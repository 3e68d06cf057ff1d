"""Read the faults that are switched on, and say which ones there are.

`faults.json` in the state directory is one JSON object, fault name → options. Every part of the
sandbox reads it for itself, again whenever the file changes, so a fault can be set in the middle
of a run from another process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Protocol

from sandbox.fault_table import TABLE, Fault

__all__ = ["Fault", "FaultSet", "FaultSource", "Faults", "NoFaults", "describe"]


class FaultSource(Protocol):
    """What tells which faults are on: `Faults`, or a world's own."""

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the options of a fault that is on, its defaults filled in, else None."""


class NoFaults:
    """Nothing is broken."""

    def get(self, name: str) -> dict[str, Any] | None:
        return None


def describe() -> list[Fault]:
    """Return every fault that the code knows how to make."""
    return list(TABLE)


class FaultSet:
    """The faults that are switched on, in memory."""

    def __init__(self) -> None:
        self._active: dict[str, dict[str, Any]] = {}

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the options of fault `name`, its defaults filled in, or None while it is off."""
        options = self.active().get(name)
        return None if options is None else {**_DEFAULTS.get(name, {}), **options}

    def active(self) -> dict[str, dict[str, Any]]:
        """Return all faults that are on, with the options as they were given."""
        return self._active

    def set(self, name: str, options: dict[str, Any] | None = None) -> None:
        """Switch fault `name` on, with `options`."""
        self._keep({**self.active(), name: options or {}})

    def clear(self, name: str | None = None) -> None:
        """Switch fault `name` off, or all of them."""
        self._keep({} if name is None else {k: v for k, v in self.active().items() if k != name})

    def _keep(self, content: dict[str, dict[str, Any]]) -> None:
        self._active = content


class Faults(FaultSet):
    """The faults that are switched on in one file, for several processes; a missing file means none."""

    def __init__(self, path: Path | str) -> None:
        super().__init__()
        self._path = Path(path)
        self._stamp: tuple[int, int, int] | None = None

    def active(self) -> dict[str, dict[str, Any]]:
        self._read()
        return dict(self._active)

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

    def _keep(self, content: dict[str, dict[str, Any]]) -> None:
        """Replace the file in one step."""
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True))
        temporary.replace(self._path)


_DEFAULTS = {fault.name: fault.options for fault in TABLE}
