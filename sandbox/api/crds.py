"""Describe the custom kinds: Gateway API, GKE's policies, InferencePool, PodMonitoring.

Only what their CustomResourceDefinitions do to an object on its way in is here: types, defaults and
ranges of the fields in use, as GKE's standard channel has them. What a filter or another project's kind
holds is kept as it comes. An installed definition takes the place of what is here.
"""

from __future__ import annotations

from functools import cache

from .schema import ANY, STRING, Schema, builtin

_BOOL = Schema("boolean")
_PREFIX_ALL = {"type": "PathPrefix", "value": "/"}


def _text(default: str) -> Schema:
    return Schema("string", default=default)


def _int(default: int | None = None, minimum: int | None = None, maximum: int | None = None) -> Schema:
    return Schema("integer", default=default, minimum=minimum, maximum=maximum)


def _object(required: tuple[str, ...] = (), default: object = None, **fields: Schema) -> Schema:
    return Schema("object", fields=fields, required=required, default=default)


def _list(item: Schema, *keys: str, default: object = None) -> Schema:
    return Schema("list", item=item, keys=keys, atomic=not keys, default=default)


_PORT = _int(minimum=1, maximum=65535)
_CONDITIONS = _list(
    _object(
        ("lastTransitionTime", "message", "reason", "status", "type"),
        lastTransitionTime=Schema("time"),
        message=STRING,
        observedGeneration=_int(minimum=0),
        reason=STRING,
        status=STRING,
        type=STRING,
    ),
    "type",
)
_NAMES = Schema("map", item=STRING)


def _reference(group: str, kind: str, **more: Schema) -> Schema:
    return _object(("name",), group=_text(group), kind=_text(kind), name=STRING, namespace=STRING, **more)


def _parent_reference() -> Schema:
    return _reference("gateway.networking.k8s.io", "Gateway", sectionName=STRING, port=_PORT)


def _named_match() -> Schema:
    return _list(_object(("name", "value"), name=STRING, type=_text("Exact"), value=STRING), "name")


def _http_route() -> dict[str, Schema]:
    path = _object(type=_text("PathPrefix"), value=_text("/"), default=_PREFIX_ALL)
    match = _object(path=path, headers=_named_match(), queryParams=_named_match(), method=STRING)
    backend = _reference("", "Service", port=_PORT, weight=_int(1, minimum=0, maximum=1_000_000), filters=_list(ANY))
    rule = _object(
        name=STRING,
        matches=_list(match, default=[{"path": _PREFIX_ALL}]),
        filters=_list(ANY),
        backendRefs=_list(backend),
        timeouts=_object(request=STRING, backendRequest=STRING),
    )
    parents = _list(
        _object(
            ("conditions", "controllerName", "parentRef"),
            conditions=_CONDITIONS,
            controllerName=STRING,
            parentRef=_parent_reference(),
        )
    )
    spec = _object(
        parentRefs=_list(_parent_reference()),
        hostnames=_list(STRING),
        rules=_list(rule, default=[{"matches": [{"path": _PREFIX_ALL}]}]),
    )
    return {"spec": spec, "status": _object(("parents",), parents=parents)}


def _pending(*types: str) -> list[dict[str, str]]:
    return [
        {
            "lastTransitionTime": "1970-01-01T00:00:00Z",
            "message": "Waiting for controller",
            "reason": "Pending",
            "status": "Unknown",
            "type": type_,
        }
        for type_ in types
    ]


def _gateway() -> dict[str, Schema]:
    waiting = _pending("Accepted", "Programmed")
    kinds = _list(_object(("kind",), group=_text("gateway.networking.k8s.io"), kind=STRING))
    allowed = _object(
        kinds=kinds,
        namespaces=_object(selector=ANY, default={"from": "Same"}, **{"from": _text("Same")}),
        default={"namespaces": {"from": "Same"}},
    )
    tls = _object(
        mode=_text("Terminate"),
        certificateRefs=_list(_reference("", "Secret")),
        options=_NAMES,
    )
    listener = _object(
        ("name", "port", "protocol"),
        name=STRING,
        hostname=STRING,
        port=_PORT,
        protocol=STRING,
        tls=tls,
        allowedRoutes=allowed,
    )
    address = _object(type=_text("IPAddress"), value=STRING)
    listener_status = _object(
        name=STRING,
        attachedRoutes=_int(),
        supportedKinds=kinds,
        conditions=_CONDITIONS,
    )
    spec = _object(
        ("gatewayClassName", "listeners"),
        gatewayClassName=STRING,
        listeners=_list(listener, "name"),
        addresses=_list(address),
        infrastructure=ANY,
        allowedListeners=ANY,
        tls=ANY,
    )
    conditions = Schema("list", item=_CONDITIONS.item, keys=("type",), default=waiting)
    status = _object(
        conditions=conditions,
        addresses=_list(address),
        listeners=_list(listener_status, "name"),
        attachedListenerSets=_int(),
        default={"conditions": waiting},
    )
    return {"spec": spec, "status": status}


