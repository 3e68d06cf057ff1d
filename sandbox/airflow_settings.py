"""Build the environment in which a real Airflow runs on the sandbox.

Everything is given by AIRFLOW__SECTION__OPTION variables, so that no airflow.cfg has to be edited. What is
tuned here shortens Airflow's own loops for a machine of two cores; a production Airflow keeps its defaults.
"""

from __future__ import annotations

import json
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

USER = "admin"
LOCK_WAIT_S = 30
GOOGLE_CONNECTION = "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT"
FLEET = "AIRFLOW_VAR_TPU_MIGRATION_FLEET"


@dataclass(frozen=True)
class Secrets:
    """The keys that the components of one Airflow share, made anew for each directory."""

    password: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    fernet_key: str = field(default_factory=lambda: urlsafe_b64encode(secrets.token_bytes(32)).decode())
    api_secret: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    jwt_secret: str = field(default_factory=lambda: secrets.token_urlsafe(64))


@dataclass(frozen=True)
class Layout:
    """Where one Airflow lives: its home, what it loads and the port of its API server."""

    home: Path
    dags: Path
    plugins: Path
    port: int

    @property
    def database(self) -> Path:
        return self.home / "airflow.db"

    @property
    def passwords(self) -> Path:
        return self.home / "passwords.json"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def options(layout: Layout, keys: Secrets, parallelism: int) -> dict[str, dict[str, object]]:
    """Return the configuration as {section: {option: value}}."""
    return {
        "core": {
            "executor": "LocalExecutor",
            "parallelism": parallelism,
            "max_active_runs_per_dag": 64,
            "dags_folder": layout.dags,
            "plugins_folder": layout.plugins,
            "load_examples": False,
            "dags_are_paused_at_creation": False,
            "fernet_key": keys.fernet_key,
            "simple_auth_manager_users": f"{USER}:admin",
            "simple_auth_manager_passwords_file": layout.passwords,
            "execution_api_server_url": f"{layout.url}/execution/",
            # A parse shares two cores with engines and users: the default of 30 s fails a good DAG.
            "dagbag_import_timeout": 120,
        },
        # SQLite has one writer at a time: where others wait for it longer than 5 s (the driver's default),
        # the API server answers 500 "Database error", and a worker's heartbeat or a trigger's event is lost.
        "database": {"sql_alchemy_conn": f"sqlite:///{layout.database}?timeout={LOCK_WAIT_S}"},
        "logging": {"base_log_folder": layout.home / "logs", "colored_console_log": False},
        "api": {
            "host": "127.0.0.1",
            "port": layout.port,
            "base_url": layout.url,
            "workers": 1,
            "secret_key": keys.api_secret,
        },
        "api_auth": {"jwt_secret": keys.jwt_secret},
        "scheduler": {
            "scheduler_idle_sleep_time": 0.1,
            "job_heartbeat_sec": 2,
            "scheduler_heartbeat_sec": 2,
            "scheduler_health_check_threshold": 8,
            "orphaned_tasks_check_interval": 5,
            "task_instance_heartbeat_timeout": 30,
            "task_instance_heartbeat_timeout_detection_interval": 2,
            "trigger_timeout_check_interval": 2,
        },
        "workers": {"min_heartbeat_interval": 2, "execution_api_timeout": 20},
        # Facts: a killed triggerer's work goes on after 6 s with these two, after 26 s by default.
        "triggerer": {"job_heartbeat_sec": 2, "triggerer_health_check_threshold": 8},
        "dag_processor": {
            "refresh_interval": 5,
            "parsing_processes": 1,
            "min_file_process_interval": 20,
            "dag_file_processor_timeout": 150,
        },
    }


def environment(
    layout: Layout, keys: Secrets, *, parallelism: int, base: Mapping[str, str], extra: Mapping[str, str]
) -> dict[str, str]:
    """Return the whole environment: `base` without Airflow's settings, then ours, then `extra`."""
    env = {name: value for name, value in base.items() if not name.startswith("AIRFLOW")}
    env["AIRFLOW_HOME"] = str(layout.home)
    for section, values in options(layout, keys, parallelism).items():
        env |= {f"AIRFLOW__{section.upper()}__{name.upper()}": str(value) for name, value in values.items()}
    env["PYTHONUNBUFFERED"] = "1"
    # Only then may a caller's setting win, an Airflow one too.
    return env | dict(extra)


def google_environment(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables that point the Google connection, and the fleet, at the sandbox whose state.json is given.

    `api_endpoint` in the connection's extra is read by the product's own hook; the key is a real
    service-account key whose token_uri is the sandbox's token endpoint.
    """
    key = json.loads(Path(state["service_account_key_file"]).read_text())
    connection = {
        "conn_type": "google_cloud_platform",
        "extra": {
            "project": state["project"],
            "keyfile_dict": key,
            "api_endpoint": state["gke_endpoint"],
            "resource_manager_endpoint": key["token_uri"].removesuffix("/token"),
        },
    }
    place = {"project_id": state["project"], **{key: state[key] for key in ("location", "cluster")}}
    return {
        GOOGLE_CONNECTION: json.dumps(connection),
        FLEET: json.dumps([{**place, "namespaces": [state["namespace"]]}]),
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(state["ca_file"]),
    }
