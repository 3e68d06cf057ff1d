"""Give Airflow a home of its own before anything imports it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_HOME = tempfile.TemporaryDirectory(prefix="airflow-home-")  # removed when the interpreter ends

os.environ |= {
    "AIRFLOW_HOME": _HOME.name,
    "AIRFLOW__CORE__DAGS_FOLDER": str(_ROOT / "dags"),
    "AIRFLOW__CORE__PLUGINS_FOLDER": str(_ROOT / "plugins"),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
}
