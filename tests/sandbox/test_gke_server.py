"""The unmodified Google client against the gRPC server, over TLS, with a real service-account key."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys

import pytest

from sandbox.clock import SystemClock
from sandbox.gke.core import GkeCloud
from sandbox.gke.nodes import KubeNodes, MemoryNodes
from sandbox.gke.server import serve_gke
from sandbox.gke.tokens import TokenIssuer, serve_tokens
from sandbox.pki import CertificateAuthority

CLIENT = """
import base64, json, sys, time
from google.api_core import exceptions
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import container_v1 as gke
from google.oauth2 import service_account

port, keys = sys.argv[1], json.load(open(sys.argv[2]))
CLUSTER = "projects/sandbox-project/locations/us-west4/clusters/sandbox"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
OPTIONS = ClientOptions(api_endpoint=f"localhost:{port}")

def client(credentials):
    return gke.ClusterManagerClient(credentials=credentials, client_options=OPTIONS)

def account(key, **options):
    return service_account.Credentials.from_service_account_info(keys[key], **options)

def refused(call):
    try:
        call()
    except exceptions.GoogleAPICallError as error:
        return type(error).__name__
    return "accepted"

out = {}
good = client(account("known"))
cluster = good.get_cluster(name=CLUSTER)
out["endpoint"] = cluster.endpoint
out["ca"] = base64.b64decode(cluster.master_auth.cluster_ca_certificate).decode()
out["scoped"] = client(account("known", scopes=[SCOPE])).get_cluster(name=CLUSTER).name
out["anonymous"] = refused(lambda: client(AnonymousCredentials()).get_cluster(name=CLUSTER, retry=None))
out["stranger"] = refused(lambda: client(account("stranger")).get_cluster(name=CLUSTER, retry=None))
pool = gke.NodePool(name="tpu", initial_node_count=1, config=gke.NodeConfig(machine_type="ct5lp-hightpu-8t"))
operation = good.create_node_pool(parent=CLUSTER, node_pool=pool)
out["locked"] = refused(lambda: good.delete_node_pool(name=f"{CLUSTER}/nodePools/tpu", retry=None))
name = f"projects/sandbox-project/locations/us-west4/operations/{operation.name}"
deadline = time.monotonic() + 30
while operation.status != gke.Operation.Status.DONE and time.monotonic() < deadline:
    time.sleep(0.05)
    operation = good.get_operation(name=name)
