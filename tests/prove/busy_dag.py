"""Hold every slot of the default queue, and say where the package comes from; for the proof of docker-compose.yaml."""

from __future__ import annotations

from airflow.sdk import DAG, task

with DAG(dag_id="busy", schedule=None, params={"slots": 8, "until": "/nonexistent"}) as dag:

    @task
    def slots(params: dict[str, object] | None = None) -> list[int]:
        """Return a number a slot."""
        return list(range(int(str((params or {})["slots"]))))

    @task
    def hold(number: int, params: dict[str, object] | None = None) -> str:
        """Hold a slot until the file is there; return where the package was imported from."""
        import time
        from pathlib import Path

        import tpu_migration

        while not Path(str((params or {})["until"])).exists():
            time.sleep(0.2)
        return str(tpu_migration.__file__)

    @task(queue="tpu-migration-urgent")
    def urgent() -> str:
        """Return where the other worker imports the package from."""
        import tpu_migration

        return str(tpu_migration.__file__)

    hold.expand(number=slots())
    urgent()
