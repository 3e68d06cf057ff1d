"""Keep what was proven so far in one JSON file, so that a proof that was interrupted goes on."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# What is written about the code changes no figure.
CODE = ("plugins", "dags", "include", "sandbox", "tests", "pyproject.toml", "constraints.txt")


class Ledger:
    """The figures of every proof, by its name; those of other code than today's are dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._code = code_version()
        self._figures: dict[str, Any] = {}
        if path.exists():
            known = json.loads(path.read_text())
            if known.get("code") == self._code:
                self._figures = known["proofs"]

    def get(self, proof: str) -> dict[str, Any]:
        """Return what a proof has noted so far."""
        return dict(self._figures.get(proof, {}))

    def put(self, proof: str, figures: dict[str, Any]) -> None:
        """Note a proof's figures; the file is replaced in one step."""
        self._figures[proof] = figures
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps({"code": self._code, "proofs": self._figures}, indent=1, sort_keys=True) + "\n")
        temporary.replace(self._path)


def code_version() -> str:
    """Return what names the code: the tree of what belongs to it and is not ignored, committed or not."""
    with tempfile.TemporaryDirectory() as directory:
        index = {"GIT_INDEX_FILE": f"{directory}/index"}  # one of its own: the checkout's stays as it is
        _git("add", "--all", *CODE, env=index)
        return _git("write-tree", env=index).strip()


def _git(*arguments: str, env: Mapping[str, str]) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, env={**os.environ, **env}, check=True, capture_output=True, text=True
    ).stdout
