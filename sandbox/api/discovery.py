"""Answer what is not an object: discovery, version, health, the API's own description."""

from __future__ import annotations

from typing import Any

from . import openapi
from .messages import JSON, Object, Request, Response, dumps
from .resources import Resource, group_versions

VERSION: Object = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.0-sandbox",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "linux/amd64",
}
_HEALTH = frozenset({"/healthz", "/livez", "/readyz"})
_WITHOUT_OBJECT = ("get", "patch", "update")
_SUBRESOURCE_VERBS = {
    "log": ("get",),
    "proxy": ("create", "delete", "get", "patch", "update"),
    "eviction": ("create",),
    "binding": ("create",),
    "token": ("create",),
}
_SUBRESOURCE_KINDS = {
    "eviction": ("policy", "v1", "Eviction"),
    "scale": ("autoscaling", "v1", "Scale"),
    "token": ("authentication.k8s.io", "v1", "TokenRequest"),
}


def _ok(value: Any) -> Response:
    return Response(200, dict(JSON), dumps(value))


def _listed(resource: Resource) -> list[Object]:
    entry: Object = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(resource.verbs),
    }
    if resource.short:
        entry["shortNames"] = list(resource.short)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    listed = [entry]
    for name in resource.subresources:
        sub: Object = {
            "name": f"{resource.plural}/{name}",
            "singularName": "",
            "namespaced": resource.namespaced,
            "kind": "Binding" if name == "binding" else resource.kind,
            "verbs": list(_SUBRESOURCE_VERBS.get(name, _WITHOUT_OBJECT)),
        }
        if name in _SUBRESOURCE_KINDS:
            group, version, kind = _SUBRESOURCE_KINDS[name]
            sub |= {"group": group, "version": version, "kind": kind}
        listed.append(sub)
    return listed


Resources = tuple[Resource, ...]


def _resource_list(resources: Resources, group: str, version: str) -> Object:
    listed = [e for r in resources if (r.group, r.version) == (group, version) for e in _listed(r)]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": listed,
    }


def _group(resources: Resources, name: str) -> Object:
    versions = [
        {"groupVersion": f"{group}/{version}", "version": version}
        for group, version in group_versions(resources)
        if group == name
    ]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def _groups(resources: Resources) -> Object:
    names = dict.fromkeys(resource.group for resource in resources if resource.group)
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(resources, name) for name in names]}


_NOT_FOUND = Response(404, {"content-type": "text/plain"}, b"404 page not found\n")


def answer(request: Request, resources: Resources) -> Response:
    """Answer a path that is no resource's, by what is served now."""
    path = request.path.rstrip("/") or "/"
    if path in _HEALTH:
        return Response(200, {"content-type": "text/plain"}, b"ok")
    if path == "/version":
        return _ok(VERSION)
    if path == "/api":
        return _ok({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
    if path == "/apis":
        return _ok(_groups(resources))
    if path.startswith("/openapi/"):
        document = openapi.document(path, resources)
        return _NOT_FOUND if document is None else _ok(document)
    parts = path.strip("/").split("/")
    if parts == ["api", "v1"]:
        return _ok(_resource_list(resources, "", "v1"))
    if len(parts) == 3 and parts[0] == "apis" and (parts[1], parts[2]) in group_versions(resources):
        return _ok(_resource_list(resources, parts[1], parts[2]))
    if len(parts) == 2 and parts[0] == "apis" and any(r.group == parts[1] for r in resources):
        return _ok({"kind": "APIGroup", "apiVersion": "v1", **_group(resources, parts[1])})
    return Response(404, dict(_NOT_FOUND.headers), _NOT_FOUND.body)
