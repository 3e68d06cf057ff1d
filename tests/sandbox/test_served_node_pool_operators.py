"""The node-pool operators through an Airflow connection, the real Google client and TLS, on the sandbox's GKE API."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import pytest

from sandbox.clock import SystemClock
from sandbox.faults import FaultSet
from sandbox.gke.core import GkeCloud
from sandbox.gke.nodes import MemoryNodes
from sandbox.gke.server import serve_gke
from sandbox.gke.tokens import TokenIssuer, serve_tokens
from sandbox.pki import CertificateAuthority

SCRIPT = """
import asyncio, json, sys, threading, time
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from airflow.serialization.encoders import encode_trigger
from airflow.sdk.module_loading import import_string
from google.cloud import container_v1
from tpu_migration.operators.kubernetes_engine import (
    GKECreateNodePoolOperator, GKEDeleteNodePoolOperator, NodePoolError,
)

COMMON = {"location": "us-west4", "cluster_name": "sandbox", "poll_interval": 0.1}
BODY = {"name": "tpus", "initial_node_count": 1, "config": {"machine_type": "ct5lp-hightpu-8t"}}

def run(operator):
    "Do what the worker, the triggerer and the worker again do."
    try:
        return operator.execute({}), None
    except TaskDeferred as deferred:
        path, kwargs = deferred.trigger.serialize()
        stored = json.loads(json.dumps(encode_trigger(deferred.trigger)))
        assert stored["classpath"] == path
        trigger = import_string(path)(**json.loads(json.dumps(kwargs)))
        event = asyncio.run(anext_of(trigger)).payload
        assert deferred.method_name == "execute_complete"
        return operator.execute_complete({}, json.loads(json.dumps(event))), deferred.timeout.total_seconds()

async def anext_of(trigger):
    return await anext(trigger.run())

async def killed(trigger):
    running = asyncio.ensure_future(anext(trigger.run()))
    await asyncio.sleep(1.0)
    running.cancel()
    await trigger.on_kill()

def failure(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["accepted", ""]

out = {}
made = GKECreateNodePoolOperator(task_id="make", body=BODY, deferrable=True, **COMMON)
out["made"], out["timeout"] = run(made)
out["link"] = made.operator_extra_links[0].get_link(made, ti_key=None)
message = container_v1.NodePool.from_json(json.dumps(BODY))
out["adopted"] = run(GKECreateNodePoolOperator(task_id="again", body=message, project_id="sandbox-project", **COMMON))
other = {**BODY, "config": {"machine_type": "ct5lp-hightpu-4t"}}
out["other"] = failure(lambda: run(GKECreateNodePoolOperator(task_id="other", body=other, **COMMON)))
out["nonsense"] = failure(lambda: run(GKECreateNodePoolOperator(task_id="bad", body={"nme": "x"}, **COMMON)))
elsewhere = {**COMMON, "cluster_name": "nowhere"}
out["elsewhere"] = failure(lambda: run(GKECreateNodePoolOperator(task_id="x", body=BODY, **elsewhere)))
out["deleted"] = run(GKEDeleteNodePoolOperator(task_id="drop", node_pool="tpus", deferrable=True, **COMMON))[0]
out["absent"] = run(GKEDeleteNodePoolOperator(task_id="drop", node_pool="tpus", **COMMON))[0]
short = {**BODY, "name": "short", "config": {"machine_type": "ct6e-standard-8t"}}
out["short"] = failure(lambda: run(GKECreateNodePoolOperator(task_id="short", body=short, deferrable=True, **COMMON)))
stuck = {**BODY, "name": "stuck", "config": {"machine_type": "ct6e-standard-4t"}}
operator = GKECreateNodePoolOperator(task_id="stuck", body=stuck, deferrable=True, **COMMON)
try:
    operator.execute({})
except TaskDeferred as deferred:
    path, kwargs = deferred.trigger.serialize()
    asyncio.run(killed(import_string(path)(**kwargs)))
print(json.dumps(out))
"""


@pytest.fixture
async def cloud(tmp_path):
    ca = CertificateAuthority(tmp_path)
    issuer = TokenIssuer(SystemClock())
    tokens = await serve_tokens(issuer, "127.0.0.1")
    faults = FaultSet()
    faults.set("late-stockout", {"machine": "ct6e-standard-8t", "appears_after_s": 600})
    faults.set("pool-stuck", {"machine": "ct6e-standard-4t"})
    cloud = GkeCloud(SystemClock(), MemoryNodes(), speed=300, faults=faults)
    server = await serve_gke(cloud, "127.0.0.1", 0, ca.issue("gke", ["localhost", "127.0.0.1"]), issuer.authenticate)
    key = issuer.new_service_account_key("airflow@sandbox-project.iam.gserviceaccount.com", "sandbox-project")
    extra = {"project": "sandbox-project", "keyfile_dict": key, "api_endpoint": f"localhost:{server.port}"}
    connection = {"conn_type": "google_cloud_platform", "extra": extra}
    env = {
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(connection),
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(ca.cert_path),
    }
    yield cloud, env
    await server.stop()
    await tokens.cleanup()


async def test_the_operators_work_in_anybodys_dag(cloud):
    gke, env = cloud
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SCRIPT),
        env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await asyncio.wait_for(process.communicate(), 180)
    assert process.returncode == 0, stderr.decode()[-3000:]
    out = json.loads(stdout.decode().splitlines()[-1])
    pool = "projects/sandbox-project/locations/us-west4/clusters/sandbox/nodePools/tpus"
    assert out["made"].endswith(pool)
    assert out["timeout"] > 3600, "Airflow's timeout comes after the operator's own"
    assert out["link"] == (
        "https://console.cloud.google.com/kubernetes/nodepool/us-west4/sandbox/tpus?project=sandbox-project"
    )
    assert out["adopted"] == [out["made"], None], "a worker that waits itself defers nothing"
    assert out["other"][0] == "AirflowFailException", "another try would meet the same"
    assert "its machine type is ct5lp-hightpu-8t, not ct5lp-hightpu-4t" in out["other"][1]
    assert out["nonsense"][0] == "AirflowFailException"
    assert 'no field named "nme"' in out["nonsense"][1]
    assert out["elsewhere"][0] == "AirflowFailException"
    assert "clusters/nowhere" in out["elsewhere"][1]
    assert out["deleted"] is None
    assert out["absent"] is None
    assert out["short"][0] == "NodePoolError", "another try may do better"
    assert "nothing of it is left" in out["short"][1]
    gke.tick()
    kinds = [(each["type"], each["pool"]) for each in gke.state["operations"].values()]
    assert kinds.count(("CREATE_NODE_POOL", "tpus")) == 1
    assert ("DELETE_NODE_POOL", "stuck") in kinds, "the killed task cancelled its create, and cleared away"
    assert {name: each["status"] for name, each in gke.state["pools"].items()}.get("stuck") in (None, "STOPPING")
    assert set(gke.state["pools"]) <= {"stuck"}
