"""docker-compose.yaml's services, as processes: each becomes healthy, and each worker imports the wheel.

A whole migration on them takes `python -m tests.prove celery_stack`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from deployment.make_env import values as new_values
from sandbox.airflow_api import RemoteAirflow
from tests.prove.celery_stack import BUSY
from tests.prove.compose_stack import Stack, make_environment, what_is_missing

pytestmark = pytest.mark.e2e
_ENDS_WITHIN_S = 120.0


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, Any]:
    """Return what was seen of the stack: seconds to health, and where the two workers import the package from."""
    if missing := what_is_missing():
        pytest.skip(missing)
    return asyncio.run(_seen(tmp_path_factory.mktemp("stack")))


async def _seen(directory: Path) -> dict[str, Any]:
    binaries, values = await asyncio.to_thread(make_environment, directory), new_values()
    async with Stack(directory, binaries, values, [BUSY], "cluster") as stack:
        healthy = {name: await stack.healthy(name) for name, each in stack.services.items() if each.health}
        airflow = RemoteAirflow(stack.url, values["AIRFLOW_PASSWORD"])
        run = await airflow.trigger("busy", {"slots": 1, "until": str(stack.home)})
        async with asyncio.timeout(_ENDS_WITHIN_S):
            while (state := await airflow.state_of("busy", run)) not in ("success", "failed"):
                await asyncio.sleep(0.5)
        at = f"/dags/busy/dagRuns/{run}/taskInstances/{{}}/xcomEntries/return_value?map_index={{}}"
        told = {each: await airflow.api("GET", at.format(*each)) for each in (("hold", 0), ("urgent", -1))}
    return {
        "healthy": healthy,
        "state": state,
        "packages": [Path(each["value"]) for each in told.values()],
        "environment": binaries.parent,
    }


def test_every_service_becomes_healthy(seen):
    airflow = {"apiserver", "scheduler", "dag-processor", "triggerer", "worker", "worker-urgent"}
    assert seen["healthy"].keys() == {"postgres", "redis", *(f"airflow-{each}" for each in airflow)}


def test_each_worker_imports_the_wheel_and_not_what_is_mounted(seen):
    assert seen["state"] == "success"
    assert all(each.is_relative_to(seen["environment"] / "lib") for each in seen["packages"])
