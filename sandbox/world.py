"""Run the whole sandbox as one state machine under a virtual clock: hours pass in a moment.

The Kubernetes API, its controllers and the GKE API are the very ones that the sandbox serves
over the network. What is a process there is a few counters here: the kubelet, the engines, the
Gateway, the users, the prober and the benchmark Jobs.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from google.cloud import container_v1

from sandbox.api import Api, LocalClient, Request, Response
from sandbox.api.messages import dumps
from sandbox.api.trouble import Trouble
from sandbox.clock import VirtualClock
from sandbox.controllers import Manager
from sandbox.controllers.base import Cluster
from sandbox.faults import FaultSet
from sandbox.gke import warden
from sandbox.gke.core import GkeCloud
from sandbox.gke.nodes import LocalNodes
from sandbox.others import Others
from sandbox.power import ends_pods_within_s, is_off
from sandbox.virtual_bench import BenchPod
from sandbox.virtual_engine import EnginePod
from sandbox.virtual_parity import ParityPod
from sandbox.virtual_pods import PlainPod, PodState, ProberPod, VirtualPod
from sandbox.virtual_traffic import Traffic
from sandbox.workload import NAMESPACE, ORCHESTRATOR, address, bootstrap_objects

PROJECT, LOCATION, ZONE, CLUSTER = "sandbox-project", "us-west4", "us-west4-a", "sandbox"

_TOOLBOX: dict[str, type[VirtualPod]] = {"bench": BenchPod, "parity": ParityPod, "prober": ProberPod}


class World:
    """A cluster with one GPU workload and users on it; `advance` is the only way for time to pass."""

    def __init__(
        self,
        *,
        seed: int = 0,
        rate_rps: float = 3.0,
        answer_s: float = 6.0,
        speed: float = 1.0,
        replicas: int = 2,
        supply: Mapping[str, Any] | None = None,
    ) -> None:
        """`supply` is what the project has at all: `stock`, `quota` and `pod_range` of `GkeCloud`."""
        self.clock = VirtualClock()
        self.speed = speed  # divides what the cloud takes, as `python -m sandbox up --speed` does
        self.random = random.Random(seed)
        self.faults = FaultSet()
        self.api = Api(self.clock, seed)
        self.client = LocalClient(self.api)
        self.controllers = Manager(self.api, self.clock, speed)
        self._kubelet = Cluster(self.api, self.clock, manager="kubelet")
        self.gke = GkeCloud(
            self.clock,
            LocalNodes(self.client),
            speed=speed,
            project=PROJECT,
            location=LOCATION,
            cluster=CLUSTER,
            faults=self.faults,
            **(supply or {}),
        )
        self.user = ORCHESTRATOR  # whom the API takes the product for
        self.on_tick: list[Callable[[], None]] = []
        self.pods: dict[str, VirtualPod] = {}
        self.nodes_off: set[str] = set()
        self._numbers = itertools.count()
        self._nodes_ending: dict[str, float] = {}
        self._pod_objects: dict[str, dict[str, Any]] = {}
        self.traffic = Traffic(self, rate_rps, answer_s)
        self._trouble = Trouble(self.faults, self.clock.now)
        self.api.subscribe(self._observe)
        self.api.writer.admit = warden.review
        self.api.pod_proxy = self._proxy
        self.api.pod_logs = self._log
        for name, machine, count in (("default-pool", "e2-standard-8", 2), ("h100-pool", "a3-highgpu-1g", replicas)):
            config = container_v1.NodeConfig(machine_type=machine)
            self.gke.add_running_pool(
                container_v1.NodePool(name=name, initial_node_count=count, config=config, locations=[ZONE])
            )
        in_git = bootstrap_objects(8080, replicas=replicas)
        self._others = Others(self.faults, in_git)
        for obj in in_git:
            self.client.create(address(obj)[0], obj)
        self._programme_gateway()
        self.advance(180.0 / speed)
        self.traffic.begin()

    # ------------------------------------------------------------------ time

    def advance(self, seconds: float, tick_s: float = 1.0) -> None:
        """Let time pass, in ticks of `tick_s` at most, and let everything react."""
        end = self.clock.now() + seconds
        self.traffic.follow_routes()  # its delay begins when a route is written, not at the next tick
        while (left := end - self.clock.now()) > 1e-9:
            elapsed = min(tick_s, left)
            self.clock.advance(elapsed)
            self.settle()
            self.traffic.arrive(elapsed)
            for hook in self.on_tick:
                hook()

    def settle(self) -> None:
        """Let the cloud, the controllers, the kubelet and the Gateway see what has changed."""
        self.gke.tick()
        self.controllers.settle()
        version = self.api.store.version
        self._run_pods()
        self._let_others_write()
        if self.api.store.version != version:
            self.controllers.settle()
        self.traffic.follow_routes()

    def _let_others_write(self) -> None:
        if not self._others.busy:
            return
        for write in self._others.writes(self.objects("httproutes"), self.clock.now()):
            other = LocalClient(self.api, write.manager)
            other.patch("httproutes", write.namespace, write.name, write.body, write.content_type, force=True)

    # ------------------------------------------------------------------ pods

    def _run_pods(self) -> None:
        """Be the kubelets: start what is bound, tell how it is, end what is deleted."""
        now = self.clock.now()
        for uid, obj in list(self._pod_objects.items()):
            node = obj["spec"].get("nodeName")
            if not node:
                continue
            pod = self.pods.get(uid) or self._start(obj)
            if node in self.nodes_off:
                self.traffic.cut(pod.name, pod.cut(now))
            elif obj["metadata"].get("deletionTimestamp"):
                pod.stop(now)
                if pod.ended(now):
                    self._forget(uid)
                    self.client.delete("pods", NAMESPACE, pod.name, grace_period_s=0)
            else:
                self._tell(pod, obj, now)
        for uid in [each for each in self.pods if each not in self._pod_objects]:
            self._forget(uid)

    def _tell(self, pod: VirtualPod, obj: dict[str, Any], now: float) -> None:
        """Write a pod's status where it has changed."""
        pod.tick(now)
        state = pod.state(now)
        if pod.node in self._nodes_ending:
            pod.grace_s = min(pod.grace_s, self._nodes_ending[pod.node])
            pod.stop(now)
            state = PodState(False, "Failed") if pod.ended(now) else pod.state(now)
        if state != pod.written:
            pod.written = state
            self._kubelet.write("pods", obj, "status", status={**(obj.get("status") or {}), **pod.status(state)})

    def _forget(self, uid: str) -> None:
        pod = self.pods.pop(uid)
        self.traffic.cut(pod.name, pod.cut(self.clock.now()))

    def _observe(self, event: str, resource: str, obj: dict[str, Any]) -> None:
        """Keep the namespace's pods as they are now, in the order in which they were made, and who has power."""
        if resource == "pods" and obj["metadata"]["namespace"] == NAMESPACE:
            uid = obj["metadata"]["uid"]
            if event == "DELETED":
                self._pod_objects.pop(uid, None)
            else:
                self._pod_objects[uid] = obj
        elif resource == "nodes":
            name, within_s = obj["metadata"]["name"], ends_pods_within_s(obj)
            self.nodes_off.discard(name)
            self._nodes_ending.pop(name, None)
            if event != "DELETED" and is_off(obj):
                self.nodes_off.add(name)
            elif event != "DELETED" and within_s is not None:
                self._nodes_ending[name] = within_s

    def objects(self, resource: str) -> list[dict[str, Any]]:
        """Return the store's own objects, to look at and never to change: copies would cost most of the time."""
        return [entry.obj for entry in self.api.store.list(resource, NAMESPACE)]

    def _start(self, obj: dict[str, Any]) -> VirtualPod:
        node = self.client.get("nodes", None, obj["spec"]["nodeName"]) or {"metadata": {"labels": {}}}
        kind: type[VirtualPod]
        image = obj["spec"]["containers"][0]["image"]
        command = obj["spec"]["containers"][0].get("command") or []
        if "toolbox" not in image and "vllm" in image:
            kind = EnginePod
        else:
            kind = {"bench": BenchPod, "parity": ParityPod, "prober": ProberPod}.get(
                (command[1:2] or [""])[0], PlainPod
            )
        number = next(self._numbers)  # an address is never given twice: who asks for a dead pod meets no other
        address = f"10.{number // 62_500}.{number // 250 % 250}.{number % 250 + 1}"
        pod = kind(self, obj, node["metadata"]["labels"], address)
        self.pods[obj["metadata"]["uid"]] = pod
        return pod

    def pod_named(self, name: str) -> VirtualPod | None:
        """Return a running pod by name."""
        return next((each for each in self.pods.values() if each.name == name), None)

    def pod_at(self, address: str) -> VirtualPod | None:
        """Return a running pod by its address."""
        return next((each for each in self.pods.values() if each.address == address), None)

    def _proxy(self, namespace: str, name: str, port: int, request: Request) -> Response:
        pod = self.pod_named(name)
        if pod is None or not pod.listens(self.clock.now()):
            return Response(503, {}, b'{"kind":"Status","message":"no answer from the pod"}')
        status, body = pod.answer(request.method, request.path, request.body)
        return Response(status, {}, body)

    def _log(self, namespace: str, name: str, container: str, query: dict[str, str]) -> bytes:
        pod = self.pod_named(name)
        lines = (pod.previous_log() if query.get("previous") == "true" else pod.log()) if pod else []
        if "tailLines" in query:
            lines = lines[-int(query["tailLines"]) :]
        return "".join(f"{line}\n" for line in lines).encode()

    def _programme_gateway(self) -> None:
        gateway = self.client.list("gateways", NAMESPACE)[0]
        gateway["status"] = {"addresses": [{"type": "IPAddress", "value": "10.9.9.9"}]}
        self.client.update("gateways", gateway, subresource="status")

    # --------------------------------------------------------------- clients

    def transport(
        self, before: Callable[[str, str], None], after: Callable[[str, str], None], user: str | None = None
    ) -> Any:
        """Return the transport of the product's Kubernetes client; the hooks see each call."""
        from tpu_migration.clients.transport import Response as Answer
        from tpu_migration.errors import TransientError

        def send(
            method: str, path: str, *, query: Mapping[str, str], content_type: str, body: Any, timeout_s: float
        ) -> Answer:
            before(method, path)
            who = user or self.user
            if self._trouble.down(who):
                raise TransientError(f"no answer to {method} {path} within {timeout_s} s: connection refused")
            if (refusal := self._trouble.refusal(who)) is not None:
                return Answer(refusal.status, refusal.body, float(refusal.headers.get("retry-after", 0)) or None)
            payload = dumps(body) if body is not None else b""
            headers = {"content-type": content_type, "user-agent": "tpu-migration"}
            response = self.api.handle(Request(method, path, dict(query), headers, payload, who))
            after(method, path)
            return Answer(response.status, response.body)

        return send

    def cluster_manager(self, before: Callable[[str, str], None], after: Callable[[str, str], None]) -> Any:
        """Return what stands for Google's ClusterManagerClient: the same calls, answered by the core."""
        return _ClusterManager(self.gke, before, after)


class _ClusterManager:
    """Answer ClusterManagerClient's calls from the GKE core, in the same process."""

    _TYPES: ClassVar[dict[str, type]] = {
        "create_node_pool": container_v1.CreateNodePoolRequest,
        "get_node_pool": container_v1.GetNodePoolRequest,
        "list_node_pools": container_v1.ListNodePoolsRequest,
        "delete_node_pool": container_v1.DeleteNodePoolRequest,
        "get_operation": container_v1.GetOperationRequest,
        "list_operations": container_v1.ListOperationsRequest,
        "cancel_operation": container_v1.CancelOperationRequest,
        "get_cluster": container_v1.GetClusterRequest,
    }

    def __init__(self, core: GkeCloud, before: Callable[[str, str], None], after: Callable[[str, str], None]) -> None:
        self._core, self._before, self._after = core, before, after

    def __getattr__(self, name: str) -> Callable[..., Any]:
        kind = self._TYPES[name]

        def call(*, request: Any, retry: Any = None, timeout: float | None = None) -> Any:
            self._before("GKE", name)
            try:
                return getattr(self._core, name)(kind(request))
            finally:  # a refusal is an answer, too
                self._after("GKE", name)

        return call
