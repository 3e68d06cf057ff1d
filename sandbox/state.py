"""Keep what a running sandbox tells others: DIR/state.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sandbox.supervisor import start_time

STATE_FILE = "state.json"
FAULTS_FILE = "faults.json"
DEFAULT_DIRECTORY = Path(".sandbox")


class NotUp(Exception):
    """There is no sandbox in the directory."""


def write_state(directory: Path, state: Mapping[str, Any]) -> None:
    """Replace DIR/state.json in one step."""
    temporary = directory / f"{STATE_FILE}.new"
    temporary.write_text(json.dumps(state, indent=2) + "\n")
    temporary.chmod(0o600)
    temporary.replace(directory / STATE_FILE)


def read_state(directory: Path) -> dict[str, Any]:
    """Return the content of DIR/state.json; raises NotUp if there is none."""
    path = directory / STATE_FILE
    if not path.exists():
        raise NotUp(f"no sandbox in {directory}: run `python -m sandbox up --dir {directory}`")
    return dict(json.loads(path.read_text()))


def is_up(state: Mapping[str, Any]) -> bool:
    """Tell whether the supervisor that wrote the state is alive."""
    started = state.get("pid_started")
    return started is not None and start_time(int(state["pid"])) == started


def sandbox_runs_in(directory: Path) -> bool:
    """Tell whether a sandbox is up in a directory, which need not be there."""
    return (directory / STATE_FILE).exists() and is_up(read_state(directory))
