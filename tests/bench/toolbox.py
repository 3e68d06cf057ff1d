"""How much pip downloads for the toolbox image, in which no Airflow is."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.figure import Figure

ROOT = Path(__file__).parents[2]


def toolbox_wheels() -> Figure:
    """Download what the Dockerfile's stage `toolbox` installs, and add up the files."""
    with tempfile.TemporaryDirectory() as directory:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", directory]
        subprocess.run([*pip, "--constraint", str(ROOT / "constraints.txt"), f"{ROOT}[toolbox]"], check=True)
        size = sum(each.stat().st_size for each in Path(directory).iterdir())
    return Figure("toolbox_wheels", round(size / 1e6, 1), "MB", 150)