out["done"] = operation.status.name
out["error"] = operation.error.message
out["pools"] = [(p.name, p.status.name) for p in good.list_node_pools(parent=CLUSTER).node_pools]
out["missing"] = refused(lambda: good.get_node_pool(name=f"{CLUSTER}/nodePools/none", retry=None))
out["exists"] = refused(lambda: good.create_node_pool(parent=CLUSTER, node_pool=pool, retry=None))
out["cancel_done"] = refused(lambda: good.cancel_operation(name=name, retry=None))
out["unimplemented"] = refused(lambda: good.get_json_web_keys(gke.GetJSONWebKeysRequest(parent=CLUSTER)))
print(json.dumps(out))
"""


@pytest.fixture
async def api(tmp_path):
    ca = CertificateAuthority(tmp_path)
    issuer = TokenIssuer(SystemClock())
    tokens = await serve_tokens(issuer, "127.0.0.1")
    nodes = MemoryNodes()
    cloud = GkeCloud(SystemClock(), nodes, speed=200, endpoint="127.0.0.1:6443", ca_pem=ca.pem)
    tls = ca.issue("gke", ["localhost", "127.0.0.1"])
    server = await serve_gke(cloud, "127.0.0.1", 0, tls, issuer.authenticate)
    yield ca, issuer, server, nodes
    await server.stop()
    await tokens.cleanup()


async def test_the_google_client_works_unmodified_with_a_service_account_key(api, tmp_path):
    ca, issuer, server, nodes = api
    email = "airflow@sandbox-project.iam.gserviceaccount.com"
    stranger = TokenIssuer(SystemClock(), token_uri=issuer.token_uri)
    keys = {
        "known": issuer.new_service_account_key(email, "sandbox-project"),
        "stranger": stranger.new_service_account_key(email, "sandbox-project"),
    }
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CLIENT, str(server.port), str(tmp_path / "keys.json")),
        env={**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(ca.cert_path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 0, stderr.decode()[-2000:]
    assert json.loads(stdout) == {
        "endpoint": "127.0.0.1:6443",
        "ca": ca.pem.decode(),
        "scoped": "sandbox",
        "anonymous": "Unauthenticated",
        "stranger": "Unauthenticated",
        "locked": "FailedPrecondition",
        "done": "DONE",
        "error": "",
        "pools": [["tpu", "RUNNING"]],
        "missing": "NotFound",
        "exists": "AlreadyExists",
        "cancel_done": "FailedPrecondition",
        "unimplemented": "MethodNotImplemented",
    }
    assert [node["metadata"]["labels"]["cloud.google.com/gke-nodepool"] for node in nodes.list_nodes()] == ["tpu"]


def test_a_certificate_is_good_for_its_own_hosts_only(tmp_path):
    ca = CertificateAuthority(tmp_path)
    tls = ca.issue("api", ["127.1.2.3", "localhost"])
    assert CertificateAuthority(tmp_path).pem == ca.pem, "the authority outlives a restart"
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(tls.cert, tls.key)
    trusting = ssl.create_default_context(cafile=str(ca.cert_path))
    assert handshake(server_side, trusting, "127.1.2.3") == "verified"
    assert handshake(server_side, trusting, "localhost") == "verified"
    assert handshake(server_side, trusting, "127.1.2.4") == "CERTIFICATE_VERIFY_FAILED"
    assert handshake(server_side, ssl.create_default_context(), "localhost") == "CERTIFICATE_VERIFY_FAILED"


def handshake(server_side, client_side, host):
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname=host)
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(6):
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                return error.reason
    return "verified"


class FlakyClient:
    """A Kubernetes client that refuses the first write."""

    def __init__(self):
        labels = {"cloud.google.com/gke-nodepool": "old"}
        ours, real = {"providerID": "gce://sandbox/us-west4-a/gone"}, {"providerID": "gce://my-project/us-west4-a/real"}
        self.nodes = {
            "gone": {"metadata": {"name": "gone", "labels": labels}, "spec": ours},
            "real": {"metadata": {"name": "real", "labels": labels}, "spec": real},
        }
        self.refusals = 1

    async def list(self, resource, ns=None):
        return list(self.nodes.values())

    async def get(self, resource, ns, name):
        return self.nodes.get(name)

    async def create(self, resource, ns, body):
        if self.refusals:
            self.refusals -= 1
            raise ConnectionError("connection refused")
        self.nodes[body["metadata"]["name"]] = dict(body)
        return body

    async def update(self, resource, ns, name, body, subresource=None):
        key = "status" if subresource == "status" else "spec"
        self.nodes[name] = {**self.nodes[name], key: body[key]}
        return self.nodes[name]

    async def delete(self, resource, ns, name):
        del self.nodes[name]


async def test_nodes_reach_an_api_server_that_refuses_once_leftovers_go_and_real_ones_are_spared():
    client, said = FlakyClient(), []
    nodes = KubeNodes(client, said.append)
    nodes.create_node({"metadata": {"name": "n", "labels": {}}, "spec": {"taints": []}, "status": {"ready": 0}})
    assert not await nodes.flush()
    assert "connection refused" in said[0]
    assert await nodes.flush()
    assert set(client.nodes) == {"n", "real"}
    nodes.create_node({"metadata": {"name": "n", "labels": {}}, "spec": {}, "status": {"ready": 1}})
    assert await nodes.flush()
    assert client.nodes["n"]["status"] == {"ready": 1}
    nodes.delete_node("n")
    assert await nodes.flush()
    assert set(client.nodes) == {"real"}
