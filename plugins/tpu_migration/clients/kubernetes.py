"""Talk to the Kubernetes API: every call of the product, in one place.

Calls are raw JSON. The official client's typed API hides too much: a typed
pod-proxy POST sends no body, CustomObjectsApi's apply that creates returns None, a JSON patch
needs its content type given, and a Lease without microseconds is refused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from tpu_migration.clients.transport import Response, Transport, client_transport
from tpu_migration.errors import ConflictError, NotServedError, PermanentError, TransientError

FIELD_MANAGER = "tpu-migration"
CALL_TIMEOUT_S = 10.0
WATCH_CALL_TIMEOUT_S = 2.0  # while users are moving, a slow answer is no answer

_LEAST_PAUSE_S = 0.5

Object = dict[str, Any]


@lru_cache(maxsize=4096)
def _quoted(part: str, safe: str = "") -> str:
    """Return a part of a path in which nothing ends it; a run names the same few all the time."""
    return quote(part, safe=safe)


@dataclass(frozen=True)
class Resource:
    """One kind of object and where the API serves it."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Return the URL's path; every part is quoted, so that no name can reach another object."""
        root = "/api/" if "/" not in self.api_version else "/apis/"
        parts = [self.api_version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", _quoted(namespace)]
        elif self.namespaced and name:
            raise PermanentError(f"{self.kind} {name} is namespaced, and no namespace was given")
        parts.append(self.plural)
        if name:
            parts.append(_quoted(name, ":"))  # pods/NAME:PORT/proxy
        return root + "/".join(parts) + (f"/{subresource}" if subresource else "")


CONFIG_MAPS = Resource("v1", "ConfigMap", "configmaps")
SECRETS = Resource("v1", "Secret", "secrets")
SERVICES = Resource("v1", "Service", "services")
SERVICE_ACCOUNTS = Resource("v1", "ServiceAccount", "serviceaccounts")
PODS = Resource("v1", "Pod", "pods")
EVENTS = Resource("v1", "Event", "events")
PVCS = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
NODES = Resource("v1", "Node", "nodes", namespaced=False)
NAMESPACES = Resource("v1", "Namespace", "namespaces", namespaced=False)
DEPLOYMENTS = Resource("apps/v1", "Deployment", "deployments")
JOBS = Resource("batch/v1", "Job", "jobs")
LEASES = Resource("coordination.k8s.io/v1", "Lease", "leases")
ENDPOINT_SLICES = Resource("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
HPAS = Resource("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
VPAS = Resource("autoscaling.k8s.io/v1", "VerticalPodAutoscaler", "verticalpodautoscalers")
PDBS = Resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
GATEWAYS = Resource("gateway.networking.k8s.io/v1", "Gateway", "gateways")
HTTP_ROUTES = Resource("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes")
HEALTH_CHECK_POLICIES = Resource("networking.gke.io/v1", "HealthCheckPolicy", "healthcheckpolicies")
BACKEND_POLICIES = Resource("networking.gke.io/v1", "GCPBackendPolicy", "gcpbackendpolicies")
POD_MONITORINGS = Resource("monitoring.googleapis.com/v1", "PodMonitoring", "podmonitorings")
ACCESS_REVIEWS = Resource(
    "authorization.k8s.io/v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", namespaced=False
)
RULES_REVIEWS = Resource(
    "authorization.k8s.io/v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", namespaced=False
)

_BY_KIND = {
    (r.api_version, r.kind): r
    for r in (
        CONFIG_MAPS, SECRETS, SERVICES, SERVICE_ACCOUNTS, PODS, EVENTS, NODES, DEPLOYMENTS, JOBS, LEASES,
        ENDPOINT_SLICES, HPAS, PDBS, GATEWAYS, HTTP_ROUTES, HEALTH_CHECK_POLICIES, BACKEND_POLICIES, POD_MONITORINGS,
    )
}  # fmt: skip


def resource_of(obj: Mapping[str, Any]) -> Resource:
    """Return the resource of an object; raise PermanentError for a kind this product never writes."""
    key = (str(obj.get("apiVersion")), str(obj.get("kind")))
    if key not in _BY_KIND:
        raise PermanentError(f"{key[1]} of {key[0]} is no kind that this product handles")
    return _BY_KIND[key]


class Kubernetes:
    """Read and write objects; only NotFound means absent.

    Nothing here retries by itself but what the server says it has not looked at: a 429 with Retry-After,
    as long as the call with its waits stays within its timeout.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        before_mutation: Callable[[], None] = lambda: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._before_mutation = before_mutation
        self._sleep = sleep

    def fenced(self, before_mutation: Callable[[], None]) -> Kubernetes:
        """Return a client that calls `before_mutation` before each write; it raises to forbid one."""
        return Kubernetes(
            self._transport, timeout_s=self._timeout_s, before_mutation=before_mutation, sleep=self._sleep
        )

    def watching(self) -> Kubernetes:
        """Return a client with the short timeout that is right while users are moving."""
        return Kubernetes(
            self._transport,
            timeout_s=WATCH_CALL_TIMEOUT_S,
            before_mutation=self._before_mutation,
            sleep=self._sleep,
        )

    def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object | None:
        """Return the object, or None if the server says that it does not exist."""
        response = self._call("GET", resource.path(namespace, name))
        if response.status == 404 and _is_object_not_found(response):
            return None
        return self._checked(response, f"read {resource.kind} {name}")

    def list(
        self, resource: Resource, namespace: str | None = None, labels: str = "", fields: str = ""
    ) -> list[Object]:
        """Return the objects that match a label and a field selector; of all namespaces without one."""
        query = {key: value for key, value in (("labelSelector", labels), ("fieldSelector", fields)) if value}
        answer = self._checked(self._call("GET", resource.path(namespace), query=query), f"list {resource.plural}")
        items: list[Object] = answer["items"]
        for item in items:  # a list leaves these out of its items
            item.setdefault("apiVersion", resource.api_version)
            item.setdefault("kind", resource.kind)
        return items

    def create(self, obj: Object) -> Object:
        """Create the object; ConflictError if the name is taken."""
        resource, meta = resource_of(obj), obj["metadata"]
        return self._write("POST", resource.path(meta.get("namespace")), obj, f"create {_title(obj)}")

    def replace(self, obj: Object) -> Object:
        """Write the object if nobody wrote it since it was read (metadata.resourceVersion is required).

        Raises ConflictError if somebody wrote or deleted it.
        """
        meta = obj["metadata"]
        if not meta.get("resourceVersion"):
            raise PermanentError(f"{_title(obj)} has no resourceVersion: a write would not be a compare-and-swap")
        path = resource_of(obj).path(meta.get("namespace"), meta["name"])
        self._before_mutation()
        response = self._call("PUT", path, query={"fieldManager": FIELD_MANAGER}, body=obj)
        if response.status == 404 and _is_object_not_found(response):
            raise ConflictError(f"{_title(obj)} was deleted since it was read")
        return self._checked(response, f"replace {_title(obj)}")

    def apply(self, obj: Object, *, force: bool = False) -> Object:
        """Apply the object server-side; ConflictError names the field and who owns it."""
        meta = obj["metadata"]
        path = resource_of(obj).path(meta.get("namespace"), meta["name"])
        query = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"}
        return self._write("PATCH", path, obj, f"apply {_title(obj)}", "application/apply-patch+yaml", query=query)

    def patch(
        self, resource: Resource, name: str, namespace: str | None, body: Object, subresource: str = ""
    ) -> Object:
        """Merge-patch the object; a resourceVersion in the body makes it a compare-and-swap."""
        path = resource.path(namespace, name, subresource)
        return self._write("PATCH", path, body, f"patch {resource.kind} {name}", "application/merge-patch+json")

    def scale(self, deployment: str, namespace: str, replicas: int) -> None:
        """Set a Deployment's replicas through its scale subresource."""
        self.patch(DEPLOYMENTS, deployment, namespace, {"spec": {"replicas": replicas}}, "scale")

    def delete(self, resource: Resource, name: str, namespace: str | None = None) -> bool:
        """Delete the object and, in the background, what it owns; False if it was not there."""
        self._before_mutation()
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        response = self._call("DELETE", resource.path(namespace, name), body=body)
        if response.status == 404 and _is_object_not_found(response):
            return False
        self._checked(response, f"delete {resource.kind} {name}")
        return True

    def pod_proxy(
        self, namespace: str, pod: str, port: int, path: str, method: str = "GET", body: Any = None
    ) -> Response:
        """Call a pod's HTTP port through the API server; the answer is the pod's own, whatever its status."""
        url = PODS.path(namespace, f"{pod}:{port}", f"proxy/{path.lstrip('/')}")
        return self._call(method, url, body=body)

    def pod_log(
        self, namespace: str, pod: str, container: str = "", tail_lines: int | None = None, *, previous: bool = False
    ) -> str:
        """Return the log of a pod's container, or of its only one; empty while it has none.

        `previous` is the log of the process before the last restart.
        """
        query = {"container": container} if container else {}
        if previous:
            query["previous"] = "true"
        if tail_lines is not None:
            query["tailLines"] = str(tail_lines)
        response = self._call("GET", PODS.path(namespace, pod, "log"), query=query)
        if response.status in (400, 404):  # the container waits to start, or the pod is gone
            return ""
        if response.status >= 300:
            raise _error(response, f"read the log of pod {pod}")
        return response.body.decode("utf-8", errors="replace")

    def may(self, verb: str, group: str, resource: str, namespace: str | None) -> bool:
        """Tell whether this client has a right, by asking the server (SelfSubjectAccessReview).

        `resource` is plural, with its subresource ("pods/proxy"); without a namespace the right is one on all of them.
        """
        plural, _, subresource = resource.partition("/")
        asked = {"namespace": namespace, "verb": verb, "group": group, "resource": plural, "subresource": subresource}
        attributes = {key: value for key, value in asked.items() if value}
        return bool(self._review(ACCESS_REVIEWS, {"resourceAttributes": attributes}).get("allowed"))

    def rules(self, namespace: str) -> Sequence[Object]:
        """Return the rules that hold for this client in a namespace, as far as the server can list them.

        What is listed is granted; what is not may be all the same (SelfSubjectRulesReview).
        """
        rules: Sequence[Object] = self._review(RULES_REVIEWS, {"namespace": namespace}).get("resourceRules") or ()
        return rules

    def _review(self, resource: Resource, spec: Object) -> Object:
        review = {"apiVersion": resource.api_version, "kind": resource.kind, "spec": spec}
        answer = self._checked(self._call("POST", resource.path(None), body=review), "ask for rights")
        status: Object = answer.get("status") or {}
        return status

    def _write(
        self,
        method: str,
        path: str,
        body: Object,
        what: str,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Object:
        self._before_mutation()
        query = {"fieldManager": FIELD_MANAGER, **(query or {})}
        return self._checked(self._call(method, path, query=query, content_type=content_type, body=body), what)

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        body: Any = None,
    ) -> Response:
        left_s = self._timeout_s
        while True:
            sent = time.monotonic()
            response = self._transport(
                method,
                path,
                query=query or {},
                content_type=content_type,
                body=body,
                timeout_s=left_s,
            )
            left_s -= time.monotonic() - sent
            if response.status != 429 or response.retry_after_s is None:
                return response
            pause_s = max(response.retry_after_s, _LEAST_PAUSE_S)
            if pause_s + _LEAST_PAUSE_S > left_s:  # no time would be left for the call itself
                return response
            self._sleep(pause_s)
            left_s -= pause_s

    def _checked(self, response: Response, what: str) -> Object:
        if response.status >= 300:
            raise _error(response, what)
        answer: Object = response.json()
        return answer


def _title(obj: Mapping[str, Any]) -> str:
    return f"{obj.get('kind')} {obj['metadata'].get('namespace', '')}/{obj['metadata'].get('name')}"


def _is_object_not_found(response: Response) -> bool:
    """Tell an absent object from an absent API (whose 404 is plain text: the CRD is not installed)."""
    try:
        return bool(response.json().get("reason") == "NotFound")
    except (TransientError, AttributeError):
        return False


def _error(response: Response, what: str) -> Exception:
    try:
        message = response.json().get("message", "")
    except (TransientError, AttributeError):
        message = response.body.decode("utf-8", errors="replace")[:300].strip()
    text = f"cannot {what}: {response.status} {message}"
    if response.status == 409:
        return ConflictError(text)
    if response.status == 429 or response.status >= 500:
        return TransientError(text)
    if response.status == 401:
        return PermanentError(
            f"{text}: the cluster refuses the token: check the connection's service account, or at a "
            "terminal log in anew (`gcloud auth login`; kubectl must work, too)"
        )
    if response.status == 403:
        return PermanentError(f"{text}: grant the right (include/manifests/rbac.yaml lists what is needed)")
    if response.status == 404:
        return NotServedError(f"{text}: the namespace or the API is missing; is its CRD installed?")
    return PermanentError(text)


def from_environment() -> Kubernetes:
    """Return a client for a person's kubeconfig (KUBECONFIG) or, in a pod, for its service account."""
    from kubernetes import client, config
    from kubernetes.config.config_exception import ConfigException

    configuration = client.Configuration()
    try:
        config.load_config(client_configuration=configuration)
    except ConfigException as error:
        raise PermanentError(f"no cluster to talk to: {error}; set KUBECONFIG, or run inside a pod") from error
    configuration.retries = False
    return Kubernetes(client_transport(client.ApiClient(configuration)))
