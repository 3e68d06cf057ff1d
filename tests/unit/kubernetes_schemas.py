"""Validate objects offline: core kinds against Kubernetes' own OpenAPI, GKE's kinds against what their docs list."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

KUBERNETES = "1.36"
CRDS = Path(__file__).resolve().parents[2].parent / "shared" / "crds"


def _object(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": required or []}


def _whole(low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


_TEXT, _BOOL = {"type": "string"}, {"type": "boolean"}
_REF = _object(["group", "kind", "name"], group=_TEXT, kind=_TEXT, name=_TEXT, namespace=_TEXT)
_PORT = {
    "port": _whole(1, 65535),
    "portName": _TEXT,
    "portSpecification": {"enum": ["USE_FIXED_PORT", "USE_NAMED_PORT", "USE_SERVING_PORT"]},
}
_HTTP = _object(
    host=_TEXT,
    requestPath={"type": "string", "pattern": "^/"},
    proxyHeader={"enum": ["NONE", "PROXY_V1"]},
    response=_TEXT,
    **_PORT,
)
# https://googlecloudplatform.github.io/gke-gateway-api: fields of networking.gke.io/v1.
_HEALTH_CHECK_POLICY = _object(
    ["targetRef"],
    targetRef=_REF,
    default=_object(
        checkIntervalSec=_whole(1, 300),
        timeoutSec=_whole(1, 300),
        healthyThreshold=_whole(1, 10),
        unhealthyThreshold=_whole(1, 10),
        logConfig=_object(enabled=_BOOL),
        config=_object(
            ["type"],
            type={"enum": ["TCP", "HTTP", "HTTPS", "HTTP2", "GRPC"]},
            httpHealthCheck=_HTTP,
            httpsHealthCheck=_HTTP,
            http2HealthCheck=_HTTP,
            tcpHealthCheck={"type": "object"},
            grpcHealthCheck={"type": "object"},
        ),
    ),
)
_BACKEND_POLICY = _object(
    ["targetRef"],
    targetRef=_REF,
    default=_object(
        timeoutSec=_whole(1, 2147483647),
        securityPolicy=_TEXT,
        maxRatePerEndpoint=_whole(1, 1000000),
        connectionDraining=_object(drainingTimeoutSec=_whole(0, 3600)),
        sessionAffinity=_object(type=_TEXT, cookieTtlSec=_whole(0, 1209600)),
        logging=_object(enabled=_BOOL, sampleRate=_whole(0, 1000000)),
        iap=_object(enabled=_BOOL, clientID=_TEXT, oauth2ClientSecret=_object(name=_TEXT)),
    ),
)
# https://github.com/GoogleCloudPlatform/prometheus-engine, doc/api.md: PodMonitoringSpec, ScrapeEndpoint.
_POD_MONITORING = _object(
    ["selector", "endpoints"],
    selector=_object(matchLabels={"type": "object"}, matchExpressions={"type": "array"}),
    endpoints={
        "type": "array",
        "minItems": 1,
        "items": {"type": "object", "required": ["port", "interval"], "properties": {"interval": _TEXT, "path": _TEXT}},
    },
    targetLabels={"type": "object"},
    limits={"type": "object"},
    filterRunning=_BOOL,
)
_PUBLISHED = {"HTTPRoute": "httproutes", "Gateway": "gateways"}
_OWN = {
    ("networking.gke.io/v1", "HealthCheckPolicy"): _HEALTH_CHECK_POLICY,
    ("networking.gke.io/v1", "GCPBackendPolicy"): _BACKEND_POLICY,
    ("monitoring.googleapis.com/v1", "PodMonitoring"): _POD_MONITORING,
}


def problems(document: dict[str, Any]) -> list[str]:
    """List what a strict API server would object to; kinds without a schema here are not judged."""
    where = f"{document['kind']} {document['metadata'].get('name')}"
    schema = _OWN.get((document["apiVersion"], document["kind"]))
    if schema is not None:
        whole = _object(["spec"], apiVersion=_TEXT, kind=_TEXT, metadata={"type": "object"}, spec=schema)
        found = jsonschema.Draft202012Validator(whole).iter_errors(document)
        return [f"{where}: {'.'.join(map(str, error.path))}: {error.message}" for error in found]
    if document["kind"] in _PUBLISHED and CRDS.is_dir():
        crd = _published_schema(document["kind"], document["apiVersion"].split("/")[1])
        return [f"{where}: {error.message}" for error in jsonschema.Draft202012Validator(crd).iter_errors(document)]
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return []
    except kubernetes_validate.ValidationError as error:
        return [f"{where}: {'.'.join(map(str, error.path))}: {error.message}"]
    return []


@cache
def _published_schema(kind: str, version: str) -> dict[str, Any]:
    crd = yaml.safe_load((CRDS / f"gateway.networking.k8s.io_{_PUBLISHED[kind]}.yaml").read_text())
    versions: Iterator[dict[str, Any]] = (item for item in crd["spec"]["versions"] if item["name"] == version)
    schema: dict[str, Any] = next(versions)["schema"]["openAPIV3Schema"]
    return schema
