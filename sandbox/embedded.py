"""Put the parts of the embedded cloud together in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from google.cloud import container_v1

from sandbox import workload
from sandbox.addresses import KUBELET, free_port
from sandbox.clock import SystemClock
from sandbox.cluster import ADMIN, HOST, Cluster, EmbeddedApi, attach
from sandbox.container_launch import Settings
from sandbox.faults import Faults
from sandbox.gateway import run_gateway
from sandbox.gke.core import GkeCloud
from sandbox.gke.nodes import KubeNodes, is_ours
from sandbox.gke.server import run_cloud, serve_gke
from sandbox.gke.tokens import TokenIssuer, serve_tokens
from sandbox.images import RealVllm
from sandbox.kube import APPLY, KubeClient, KubeError
from sandbox.kubeconfig import Access, write_kubeconfig
from sandbox.node import NodeAgent
from sandbox.others import run_others
from sandbox.pki import VALIDITY, CertificateAuthority, Issued
from sandbox.pods import cancel
from sandbox.state import FAULTS_FILE, STATE_FILE, write_state
from sandbox.supervisor import USERS, Supervisor, start_time
from tpu_migration.names import GUARD_LEASE

PROJECT, LOCATION, ZONE, CLUSTER = "sandbox-project", "us-west4", "us-west4-a", "sandbox"
SERVICE_ACCOUNT = f"airflow@{PROJECT}.iam.gserviceaccount.com"
READY_S, REAL_ENGINE_READY_S = 120.0, 1200.0


@dataclass(frozen=True)
class Options:
    """How to bring a sandbox up; `users_rate` is in requests a second, 0 starts none."""

    directory: Path
    speed: float = 60.0
    workloads: int = 1
    replicas: int = 2
    users_rate: float = 0.0
    seed: int = 1
    kubeconfig: Path | None = None  # with it, `pod_cidr` is needed too
    pod_cidr: str = ""
    real_vllm: RealVllm | None = None


class Sandbox:
    """The embedded cloud; `up()` is the way to get one."""

    def __init__(self, options: Options, supervisor: Supervisor) -> None:
        self.options = options
        self.directory = options.directory.resolve()
        self.supervisor = supervisor
        self.clock = SystemClock()
        self.faults = Faults(self.directory / FAULTS_FILE)
        self.issuer = TokenIssuer(self.clock)
        self.state: dict[str, Any] = {}
        self.failed = asyncio.Event()  # a part of the cloud has ended by itself
        self.error: BaseException | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closers = contextlib.AsyncExitStack()
        self._agent: NodeAgent | None = None
        self._kube: KubeClient | None = None

    async def start(self) -> None:
        """Start every part, create the objects, write state.json; the workloads are then on their way."""
        authority = CertificateAuthority(self.directory)
        tls = authority.issue("server", [HOST, "localhost"])
        tokens = await serve_tokens(self.issuer, HOST)
        self._closers.push_async_callback(tokens.cleanup)
        key_file = self.directory / "service-account.json"
        key_file.write_text(json.dumps(self.issuer.new_service_account_key(SERVICE_ACCOUNT, PROJECT)))
        key_file.chmod(0o600)
        cluster = await self._cluster(authority, tls)
        admin, network = cluster.admin, cluster.network
        write_kubeconfig(self.directory / "kubeconfig", admin, ADMIN, workload.NAMESPACE)
        kube = self._kube = await self._closers.enter_async_context(KubeClient(cluster.parts))
        gke_port = await self._cloud(kube, tls, admin)
        await self._node_agent(kube, cluster, authority)
        gateway_address = str(network[1])
        port = free_port(gateway_address)
        envoy = self.directory / "envoy"
        self._run("gateway", run_gateway(kube, envoy, gateway_address, self.clock, self.options.speed, self.faults))
        self.state = {
            "id": self.supervisor.identity,
            "pid": os.getpid(),
            "pid_started": start_time(os.getpid()),
            "ready": False,
            "api_url": admin.url,
            "ca_file": str(authority.cert_path),
            "kubeconfig": str(self.directory / "kubeconfig"),
            "gke_endpoint": f"localhost:{gke_port}",
            "service_account_key_file": str(key_file),
            "service_account": SERVICE_ACCOUNT,
            "token_uri": self.issuer.token_uri,
            "gateway_url": f"http://{gateway_address}:{port}",
            "project": PROJECT,
            "location": LOCATION,
            "zone": ZONE,
            "cluster": CLUSTER,
            "namespace": workload.NAMESPACE,
            "workload": workload.WORKLOAD,
            "workloads": [
                {"name": name, "hostname": workload.hostname_of(name)}
                for name in workload.workload_names(self.options.workloads)
            ],
            "model": workload.SERVED_MODEL,
            "speed": self.options.speed,
            "engine": "vllm" if self.options.real_vllm else "simulated",
            "faults_file": str(self.directory / FAULTS_FILE),
            "users_file": str(self.directory / "users.json") if self.options.users_rate else None,
            "ports": {"api": urlsplit(admin.url).port or 443, "gke": gke_port, "gateway": port},
        }
        write_state(self.directory, self.state)
        await self._create_objects(kube, port)
        self._run("other controllers", run_others(kube, self.faults, self._objects(port), self.clock))

    # The parts

    async def _cluster(self, authority: CertificateAuthority, tls: Issued) -> Cluster:
        if self.options.kubeconfig is not None:
            return await attach(self.options.kubeconfig, self.options.pod_cidr, self.directory)
        api_server = EmbeddedApi(self.clock, self.options.speed, self.issuer, self.faults)
        self._closers.push_async_callback(api_server.close)
        cluster = await api_server.serve(self.supervisor.identity, authority.cert_path, tls)
        self._run("controllers", api_server.run_controllers())
        return cluster

    async def _cloud(self, kube: KubeClient, tls: Issued, admin: Access) -> int:
        """Serve the GKE API with the pools that are there from the start; return its port."""
        nodes = KubeNodes(kube, print)
        cloud = GkeCloud(
            self.clock,
            nodes,
            speed=self.options.speed,
            project=PROJECT,
            location=LOCATION,
            cluster=CLUSTER,
            endpoint=admin.url.removeprefix("https://"),
            ca_pem=Path(admin.ca_file).read_bytes() if admin.ca_file else b"",
            faults=self.faults,
        )
        gpus = self.options.workloads * self.options.replicas
        for name, machine, count in (
            ("default-pool", "e2-standard-8", 2),
            ("h100-pool", "a3-highgpu-1g", max(2, gpus)),
        ):
            config = container_v1.NodeConfig(machine_type=machine)
            pool = container_v1.NodePool(name=name, initial_node_count=count, config=config, locations=[ZONE])
            cloud.add_running_pool(pool)
        server = await serve_gke(cloud, HOST, 0, tls, self.issuer.authenticate)
        self._closers.push_async_callback(nodes.remove_all)
        self._closers.push_async_callback(server.stop)
        self._run("cloud", run_cloud(cloud, nodes))
        return server.port

    async def _node_agent(self, kube: KubeClient, cluster: Cluster, authority: CertificateAuthority) -> None:
        async def pod_access(namespace: str, account: str, uid: str) -> Path:
            token = await kube.request_token(namespace, account, int(VALIDITY.total_seconds()))
            access = Access(cluster.admin.url, cluster.admin.ca_file, token)
            return write_kubeconfig(self.directory / "volumes" / uid / "kubeconfig", access, account, namespace)

        settings = Settings(
            kube,
            self.supervisor,
            self.directory,
            self.options.speed,
            self.faults,
            self.directory / FAULTS_FILE,
            kubeconfig=pod_access,
            real_vllm=self.options.real_vllm,
        )
        self._agent = NodeAgent(settings, cluster.network, owns=is_ours)
        address = str(cluster.network[KUBELET])
        await self._agent.kubelet.start(address, authority.issue("kubelet", [address]))
        self._run("node agent", self._agent.run())

    def _objects(self, gateway_port: int) -> list[dict[str, Any]]:
        return workload.bootstrap_objects(gateway_port, self.options.workloads, self.options.replicas)

    async def _create_objects(self, kube: KubeClient, gateway_port: int) -> None:
        for item in self._objects(gateway_port):
            resource, _, name = workload.address(item)
            try:
                await _create_or_apply(kube, item)
            except KubeError as error:
                raise RuntimeError(f"cannot create {resource}/{name}: {error}") from error

    def _run(self, name: str, part: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(part, name=name)
        self._tasks[name] = task

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                self.error = task.exception() or RuntimeError(f"{name} ended by itself")
                self.failed.set()

        task.add_done_callback(ended)

    # Readiness, users, the end

    async def wait_ready(self) -> None:
        """Wait until every workload answers through the gateway and the guard has given a sign of life.

        Without the latter a migration is refused, rightly. Raises TimeoutError or the part's error.
        """
        deadline_s = REAL_ENGINE_READY_S if self.options.real_vllm else READY_S
        until = asyncio.get_running_loop().time() + deadline_s
        url = f"{self.state['gateway_url']}/v1/models"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            for service in self.state["workloads"]:
                headers = {"Host": service["hostname"]} if service["hostname"] else {}
                await self._until(f"{service['name']} does not answer", until, partial(_answers, session, url, headers))
        await self._until("the guard gives no sign of life", until, self._guarded)
        self.state["ready"] = True
        write_state(self.directory, self.state)

    async def _until(self, what_is_not: str, until: float, holds: Callable[[], Awaitable[bool]]) -> None:
        loop = asyncio.get_running_loop()
        while not await holds():
            if self.failed.is_set():
                raise RuntimeError("a part of the sandbox has ended") from self.error
            if loop.time() > until:
                raise TimeoutError(f"{what_is_not} in time")
            await asyncio.sleep(0.1)

    async def _guarded(self) -> bool:
        assert self._kube is not None
        return await self._kube.get("leases", workload.NAMESPACE, GUARD_LEASE) is not None

    async def start_users(self, rate: float, seed: int = 1, name: str = "users", **flags: Any) -> Path:
        """Start streaming users on the first workload; return the file with their counters."""
        out = self.directory / f"{name}.json"
        argv = [sys.executable, "-m", "sandbox.users", "--url", self.state["gateway_url"]]
        argv += ["--model", self.state["model"], "--rate", f"{rate:g}", "--seed", str(seed), "--out", str(out)]
        for flag, value in flags.items():
            argv += [f"--{flag.replace('_', '-')}", str(value)]
        await self.supervisor.start(name, argv, cwd=workload.ROOT, order=USERS)
        return out

    async def stop(self) -> None:
        """Stop users, then pods, then Envoy, then the APIs."""
        users = [child.name for child in self.supervisor.children.values() if child.order == USERS]
        await asyncio.gather(*(self.supervisor.stop(name, grace_s=3) for name in users))
        for name in ("other controllers", "node agent", "gateway", "cloud", "controllers"):
            if (task := self._tasks.pop(name, None)) is not None:
                await cancel(task)
            if name == "node agent" and self._agent is not None:
                await self._agent.stop()
        await self._closers.aclose()
        (self.directory / STATE_FILE).unlink(missing_ok=True)


async def _create_or_apply(kube: KubeClient, item: dict[str, Any]) -> None:
    """Create an object; one that an earlier sandbox has left on this API server is put back to what it was."""
    resource, namespace, name = workload.address(item)
    try:
        await kube.create(resource, namespace, item)
    except KubeError as error:
        if error.code != 409:
            raise
        await kube.patch(resource, namespace, name, item, APPLY)


async def _answers(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> bool:
    try:
        async with session.get(url, headers=headers) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
