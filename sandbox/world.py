"""Run the whole sandbox as one state machine under a virtual clock: hours pass in a moment.

The Kubernetes API, its controllers and the GKE API are the very ones that the sandbox serves
over the network. What is a process there is a few counters here: the kubelet, the engines, the
Gateway, the users, the prober and the benchmark Jobs.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from google.cloud import container_v1

from sandbox.api import Api, LocalClient, Request, Response
from sandbox.api.messages import dumps
from sandbox.clock import VirtualClock
from sandbox.controllers import Manager
from sandbox.gke.core import GkeCloud
from sandbox.gke.nodes import LocalNodes
from sandbox.virtual_pods import BenchPod, EnginePod, PlainPod, ProberPod, VirtualPod
from sandbox.workload import NAMESPACE, ORCHESTRATOR, address, bootstrap_objects

PROJECT, LOCATION, ZONE, CLUSTER = "sandbox-project", "us-west4", "us-west4-a", "sandbox"
GATEWAY_DELAY_S = 8.0  # what a weight takes on GKE (argoproj/argo-rollouts#4710)


class World:
    """A cluster with one GPU workload and users on it; `advance` is the only way for time to pass."""

    def __init__(
        self, *, seed: int = 0, rate_rps: float = 3.0, answer_s: float = 6.0, speed: float = 1.0, replicas: int = 2
    ) -> None:
        self.clock = VirtualClock()
        self.speed = speed  # divides what the cloud takes, as `python -m sandbox up --speed` does
        self.random = random.Random(seed)
        self.api = Api(self.clock, seed)
        self.client = LocalClient(self.api)
        self.controllers = Manager(self.api, self.clock)
        self.gke = GkeCloud(
            self.clock, LocalNodes(self.client), speed=speed, project=PROJECT, location=LOCATION, cluster=CLUSTER
        )
        self.faults: dict[str, dict[str, Any]] = {}
        self.user = ORCHESTRATOR  # whom the API takes the product for
        self.rate_rps, self.answer_s = rate_rps, answer_s
        self.users = {"requests": 0, "failed": 0, "truncated": 0}
        self.violations: list[str] = []
        self.on_tick: list[Callable[[], None]] = []
        self.pods: dict[str, VirtualPod] = {}
        self._pod_objects: dict[str, dict[str, Any]] = {}
        self._due = 0.0
        self._routes: deque[tuple[float, list[dict[str, Any]]]] = deque()
        self._applied: list[dict[str, Any]] = []
        self.api.subscribe(self._see_pod)
        self.api.pod_proxy = self._proxy
        self.api.pod_logs = self._log
        for name, machine in (("default-pool", "e2-standard-8"), ("h100-pool", "a3-highgpu-1g")):
            config = container_v1.NodeConfig(machine_type=machine)
            self.gke.add_running_pool(
                container_v1.NodePool(name=name, initial_node_count=2, config=config, locations=[ZONE])
            )
        for obj in bootstrap_objects(8080, replicas=replicas):
            self.client.create(address(obj)[0], obj)
        self._programme_gateway()
        self.advance(180.0 / speed)
        self.users = {"requests": 0, "failed": 0, "truncated": 0}
        self.violations.clear()

    # ------------------------------------------------------------------ time

    def advance(self, seconds: float) -> None:
        """Let time pass, in ticks of a second at most, and let everything react."""
        end = self.clock.now() + seconds
        self._follow_route()  # the Gateway's delay begins when a route is written, not at the next tick
        while self.clock.now() < end - 1e-9:
            self.clock.advance(min(1.0, end - self.clock.now()))
            self.settle()
            self._users_arrive()
            for hook in self.on_tick:
                hook()

    def settle(self) -> None:
        """Let the cloud, the controllers, the kubelet and the Gateway see what has changed."""
        self.gke.tick()
        self.controllers.settle()
        self._run_pods()
        self.controllers.settle()
        self._follow_route()

    # ------------------------------------------------------------------ pods

    def _run_pods(self) -> None:
        now = self.clock.now()
        for uid, obj in list(self._pod_objects.items()):
            if not obj["spec"].get("nodeName"):
                continue
            pod = self.pods.get(uid) or self._start(obj)
            if obj["metadata"].get("deletionTimestamp"):
                pod.stop(now)
                if pod.ended(now):
                    self.users["truncated"] += pod.cut(now)
                    self.client.delete("pods", NAMESPACE, pod.name, grace_period_s=0)
                    del self.pods[uid]
                continue
            pod.tick(now)
            state = pod.state(now)
            if state != pod.written:
                pod.written = state
                merged = {**(obj.get("status") or {}), **pod.status(state)}
                self.client.update("pods", {**obj, "status": merged}, subresource="status")
        for uid in [each for each in self.pods if each not in self._pod_objects]:
            self.users["truncated"] += self.pods.pop(uid).cut(now)

    def _see_pod(self, event: str, resource: str, obj: dict[str, Any]) -> None:
        """Keep the namespace's pods as they are now, in the order in which they were made."""
        if resource != "pods" or obj["metadata"]["namespace"] != NAMESPACE:
            return
        if event == "DELETED":
            self._pod_objects.pop(obj["metadata"]["uid"], None)
        else:
            self._pod_objects[obj["metadata"]["uid"]] = obj

    def _objects(self, resource: str) -> list[dict[str, Any]]:
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
            kind = {"bench": BenchPod, "prober": ProberPod}.get((command[1:2] or [""])[0], PlainPod)
        address = f"10.0.{len(self.pods) // 250}.{len(self.pods) % 250 + 1}"
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
        lines = pod.log() if pod else []
        if "tailLines" in query:
            lines = lines[-int(query["tailLines"]) :]
        return "".join(f"{line}\n" for line in lines).encode()

    # --------------------------------------------------------------- traffic

    def _programme_gateway(self) -> None:
        gateway = self.client.list("gateways", NAMESPACE)[0]
        gateway["status"] = {"addresses": [{"type": "IPAddress", "value": "10.9.9.9"}]}
        self.client.update("gateways", gateway, subresource="status")

    def _follow_route(self) -> None:
        """Apply the routes' rules after the time that a load balancer takes."""
        rules = [
            rule
            for route in sorted(self._objects("httproutes"), key=lambda r: str(r["metadata"]["name"]))
            for rule in route["spec"].get("rules") or []
        ]
        now = self.clock.now()
        newest = self._routes[-1][1] if self._routes else self._applied
        if rules != newest:
            self._routes.append((now + (GATEWAY_DELAY_S / self.speed if self._applied else 0.0), rules))
        while self._routes and self._routes[0][0] <= now:
            self._applied = self._routes.popleft()[1]

    def weights(self, arm: str | None = None) -> dict[str, int]:
        """Return the weights in force at the Gateway, for users or for one arm of the probe route."""
        for rule in self._applied:
            headers = [h for match in rule.get("matches") or [] for h in match.get("headers") or []]
            if (arm is None and not headers) or any(header["value"] == arm for header in headers):
                return {ref["name"]: ref.get("weight", 1) for ref in rule.get("backendRefs") or []}
        return {}

    def ready_engines(self, service: str) -> list[EnginePod]:
        """Return the engines behind a Service that are ready to take requests."""
        found = []
        for one in self._objects("endpointslices"):
            if one["metadata"]["labels"].get("kubernetes.io/service-name") != service:
                continue
            for endpoint in one.get("endpoints") or []:
                if (endpoint.get("conditions") or {}).get("ready"):
                    pod = self.pod_named(endpoint["targetRef"]["name"])
                    if isinstance(pod, EnginePod):
                        found.append(pod)
        return found

    def request(self, arm: str | None = None, seconds: float | None = None) -> bool:
        """Send one request through the Gateway; True if an engine took it."""
        return self._send(self._backends(arm), self.answer_s if seconds is None else seconds)

    def _backends(self, arm: str | None = None) -> dict[str, tuple[int, list[EnginePod]]]:
        """Return the backends with weight: what each gets, and its engines that are ready."""
        return {name: (weight, self.ready_engines(name)) for name, weight in self.weights(arm).items() if weight > 0}

    def _send(self, backends: dict[str, tuple[int, list[EnginePod]]], seconds: float) -> bool:
        if not backends:
            return False
        (chosen,) = self.random.choices(list(backends), [weight for weight, _ in backends.values()])
        now = self.clock.now()
        engines = [each for each in backends[chosen][1] if each.serves(now)]
        if not engines:
            return False
        min(engines, key=lambda each: each.in_flight(now)).take(now, seconds)
        return True

    def _users_arrive(self) -> None:
        backends = self._backends()
        for service, (weight, ready) in backends.items():
            if not ready:
                self.violations.append(f"{service} has weight {weight} and no ready endpoint")
        self._due += self.rate_rps
        while self._due >= 1:
            self._due -= 1
            self.users["requests"] += 1
            if not self._send(backends, self.answer_s):
                self.users["failed"] += 1

    # --------------------------------------------------------------- clients

    def transport(self, before: Callable[[str, str], None], after: Callable[[str, str], None]) -> Any:
        """Return the transport of the product's Kubernetes client; the hooks see each call."""
        from tpu_migration.clients.kubernetes import Response as Answer

        def send(
            method: str, path: str, *, query: Mapping[str, str], content_type: str, body: Any, timeout_s: float
        ) -> Answer:
            before(method, path)
            payload = dumps(body) if body is not None else b""
            headers = {"content-type": content_type, "user-agent": "tpu-migration"}
            response = self.api.handle(Request(method, path, dict(query), headers, payload, self.user))
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
            answer = getattr(self._core, name)(kind(request))
            self._after("GKE", name)
            return answer

        return call
