"""Attached to an API server that is not its own, the sandbox is the cloud of that cluster."""

from __future__ import annotations

import base64
import json
import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import aiohttp
import jsonschema
import pytest
import yaml
from aiohttp import web
from sandbox_process import ROOT, eventually, everything, listening
from served_api import make_certificate, serving, until

from sandbox import watchdog
from sandbox.addresses import UnusableNetwork, pod_network
from sandbox.attach import DEFINITIONS, GKE_KINDS, CannotAttach, prepare
from sandbox.gke.nodes import POOL_LABEL
from sandbox.kube import KubeClient, KubeError
from sandbox.kubeconfig import Access, UnusableKubeconfig, read_kubeconfig, write_kubeconfig
from sandbox.state import read_state
from sandbox.workload import NAMESPACE, SERVED_MODEL, WORKLOAD

POD_CIDR = "10.99.7.0/24"
CRDS = ROOT.parent / "shared" / "crds"
GET = """
import sys, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen(sys.argv[1], timeout=10)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status, answer.read().decode())
"""

# The network of the pods


@pytest.mark.parametrize(
    ("cidr", "remedy"),
    [
        ("127.0.0.0/8", "proxies to no loopback address"),
        ("10.99.7.0/29", "needs a /26 or more"),
        ("10.99.7.1/24", "give an IPv4 network"),
        ("203.0.113.0/24", "ip route add local 203.0.113.0/24 dev lo"),
    ],
)
def test_a_network_that_pods_cannot_have_is_refused_with_the_remedy(cidr, remedy):
    with pytest.raises(UnusableNetwork, match=remedy):
        pod_network(cidr)


# Kubeconfigs


def kubeconfig(path: Path, user: dict, **cluster) -> Path:
    config = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://10.0.0.1:6443", **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_token_may_be_in_a_file_beside_the_kubeconfig(tmp_path):
    (tmp_path / "token").write_text("secret\n")
    access = read_kubeconfig(kubeconfig(tmp_path / "config", {"tokenFile": "token"}), tmp_path)
    assert (access.url, access.token) == ("https://10.0.0.1:6443", "secret")


def test_a_client_certificate_survives_being_read_and_written(tmp_path):
    user = {key: base64.b64encode(key.encode()).decode() for key in ("client-certificate-data", "client-key-data")}
    access = read_kubeconfig(kubeconfig(tmp_path / "config", user), tmp_path)
    assert access.token is None
    (tmp_path / "again").mkdir()
    again = read_kubeconfig(write_kubeconfig(tmp_path / "copy", access, "admin", "x"), tmp_path / "again")
    assert Path(again.cert_file or "").read_text() == "client-certificate-data"
    assert Path(again.key_file or "").read_text() == "client-key-data"
    assert Path(again.key_file or "").stat().st_mode & 0o077 == 0


async def test_a_client_certificate_is_shown_to_the_server(tmp_path):
    certificate, key = make_certificate(tmp_path)
    seen: list[bool] = []

    async def nodes(request: web.Request) -> web.Response:
        assert request.transport is not None
        seen.append(bool(request.transport.get_extra_info("peercert")))
        return web.json_response({"items": [], "metadata": {"resourceVersion": "1"}})

    app = web.Application()
    app.router.add_get("/api/v1/nodes", nodes)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, key)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    async with KubeClient(Access(url, str(certificate), None, str(certificate), str(key))) as kube:
        assert await kube.list("nodes") == []
    assert seen == [True]
    async with KubeClient(Access(url, str(certificate), "a token will not do")) as kube:
        with pytest.raises(aiohttp.ClientError):
            await kube.list("nodes")
    await runner.cleanup()


@pytest.mark.parametrize("content", ["", "{}", "not: [yaml"])
def test_what_is_no_kubeconfig_is_named(tmp_path, content):
    (tmp_path / "config").write_text(content)
    with pytest.raises(UnusableKubeconfig, match="no kubeconfig"):
        read_kubeconfig(tmp_path / "config", tmp_path)


def test_a_user_of_a_credential_plugin_is_told_to_bring_a_token(tmp_path):
    config = kubeconfig(tmp_path / "config", {"exec": {"command": "gke-gcloud-auth-plugin"}})
    with pytest.raises(UnusableKubeconfig, match="kubectl create token"):
        read_kubeconfig(config, tmp_path)


# What an API server must be like


class Server:
    """An API server's discovery, CustomResourceDefinitions and nodes; `call` and `list` as KubeClient's."""

    def __init__(self, *groups: str, nodes: tuple[dict, ...] = ()) -> None:
        self.served: dict[str, list[str]] = {}
        self.nodes = list(nodes)
        self.defined: list[dict] = []
        for group in groups:
            self.served[f"{group}/v1"] = ["gatewayclasses", "gateways", "httproutes"]

    async def list(self, resource: str) -> list[dict]:
        return self.nodes

    async def call(self, method: str, path: str, body: dict | None = None) -> dict:
        if method == "POST" and path == DEFINITIONS and body is not None:
            self.defined.append(body)
            spec = body["spec"]
            version = f"{spec['group']}/{spec['versions'][0]['name']}"
            self.served.setdefault(version, []).append(spec["names"]["plural"])
            return body
        version = path.removeprefix("/apis/")
        if version not in self.served:
            raise KubeError(404, "NotFound", "the server could not find the requested resource")
        return {"resources": [{"name": name} for name in self.served[version]]}


