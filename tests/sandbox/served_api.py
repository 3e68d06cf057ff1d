"""Serve the embedded API over TLS with its controllers, and reach it with kubectl and other clients."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sandbox.api import Api, LocalClient
from sandbox.api.http import Server, serve
from sandbox.api.messages import Object
from sandbox.api.times import stamp
from sandbox.clock import SystemClock
from sandbox.controllers import Manager
from sandbox.kube import KubeClient
from sandbox.kubeconfig import Access
from sandbox.kubelet import Kubelet
from sandbox.pki import Issued

TOKENS = {"all": "admin", "none": "system:serviceaccount:inference:nobody"}
KUBECTL = shutil.which("kubectl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
NS = "inference"
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web", "namespace": "inference"},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "main", "image": "web:1", "ports": [{"containerPort": 8000}]}]},
        },
    },
}


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sandbox")])
    now = datetime.datetime.now(datetime.UTC)
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(addresses, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    certificate_file, key_file = directory / "ca.crt", directory / "ca.key"
    certificate_file.write_bytes(certificate.public_bytes(pem))
    key_file.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return certificate_file, key_file


@dataclass
class Cluster:
    """A served API with its controllers."""

    api: Api
    local: LocalClient
    server: Server
    url: str
    ca: Path
    directory: Path

    def client(self, token: str | None = "all") -> KubeClient:
        return KubeClient(Access(self.url, str(self.ca), token))

    async def kubectl(self, *arguments: str, stdin: str = "") -> tuple[int, str]:
        """Run kubectl; return its exit code and what it wrote, errors included."""
        process = await self.start_kubectl(*arguments)
        out, _ = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
        return process.returncode or 0, out.decode()

    async def start_kubectl(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start kubectl; who calls this also ends it."""
        config = self.directory / "kubeconfig"
        if not config.exists():
            context = {"cluster": "c", "user": "u", "namespace": "inference"}
            cluster = {"server": self.url, "certificate-authority": str(self.ca)}
            config.write_text(
                json.dumps(
                    {
                        "apiVersion": "v1",
                        "kind": "Config",
                        "clusters": [{"name": "c", "cluster": cluster}],
                        "users": [{"name": "u", "user": {"token": "all"}}],
                        "contexts": [{"name": "x", "context": context}],
                        "current-context": "x",
                    }
                )
            )
        assert KUBECTL is not None
        return await asyncio.create_subprocess_exec(
            KUBECTL,
            f"--kubeconfig={config}",
            f"--cache-dir={self.directory / 'cache'}",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )


@contextlib.asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Cluster]:
    """Serve an API with one namespace; everything has ended afterwards."""
    certificate, key = make_certificate(directory)
    clock = SystemClock()
    api = Api(clock)
    logs = directory / "pods"
    logs.mkdir()
    server = await serve(api, "127.0.0.1", 0, certificate, key, lambda token: TOKENS.get(token or ""))
    manager = Manager(api, clock)
    running = asyncio.create_task(manager.run())
    local = LocalClient(api)
    local.create("namespaces", {"metadata": {"name": "inference"}})
    endpoint = Kubelet(logs, lambda namespace, pod, _: _phase(local, namespace, pod) == "Running")
    await endpoint.start("127.0.0.1", Issued(certificate, key))
    stop = api.subscribe(_registrar(local, endpoint))
    yield Cluster(api, local, server, f"https://127.0.0.1:{server.port}", certificate, directory)
    stop()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await endpoint.close()
    await server.close()


def _phase(local: LocalClient, namespace: str, pod: str) -> str | None:
    found = local.get("pods", namespace, pod)
    return found["status"]["phase"] if found else None


def _registrar(local: LocalClient, endpoint: Kubelet) -> Callable[[str, str, Object], None]:
    """Let every new node name the kubelet's endpoint, as soon as the server is idle."""
    loop = asyncio.get_running_loop()

    def register(name: str) -> None:
        if local.get("nodes", None, name) is not None:
            local.patch("nodes", None, name, {"status": endpoint.status()}, subresource="status")

    def observe(kind: str, resource: str, obj: Object) -> None:
        if (kind, resource) == ("ADDED", "nodes"):
            loop.call_soon(register, obj["metadata"]["name"])

    return observe


async def until(condition: object, what: str) -> None:
    """Wait until a condition holds, by looking again and again."""
    async with asyncio.timeout(20):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)
    assert condition(), what  # type: ignore[operator]


def run_pod(cluster: Cluster, name: str, address: str = "127.0.0.1", namespace: str = NS) -> None:
    """Do what a node agent does when a pod's process is up and ready."""
    pod = cluster.local.get("pods", namespace, name)
    assert pod is not None
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": stamp(cluster.api.clock.now())}
    pod["status"] = {**pod["status"], "phase": "Running", "podIP": address}
    pod["status"]["conditions"] = [*pod["status"].get("conditions", []), ready]
    cluster.local.update("pods", pod, "status")


@contextlib.contextmanager
def kubelet(cluster: Cluster) -> Iterator[None]:
    """Run every pod that is bound to a node, and end every one that is deleted, as soon as the server is idle."""
    loop = asyncio.get_running_loop()

    def act(namespace: str, name: str) -> None:
        pod = cluster.local.get("pods", namespace, name)
        if pod is None or not pod["spec"].get("nodeName"):
            return
        if "deletionTimestamp" in pod["metadata"]:
            cluster.local.delete("pods", namespace, name, grace_period_s=0)
        elif pod["status"]["phase"] == "Pending":
            for container in pod["spec"]["containers"]:
                log = cluster.directory / "pods" / f"{namespace}_{name}_{container['name']}.log"
                log.write_text(f"{container['image']} starts\nit is ready\n")
            run_pod(cluster, name, namespace=namespace)

    def observe(kind: str, resource: str, obj: Object) -> None:
        if resource == "pods" and kind != "DELETED":
            loop.call_soon(act, obj["metadata"]["namespace"], obj["metadata"]["name"])

    stop = cluster.api.subscribe(observe)
    yield
    stop()


def add_pod(cluster: Cluster, name: str, port: int) -> None:
    container = {"name": "main", "image": "web:1", "ports": [{"containerPort": port, "name": "http"}]}
    spec = {"containers": [container], "nodeName": "n1"}
    if cluster.local.get("nodes", None, "n1") is None:
        cluster.local.create("nodes", {"metadata": {"name": "n1"}})
    cluster.local.create("pods", {"metadata": {"name": name, "namespace": "inference"}, "spec": spec})
    run_pod(cluster, name)
