"""Parse the DAG files as the DAG processor does: Google's and Kubernetes' clients are not loaded by that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("google.cloud.container_v1", "google.api_core", "kubernetes", "grpc", "matplotlib", "numpy")


@pytest.mark.parametrize("dag", sorted((ROOT / "dags").glob("*.py")), ids=lambda path: path.stem)
def test_parsing_a_dag_file_loads_no_client(dag):
    # Airflow itself comes first: what it loads is not the file's doing.
    script = (
        "import sys, runpy\n"
        "from airflow.sdk import DAG, BaseOperator, Param\n"
        "import airflow.providers.standard.operators.empty\n"
        "before = set(sys.modules)\n"
        f"runpy.run_path({str(dag)!r})\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert any(name.startswith("tpu_migration.operators.") for name in loaded), "the file was really parsed"
    assert [name for name in loaded if name.startswith(HEAVY)] == []