async def test_gkes_own_kinds_are_installed_once():
    server = Server("gateway.networking.k8s.io")
    await prepare(server, "https://10.0.0.1")
    kinds = {definition["spec"]["names"]["kind"] for definition in server.defined}
    assert kinds == {"HealthCheckPolicy", "GCPBackendPolicy", "PodMonitoring"}
    await prepare(server, "https://10.0.0.1")
    assert len(server.defined) == 3


async def test_an_api_server_takes_the_definitions_of_gkes_kinds_and_keeps_every_field(tmp_path):
    async with serving(tmp_path) as cluster, cluster.client() as kube:
        for definition in yaml.safe_load_all(GKE_KINDS.read_text()):
            await kube.call("POST", DEFINITIONS, definition)

        def established():
            found = cluster.local.list("customresourcedefinitions")
            conditions = [each for item in found for each in (item.get("status") or {}).get("conditions", [])]
            return sum((each["type"], each["status"]) == ("Established", "True") for each in conditions) == 3

        await until(established, "all three are established")
        metadata = {"name": "x", "namespace": "inference"}
        spec = {"default": {"timeoutSec": 600, "news": {"of": "tomorrow"}}}
        kind = {"apiVersion": "networking.gke.io/v1", "kind": "GCPBackendPolicy"}
        await kube.create("gcpbackendpolicies", "inference", {**kind, "metadata": metadata, "spec": spec})
        body = {"status": {"conditions": []}}
        kept = await kube.patch("gcpbackendpolicies", "inference", "x", body, subresource="status")
        assert (kept["spec"], kept["status"]) == (spec, {"conditions": []})


async def test_a_cluster_without_gateway_api_is_refused_and_nothing_is_installed():
    server = Server()
    with pytest.raises(CannotAttach, match=r"httproutes\.gateway.*install Gateway API"):
        await prepare(server, "https://10.0.0.1")
    assert not server.defined


async def test_a_real_gke_cluster_is_never_taken_over():
    real = {
        "metadata": {"name": "gke-prod-1", "labels": {POOL_LABEL: "pool"}},
        "spec": {"providerID": "gce://my-project/us-central1-a/gke-prod-1"},
    }
    server = Server("gateway.networking.k8s.io", nodes=(real,))
    with pytest.raises(CannotAttach, match="is a GKE cluster"):
        await prepare(server, "https://10.0.0.1")


# The whole of it, in a network namespace


