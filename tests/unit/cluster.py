"""Stand a namespace up on the embedded API, in the same process: objects only, no controllers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sandbox.api import Api, LocalClient, Request
from sandbox.clock import VirtualClock
from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.clients.transport import Response
from tpu_migration.domain.phases import Phase
from tpu_migration.domain.plan import Plan
from tpu_migration.domain.routing import epoch_annotation, epoch_of
from tpu_migration.errors import TransientError
from tpu_migration.record import Record, Source
from tpu_migration.records import Records
from tpu_migration.snapshot import Snapshots

NAMESPACE = "inference"
GPU, TPU = "vllm", "vllm-tpu"
ROOT = [{"path": {"type": "PathPrefix", "value": "/"}}]


def ref(name: str, weight: int = 1) -> dict[str, Any]:
    """Return a backendRef as the API server gives it back, with its defaults."""
    return {"group": "", "kind": "Service", "name": name, "port": 8000, "weight": weight}


def source(**changes: Any) -> Source:
    """Return the GPU side as preflight finds it."""
    found = Source(
        deployment=GPU,
        service=GPU,
        port=8000,
        route=GPU,
        replicas=2,
        accelerator="nvidia-h100-80gb",
        chips=1,
        model="google/gemma-3-27b-it",
        served_names=("gemma-3-27b-it",),
        gateway_url="http://10.9.9.9:8080",
        rules=({"matches": ROOT, "backendRefs": [ref(GPU)]},),
    )
    return replace(found, **changes)


def record(phase: Phase = Phase.SHIFTING, **changes: Any) -> Record:
    """Return the record of run-1 at epoch 1."""
    plan = Plan(workload=GPU, peak_rps=4.0)
    made = Record(
        workload=GPU,
        namespace=NAMESPACE,
        run_id="run-1",
        epoch=1,
        phase=phase,
        plan=plan.to_dict(),
        plan_hash=plan.hash,
        source=source(),
        source_capacity=2,
        target=TPU,
        pool="tpu-vllm-12345678",
    )
    return replace(made, **changes)


@dataclass
class Cluster:
    """One namespace, and a client whose calls a test can see, fail and interleave.

    `before` runs before each call reaches the server: what it writes is what somebody else wrote in
    between; what it raises is a call without an answer.
    """

    clock: VirtualClock = field(default_factory=VirtualClock)
    before: Callable[[str, str], None] = lambda method, path: None
    after: Callable[[str, str], None] = lambda method, path: None
    user: str = "admin"
    calls: list[str] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.api = Api(self.clock)
        self.client = LocalClient(self.api)
        self.client.create("namespaces", {"metadata": {"name": NAMESPACE}})
        self.kube = Kubernetes(self.transport)

    def transport(
        self, method: str, path: str, *, query: Mapping[str, str], content_type: str, body: Any, timeout_s: float
    ) -> Response:
        self.calls.append(f"{method} {path}")
        self.sent.append({"query": dict(query), "content_type": content_type, "body": body, "timeout_s": timeout_s})
        self.before(method, path)
        payload = json.dumps(body).encode() if body is not None else b""
        headers = {"content-type": content_type, "user-agent": "tpu-migration"}
        answer = self.api.handle(Request(method, path, dict(query), headers, payload, self.user))
        self.after(method, path)
        return Response(answer.status, answer.body)

    def cut_off(self) -> None:
        """Let no call get an answer from now on, until `reconnect`."""

        def refuse(method: str, path: str) -> None:
            raise TransientError(f"no answer to {method} {path} within 10 s")

        self.before = refuse

    def reconnect(self) -> None:
        """Let calls through again."""
        self.before = lambda method, path: None

    @property
    def records(self) -> Records:
        return Records(self.kube, NAMESPACE, GPU)

    @property
    def snapshots(self) -> Snapshots:
        return Snapshots(self.kube, NAMESPACE, GPU)

    # ------------------------------------------------------------- the users' route

    def give_route(self, weights: Mapping[str, int] | None = None, *, epoch: int | None = 1) -> dict[str, Any]:
        """Create the users' HTTPRoute with these weights and this epoch."""
        refs = [ref(name, weight) for name, weight in (weights or {GPU: 1}).items()]
        annotations = {epoch_annotation(GPU): str(epoch)} if epoch is not None else {}
        spec = {"parentRefs": [{"name": "gateway"}], "rules": [{"matches": ROOT, "backendRefs": refs}]}
        route = {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": GPU, "namespace": NAMESPACE, "annotations": annotations},
            "spec": spec,
        }
        return self.client.create("httproutes", route)

    def route(self) -> dict[str, Any]:
        """Return the users' HTTPRoute."""
        found = self.client.get("httproutes", NAMESPACE, GPU)
        assert found is not None
        return found

    def weights(self, rule: int = 0) -> dict[str, int]:
        """Return the weights of one of its rules."""
        return {each["name"]: each["weight"] for each in self.route()["spec"]["rules"][rule]["backendRefs"]}

    def epoch(self) -> int:
        """Return the epoch that the route carries."""
        return epoch_of(self.route(), GPU)

    def touch_route(self, **annotations: str) -> None:
        """Write the route as another controller does, so that its resourceVersion moves on."""
        self.client.patch("httproutes", NAMESPACE, GPU, {"metadata": {"annotations": annotations}})

    # ------------------------------------------------------------------- endpoints

    def give_endpoints(self, service: str, ready: int, unready: int = 0) -> None:
        """Let a Service have so many ready endpoints (and so many that are not)."""
        flags = [True] * ready + [False] * unready
        one = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{service}-abcde",
                "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": [f"10.0.0.{i + 1}"], "conditions": {"ready": flag}} for i, flag in enumerate(flags)
            ],
            "ports": [{"name": "http", "port": 8000, "protocol": "TCP"}],
        }
        if self.client.get("endpointslices", NAMESPACE, f"{service}-abcde"):
            self.client.delete("endpointslices", NAMESPACE, f"{service}-abcde")
        self.client.create("endpointslices", one)

    def give_deployment(self, name: str, replicas: int) -> None:
        """Create a Deployment; no controller runs its pods here."""
        labels = {"app": name}
        template = {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "vllm", "image": "vllm/vllm-tpu:v0.32.0"}]},
        }
        self.client.create(
            "deployments",
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
            },
        )

    def replicas(self, name: str) -> int:
        """Return how many replicas a Deployment asks for."""
        found = self.client.get("deployments", NAMESPACE, name)
        assert found is not None
        return int(found["spec"]["replicas"])

    # -------------------------------------------------------------------- the record

    def damage_record(self, text: str, workload: str = GPU) -> None:
        """Put another text where the record was."""
        name = f"tpu-migration-{workload}"
        self.client.patch("configmaps", NAMESPACE, name, {"data": {"record.json": text}})


def once(act: Callable[[], Any], method: str, part: str, times: int = 1) -> Callable[[str, str], None]:
    """Return a hook that acts just before (or after) the first calls of that method and path."""
    left = [times]

    def hook(called: str, path: str) -> None:
        if left[0] and called == method and part in path:
            left[0] -= 1
            act()

    return hook
