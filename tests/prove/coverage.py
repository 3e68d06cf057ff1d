"""Hold how much of the product the unit and DAG tests reach to its floor, which may not fall (pyproject.toml).

A tracer makes tests slower, so `make test` runs them without it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.prove.ledger import ROOT, Ledger

NAME = "coverage"


def prove(ledger: Ledger) -> bool:
    """Run the tests that are traced; True if they pass and reach as much as the floor asks for."""
    if (known := ledger.get(NAME)).get("holds"):
        print(f"{NAME}: proven already, {known['percent']} %")
        return True
    with TemporaryDirectory() as directory:
        report = Path(directory) / "coverage.json"
        words = ["tests/unit", "tests/dags", "--numprocesses", "2", "--quiet", "--cov", f"--cov-report=json:{report}"]
        ended = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, check=False)
        percent = json.loads(report.read_text())["totals"]["percent_covered"] if report.exists() else 0.0
    ledger.put(NAME, {"percent": round(percent, 2), "holds": ended.returncode == 0})
    print(f"{NAME}: {percent:.2f} % of the product, in branches", flush=True)
    return ended.returncode == 0