class Namespace:
    """A network namespace whose loopback interface has POD_CIDR."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._ip("netns", "add", name)
        self._ip("-n", name, "link", "set", "lo", "up")
        self._ip("-n", name, "route", "add", "local", POD_CIDR, "dev", "lo")

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    def start(self, *argv: str, **more) -> subprocess.Popen:
        return subprocess.Popen(["ip", "netns", "exec", self.name, *argv], cwd=ROOT, **more)

    def run(self, *argv: str) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, *argv],
            cwd=ROOT,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def get(self, url: str) -> str:
        """Return the status and the body of a URL, as seen from in there."""
        return self.run(sys.executable, "-c", GET, url)

    def close(self) -> None:
        self._ip("netns", "delete", self.name)


@pytest.fixture(scope="module")
def netns():
    if shutil.which("ip") is None:
        pytest.skip("no `ip` here: install iproute2")
    try:
        made = Namespace(f"sandbox-test-{os.getpid()}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace can be made here: {error.stderr.strip()}")
    yield made
    made.close()


@pytest.fixture(scope="module")
def attached(netns, tmp_path_factory):
    """An API server in one process, a sandbox attached to it in another; yield (netns, directory, state)."""
    tmp = tmp_path_factory.mktemp("attached")
    api = netns.start(
        sys.executable,
        "-m",
        "tests.sandbox.standalone_api",
        str(tmp),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert api.stdout is not None
    assert api.stdin is not None
    assert api.stdout.readline() == "ready\n"
    directory, log = tmp / "sb", (tmp / "up.log").open("w")
    where = ["--dir", str(directory), "--speed", "600", "--users", "2"]
    on = ["--kubeconfig", str(tmp / "kubeconfig"), "--pod-cidr", POD_CIDR]
    up = netns.start(sys.executable, "-m", "sandbox", "up", *where, *on, stdout=log, stderr=log)

    def ready():
        assert up.poll() is None, (tmp / "up.log").read_text()
        return (directory / "state.json").exists() and read_state(directory)["ready"]

    eventually(ready, "the attached sandbox is ready")
    state = read_state(directory)
    yield netns, directory, state
    up.kill()
    up.wait()
    api.stdin.close()
    api.wait(30)
    log.close()
    watchdog.sweep(state["id"])


def kubectl(netns: Namespace, directory: Path, *arguments: str) -> str:
    program = str(Path(sys.executable).parent / "kubectl")
    config = [f"--kubeconfig={directory / 'kubeconfig'}", f"--cache-dir={directory / 'cache'}"]
    return netns.run(program, *config, *arguments)


def test_an_attached_sandbox_is_gke_kubelet_and_gateway_of_another_api_server(attached):
    netns, directory, state = attached
    assert state["gateway_url"].startswith("http://10.99.7.1:")
    assert SERVED_MODEL in netns.get(f"{state['gateway_url']}/v1/models")

    # No API server of its own.
    assert state["api_url"] == read_kubeconfig(directory.parent / "kubeconfig", directory.parent).url
    assert ("127.0.0.1", state["ports"]["api"]) not in listening(everything(state))

    pods = json.loads(kubectl(netns, directory, "get", "pods", "--output=json"))["items"]
    assert {pod["status"]["podIP"].rpartition(".")[0] for pod in pods} == {"10.99.7"}
    assert {pod["status"]["hostIP"] for pod in pods} == {"10.99.7.19"}
    for node in json.loads(kubectl(netns, directory, "get", "nodes", "--output=json"))["items"]:
        assert node["status"]["addresses"] == [{"type": "InternalIP", "address": "10.99.7.19"}]

    # Logs come by the kubelet's endpoint, metrics by the pod proxy.
    assert "Application startup complete" in kubectl(netns, directory, "logs", f"deployment/{WORKLOAD}")
    engine = next(pod["metadata"]["name"] for pod in pods if pod["metadata"]["name"].startswith(WORKLOAD))
    proxied = f"/api/v1/namespaces/{NAMESPACE}/pods/{engine}:8000/proxy/metrics"
    assert "vllm:num_requests_running" in kubectl(netns, directory, "get", "--raw", proxied)


@pytest.mark.skipif(not CRDS.exists(), reason=f"no definitions of Gateway API in {CRDS}")
@pytest.mark.parametrize("plural", ["gatewayclasses", "gateways", "httproutes"])
def test_what_it_writes_fits_gateway_apis_own_definitions(attached, plural):
    """A real API server would refuse anything else, statuses too."""
    netns, directory, _ = attached
    definition = yaml.safe_load((CRDS / f"gateway.networking.k8s.io_{plural}.yaml").read_text())
    version = next(each for each in definition["spec"]["versions"] if each["name"] == "v1")
    validator = jsonschema.Draft202012Validator(version["schema"]["openAPIV3Schema"])
    written = json.loads(kubectl(netns, directory, "get", plural, "--output=json"))["items"]
    assert written
    for item in written:
        assert [error.message for error in validator.iter_errors(item)] == []
        assert plural == "gatewayclasses" or item["status"]


def test_the_guard_acts_with_a_token_of_its_own_service_account(attached):
    netns, directory, _ = attached
    kubectl(netns, directory, "rollout", "status", "deployment/tpu-migration-guard", "--timeout=60s")
    config = next((directory / "volumes").glob("*/kubeconfig"))
    client = [str(Path(sys.executable).parent / "kubectl"), f"--kubeconfig={config}"]
    assert "huggingface" in netns.run(*client, "get", "secrets", "--output=name")
    with pytest.raises(AssertionError, match=f"{NAMESPACE}:tpu-migration-guard.*cannot list resource"):
        netns.run(*client, "get", "nodes")


def test_leases_show_that_the_nodes_live(attached):
    netns, directory, _ = attached
    names = json.loads(kubectl(netns, directory, "get", "nodes", "--output=json"))["items"]
    leases = json.loads(kubectl(netns, directory, "get", "leases", "-n", "kube-node-lease", "--output=json"))["items"]
    assert {lease["metadata"]["name"] for lease in leases} == {node["metadata"]["name"] for node in names}


def test_users_of_an_attached_sandbox_are_served(attached):
    _, _, state = attached
    counters = Path(state["users_file"])

    def served():
        return counters.exists() and json.loads(counters.read_text())["requests"] >= 3

    eventually(served, "three answers")
    assert json.loads(counters.read_text())["failed"] == 0


def test_status_faults_and_down_work_as_ever_and_the_nodes_go_with_the_sandbox(attached):
    netns, directory, state = attached
    sandbox = [sys.executable, "-m", "sandbox"]
    assert f"route   {WORKLOAD}: {WORKLOAD} 1" in netns.run(*sandbox, "status", "--dir", str(directory))
    lb_errors = json.dumps({"percent": 100, "status": 502})
    netns.run(*sandbox, "fault", "lb-errors", lb_errors, "--dir", str(directory))
    url = f"{state['gateway_url']}/v1/models"
    eventually(lambda: netns.get(url).startswith("502 "), "the fault is in force")
    config = directory / "kubeconfig"
    kept = directory.parent / "person"
    kept.write_bytes(config.read_bytes())
    assert "is down" in netns.run(*sandbox, "down", "--dir", str(directory))
    assert not watchdog.members(state["id"])
    nodes = [str(Path(sys.executable).parent / "kubectl"), f"--kubeconfig={kept}", "get", "nodes", "--output=name"]
    assert not netns.run(*nodes).strip()
