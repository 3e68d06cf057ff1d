"""List the resources that the embedded API server knows, and how each behaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .definitions import Definition

STATUS = ("status",)
ALL = ("all",)  # what `kubectl get all` gets


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource: where it is served and which of Kubernetes' rules hold for it.

    `model` names the type in the kubernetes client's models; custom resources have none.
    `definition`: what an installed CustomResourceDefinition says; a custom resource that is built in has none.
    `generation`: metadata.generation counts changes of the spec.
    `unconditional`: a PUT without resourceVersion is taken.
    `upsert`: a PUT creates what is not there.
    """

    plural: str
    kind: str
    group: str = ""
    version: str = "v1"
    model: str = ""
    namespaced: bool = True
    short: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    generation: bool = False
    unconditional: bool = True
    upsert: bool = False
    definition: Definition | None = field(default=None, repr=False)
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = (
        "create",
        "delete",
        "deletecollection",
        "get",
        "list",
        "patch",
        "update",
        "watch",
    )

    @property
    def custom(self) -> bool:
        """Tell whether a CustomResourceDefinition would define it."""
        return not self.model

    @property
    def singular(self) -> str:
        return self.kind.lower()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def group_resource(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def group_kind(self) -> str:
        return f"{self.kind}.{self.group}" if self.group else self.kind

    @property
    def is_review(self) -> bool:
        """Tell whether it answers a question, and stores nothing."""
        return self.verbs == ("create",)

    @property
    def has_status(self) -> bool:
        return "status" in self.subresources


def _core(plural: str, kind: str, **options: object) -> Resource:
    options.setdefault("model", f"V1{kind}")
    if plural in ("pods", "services"):
        options["categories"] = ALL
    return Resource(plural, kind, **options)  # type: ignore[arg-type]


def _rbac(plural: str, kind: str, namespaced: bool) -> Resource:
    group = "rbac.authorization.k8s.io"
    return Resource(plural, kind, group, model=f"V1{kind}", namespaced=namespaced, upsert=True)


def _review(group: str, kind: str) -> Resource:
    """Return a resource that answers a question about whoever asks; nothing of it is stored."""
    return Resource(f"{kind.lower()}s", kind, group, model=f"V1{kind}", namespaced=False, verbs=("create",))


def _custom(group: str, plural: str, kind: str, **options: object) -> Resource:
    options.setdefault("subresources", STATUS)
    return Resource(plural, kind, group, generation=True, unconditional=False, **options)  # type: ignore[arg-type]


GATEWAY_API = "gateway.networking.k8s.io"
GKE = "networking.gke.io"

RESOURCES: tuple[Resource, ...] = (
    _core("namespaces", "Namespace", namespaced=False, short=("ns",), subresources=STATUS),
    _core(
        "pods",
        "Pod",
        short=("po",),
        subresources=("status", "log", "proxy", "eviction", "binding"),
        generation=True,
    ),
    _core("services", "Service", short=("svc",), subresources=STATUS),
    _core("configmaps", "ConfigMap", short=("cm",)),
    _core("secrets", "Secret"),
    _core("serviceaccounts", "ServiceAccount", short=("sa",), subresources=("token",)),
    _core("nodes", "Node", namespaced=False, short=("no",), subresources=STATUS),
    _core("events", "Event", model="CoreV1Event", short=("ev",), upsert=True),
    _core("persistentvolumeclaims", "PersistentVolumeClaim", short=("pvc",), subresources=STATUS),
    Resource(
        "deployments",
        "Deployment",
        "apps",
        categories=ALL,
        model="V1Deployment",
        short=("deploy",),
        subresources=("status", "scale"),
        generation=True,
    ),
    Resource(
        "replicasets",
        "ReplicaSet",
        "apps",
        categories=ALL,
        model="V1ReplicaSet",
        short=("rs",),
        subresources=("status", "scale"),
        generation=True,
    ),
    Resource("jobs", "Job", "batch", model="V1Job", subresources=STATUS, generation=True, categories=ALL),
    Resource("endpointslices", "EndpointSlice", "discovery.k8s.io", model="V1EndpointSlice", generation=True),
    Resource("leases", "Lease", "coordination.k8s.io", model="V1Lease", unconditional=False, upsert=True),
    Resource(
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler",
        "autoscaling",
        "v2",
        model="V2HorizontalPodAutoscaler",
        categories=ALL,
        short=("hpa",),
        subresources=STATUS,
    ),
    Resource(
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        "policy",
        model="V1PodDisruptionBudget",
        short=("pdb",),
        subresources=STATUS,
        generation=True,
        unconditional=False,
    ),
    _rbac("roles", "Role", True),
    _rbac("rolebindings", "RoleBinding", True),
    _rbac("clusterroles", "ClusterRole", False),
    _rbac("clusterrolebindings", "ClusterRoleBinding", False),
    _review("authorization.k8s.io", "SelfSubjectAccessReview"),
    _review("authorization.k8s.io", "SelfSubjectRulesReview"),
    _review("authentication.k8s.io", "SelfSubjectReview"),
    Resource(
        "priorityclasses",
        "PriorityClass",
        "scheduling.k8s.io",
        model="V1PriorityClass",
        namespaced=False,
        short=("pc",),
        generation=True,
    ),
    Resource(
        "customresourcedefinitions",
        "CustomResourceDefinition",
        "apiextensions.k8s.io",
        model="V1CustomResourceDefinition",
        namespaced=False,
        short=("crd", "crds"),
        subresources=STATUS,
        generation=True,
        unconditional=False,
    ),
    _custom(GATEWAY_API, "gatewayclasses", "GatewayClass", namespaced=False, short=("gc",)),
    _custom(GATEWAY_API, "gateways", "Gateway", short=("gtw",)),
    _custom(GATEWAY_API, "httproutes", "HTTPRoute"),
    _custom(GKE, "healthcheckpolicies", "HealthCheckPolicy"),
    _custom(GKE, "gcpbackendpolicies", "GCPBackendPolicy"),
    _custom("inference.networking.k8s.io", "inferencepools", "InferencePool", short=("infpool",)),
    _custom("monitoring.googleapis.com", "podmonitorings", "PodMonitoring"),
)

BY_PLURAL: dict[str, Resource] = {resource.plural: resource for resource in RESOURCES}
BY_PATH: dict[tuple[str, str, str], Resource] = {(r.group, r.version, r.plural): r for r in RESOURCES}


def group_versions(resources: tuple[Resource, ...]) -> tuple[tuple[str, str], ...]:
    """Return (group, version) of each API group that has resources, in their order."""
    return tuple(dict.fromkeys((r.group, r.version) for r in resources))
