"""Nodes, policies and routes on the embedded Kubernetes API, over TLS with real tokens."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest
from aiohttp import web
from google.cloud import container_v1 as gke

from sandbox.api import Api, LocalClient
from sandbox.api.http import serve
from sandbox.clock import SystemClock, VirtualClock
from sandbox.faults import Faults
from sandbox.gateway import run_gateway
from sandbox.gke.core import GkeCloud
from sandbox.gke.nodes import KubeNodes, LocalNodes
from sandbox.gke.server import run_cloud
from sandbox.gke.tokens import TokenIssuer
from sandbox.kube import KubeClient
from sandbox.kubeconfig import Access
from sandbox.pki import CertificateAuthority

GATEWAY, POD = "127.78.0.1", "127.78.1.1"
CLUSTER = "projects/sandbox-project/locations/us-west4/clusters/sandbox"


@pytest.fixture
async def cluster(tmp_path):
    """Serve the embedded API; give its local client and a KubeClient that logs in with a token."""
    api = Api(SystemClock())
    issuer = TokenIssuer(SystemClock())
    issuer.add_static("secret", "system:sandbox")
    tls = CertificateAuthority(tmp_path).issue("api", ["127.0.0.1"])
    server = await serve(api, "127.0.0.1", 0, tls.cert, tls.key, issuer.authenticate, superusers=["system:sandbox"])
    client = KubeClient(Access(f"https://127.0.0.1:{server.port}", str(tmp_path / "ca.crt"), "secret"))
    yield LocalClient(api), client
    await client.close()
    await server.close()


async def eventually(check, tasks=(), deadline_s=20.0):
    deadline = time.monotonic() + deadline_s
    while not await check():
        for task in tasks:
            if task.done():
                task.result()
        assert time.monotonic() < deadline, f"not within {deadline_s} s"
        await asyncio.sleep(0.05)


def create(cloud, name="tpu"):
    config = gke.NodeConfig(machine_type="ct5lp-hightpu-8t")
    pool = gke.NodePool(name=name, initial_node_count=1, config=config)
    return cloud.create_node_pool(gke.CreateNodePoolRequest(parent=CLUSTER, node_pool=pool))


def is_ready(node):
    return [c["status"] for c in node["status"]["conditions"] if c["type"] == "Ready"] == ["True"]


async def test_a_pool_brings_up_nodes_in_the_api_server_and_takes_them_away(cluster):
    local, client = cluster
    nodes = KubeNodes(client, print)
    cloud = GkeCloud(SystemClock(), nodes, speed=300)
    running = asyncio.create_task(run_cloud(cloud, nodes))
    create(cloud)

    async def up():
        return [is_ready(node) for node in local.list("nodes")] == [True]

    async def gone():
        return not local.list("nodes")

    await eventually(up, [running])
    (node,) = local.list("nodes")
    assert node["status"]["allocatable"]["google.com/tpu"] == "8"
    assert [taint["key"] for taint in node["spec"]["taints"]] == ["google.com/tpu"]
    await eventually(lambda: done(cloud), [running])
    cloud.delete_node_pool(gke.DeleteNodePoolRequest(name=f"{CLUSTER}/nodePools/tpu"))
    await eventually(gone, [running])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def done(cloud):
    request = gke.ListOperationsRequest(parent="projects/sandbox-project/locations/us-west4")
    return all(op.status == gke.Operation.Status.DONE for op in cloud.list_operations(request).operations)


def test_in_virtual_time_nodes_are_written_through_the_local_client():
    clock = VirtualClock()
    local = LocalClient(Api(clock))
    cloud = GkeCloud(clock, LocalNodes(local))
    create(cloud)
    seen = []
    for _ in range(130):
        clock.advance(1)
        cloud.tick()
        seen.append([is_ready(node) for node in local.list("nodes")])
    assert seen[0] == []
    assert [False] in seen
    assert seen[-1] == [True]
    cloud.delete_node_pool(gke.DeleteNodePoolRequest(name=f"{CLUSTER}/nodePools/tpu"))
    for _ in range(70):
        clock.advance(1)
        cloud.tick()
    assert local.list("nodes") == []


def objects():
    """Return a Gateway, a Service with one pod, its policies and a route, as a user would apply them."""
    target = {"group": "", "kind": "Service", "name": "gpu"}
    health = {"config": {"type": "HTTP", "httpHealthCheck": {"port": 8000, "requestPath": "/health"}}}
    listener = {"name": "http", "port": 18380, "protocol": "HTTP"}
    labels = {"kubernetes.io/service-name": "gpu"}
    gateway_spec = {"gatewayClassName": "gke-l7-rilb", "listeners": [listener]}
    route_spec = {
        "parentRefs": [{"name": "gw"}],
        "rules": [{"backendRefs": [{"name": "gpu", "port": 8000}]}],
    }
    return [
        ("gateways", "gateway.networking.k8s.io/v1", "Gateway", "gw", {"spec": gateway_spec}),
        ("services", "v1", "Service", "gpu", {"spec": {"ports": [{"name": "http", "port": 8000}]}}),
        (
            "endpointslices",
            "discovery.k8s.io/v1",
            "EndpointSlice",
            "gpu-1",
            {
                "labels": labels,
                "addressType": "IPv4",
                "endpoints": [{"addresses": [POD], "conditions": {"ready": True}}],
                "ports": [{"name": "http", "port": 8000, "protocol": "TCP"}],
            },
        ),
        (
            "healthcheckpolicies",
            "networking.gke.io/v1",
            "HealthCheckPolicy",
            "gpu",
            {"spec": {"default": health, "targetRef": target}},
        ),
        (
            "gcpbackendpolicies",
            "networking.gke.io/v1",
            "GCPBackendPolicy",
            "gpu",
            {"spec": {"default": {"timeoutSec": 600}, "targetRef": target}},
        ),
        ("httproutes", "gateway.networking.k8s.io/v1", "HTTPRoute", "llm", {"spec": route_spec}),
    ]


async def test_applied_objects_are_served_and_their_status_is_written(cluster, tmp_path):
    local, client = cluster

    async def answer(_):
        return web.Response(text="gpu")

    app = web.Application()
    app.router.add_get("/{any:.+}", answer)
    pod = web.AppRunner(app, access_log=None)
    await pod.setup()
    await web.TCPSite(pod, POD, 8000).start()
    local.create("namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "inference"}})
    for resource, version, kind, name, given in objects():
        body = dict(given)
        meta = {"name": name, "namespace": "inference", "labels": body.pop("labels", {})}
        local.create(resource, {"apiVersion": version, "kind": kind, "metadata": meta, **body})
    faults = Faults(tmp_path / "faults.json")
    work = run_gateway(client, tmp_path / "gateway", GATEWAY, SystemClock(), 100.0, faults)
    running = asyncio.create_task(work)
    async with aiohttp.ClientSession() as session:

        async def served():
            try:
                async with session.get(f"http://{GATEWAY}:18380/v1/models") as got:
                    return got.status == 200
            except aiohttp.ClientConnectionError:
                return False

        await eventually(served, [running])

    async def programmed():
        return bool((local.get("gateways", "inference", "gw").get("status") or {}).get("addresses"))

    await eventually(programmed, [running])
    route = local.get("httproutes", "inference", "llm")
    assert {c["type"]: c["status"] for c in route["status"]["parents"][0]["conditions"]} == {
        "Accepted": "True",
        "ResolvedRefs": "True",
    }
    for resource in ("healthcheckpolicies", "gcpbackendpolicies"):
        status = local.get(resource, "inference", "gpu")["status"]
        assert [(c["type"], c["status"]) for c in status["conditions"]] == [("Attached", "True")]
    before = local.get("gateways", "inference", "gw")["metadata"]["resourceVersion"]
    # Each stray policy gets its verdict in a later pass over everything, so a whole pass lies between.
    for name in ("stray-1", "stray-2"):
        spec = {"default": {"timeoutSec": 1}, "targetRef": {"group": "", "kind": "Service", "name": "nobody"}}
        meta = {"name": name, "namespace": "inference"}
        stray = {"apiVersion": "networking.gke.io/v1", "kind": "GCPBackendPolicy", "metadata": meta, "spec": spec}
        local.create("gcpbackendpolicies", stray)

        async def judged(name=name):
            return "status" in local.get("gcpbackendpolicies", "inference", name)

        await eventually(judged, [running])
    after = local.get("gateways", "inference", "gw")["metadata"]["resourceVersion"]
    assert before == after, "a status that says the same is not written again"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await pod.cleanup()