def _gateway_class() -> dict[str, Schema]:
    waiting = _pending("Accepted")
    spec = _object(("controllerName",), controllerName=STRING, description=STRING, parametersRef=ANY)
    conditions = Schema("list", item=_CONDITIONS.item, keys=("type",), default=waiting)
    status = _object(conditions=conditions, supportedFeatures=ANY, default={"conditions": waiting})
    return {"spec": spec, "status": status}


def _policy_target() -> Schema:
    return _object(("group", "kind", "name"), group=STRING, kind=STRING, name=STRING, namespace=STRING)


def _health_check_policy() -> dict[str, Schema]:
    http = _object(
        port=_PORT,
        portName=STRING,
        portSpecification=STRING,
        host=STRING,
        requestPath=STRING,
        response=STRING,
        proxyHeader=STRING,
    )
    config = _object(
        type=STRING,
        httpHealthCheck=http,
        httpsHealthCheck=http,
        http2HealthCheck=http,
        grpcHealthCheck=ANY,
        tcpHealthCheck=ANY,
    )
    default = _object(
        checkIntervalSec=_int(minimum=1, maximum=300),
        timeoutSec=_int(minimum=1, maximum=300),
        healthyThreshold=_int(minimum=1, maximum=10),
        unhealthyThreshold=_int(minimum=1, maximum=10),
        logConfig=_object(enabled=_BOOL),
        config=config,
    )
    spec = Schema("object", fields={"default": default, "targetRef": _policy_target()}, required=("targetRef",))
    return {"spec": spec, "status": _object(conditions=_CONDITIONS)}


def _backend_policy() -> dict[str, Schema]:
    default = _object(
        timeoutSec=_int(minimum=1, maximum=2_147_483_647),
        connectionDraining=_object(drainingTimeoutSec=_int(minimum=0, maximum=3600)),
        sessionAffinity=ANY,
        logging=ANY,
        iap=ANY,
        securityPolicy=STRING,
        maxRatePerEndpoint=ANY,
        balancingMode=STRING,
    )
    spec = Schema("object", fields={"default": default, "targetRef": _policy_target()}, required=("targetRef",))
    return {"spec": spec, "status": _object(conditions=_CONDITIONS)}


def _inference_pool() -> dict[str, Schema]:
    spec = _object(
        ("selector", "targetPorts"),
        appProtocol=_text("http"),
        endpointPickerRef=_object(
            ("name",),
            failureMode=_text("FailClose"),
            group=_text(""),
            kind=_text("Service"),
            name=STRING,
            port=_object(("number",), number=_PORT),
        ),
        selector=_object(("matchLabels",), matchLabels=_NAMES),
        targetPorts=_list(_object(("number",), number=_PORT)),
    )
    parent_reference = _reference("gateway.networking.k8s.io", "Gateway")
    parent = _object(conditions=_CONDITIONS, controllerName=STRING, parentRef=parent_reference)
    return {"spec": spec, "status": _object(parents=_list(parent))}


def _pod_monitoring() -> dict[str, Schema]:
    return {"spec": ANY, "status": ANY}


_KINDS = {
    "HTTPRoute": (_http_route, ("spec",)),
    "Gateway": (_gateway, ("spec",)),
    "GatewayClass": (_gateway_class, ("spec",)),
    "HealthCheckPolicy": (_health_check_policy, ()),
    "GCPBackendPolicy": (_backend_policy, ()),
    "InferencePool": (_inference_pool, ("spec",)),
    "PodMonitoring": (_pod_monitoring, ("spec",)),
}


@cache
def custom(kind: str) -> Schema:
    """Return the type of a custom kind."""
    describe, required = _KINDS[kind]
    fields = {
        "apiVersion": STRING,
        "kind": STRING,
        "metadata": builtin("V1ObjectMeta"),
        **describe(),
    }
    return Schema("object", go=kind, fields=fields, required=required)
