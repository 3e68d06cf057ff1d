"""A dry run answers as the write would, and changes nothing: no object, no version, no budget."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandbox.api import Api, LocalClient, Request
from sandbox.api.patch import APPLY, JSON_PATCH, MERGE, STRATEGIC
from sandbox.clock import VirtualClock

APPS = "/apis/apps/v1/namespaces/inference/deployments"
CORE = "/api/v1/namespaces/inference"
LABELS = {"app": "web"}
POD_SPEC = {"containers": [{"name": "main", "image": "web:1"}]}
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web"},
    "spec": {
        "selector": {"matchLabels": LABELS},
        "template": {"metadata": {"labels": LABELS}, "spec": POD_SPEC},
    },
}
OTHER = {**DEPLOYMENT, "metadata": {"name": "other"}}
LARGER = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "replicas": 4}}
SIZE = [{"op": "replace", "path": "/spec/replicas", "value": 4}]
EVICTION = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}}


@pytest.fixture
def api() -> Api:
    """A namespace with a deployment, and a running pod that a budget lets go."""
    api = Api(VirtualClock())
    client = LocalClient(api)
    client.create("namespaces", {"metadata": {"name": "inference"}})
    client.create("deployments", {**DEPLOYMENT, "metadata": {"name": "web", "namespace": "inference"}})
    meta = {"name": "p", "namespace": "inference"}
    client.create("pods", {"metadata": {**meta, "labels": LABELS}, "spec": {**POD_SPEC, "nodeName": "n"}})
    client.patch("pods", "inference", "p", {"status": {"phase": "Running"}}, subresource="status")
    budget = {"metadata": meta, "spec": {"minAvailable": 0, "selector": {"matchLabels": LABELS}}}
    client.create("poddisruptionbudgets", budget)
    allowed = {"status": {"disruptionsAllowed": 1}}
    client.patch("poddisruptionbudgets", "inference", "p", allowed, subresource="status")
    return api


def everything(api: Api) -> tuple[int, dict[str, list[bytes]]]:
    stored = {
        resource.plural: [entry.json for entry in api.store.list(resource.plural)]
        for resource in api.registry.resources
    }
    return api.store.version, stored


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "status"),
    [
        ("POST", APPS, OTHER, "application/json", 201),
        ("PUT", f"{APPS}/web", LARGER, "application/json", 200),
        ("PATCH", f"{APPS}/web", {"spec": {"replicas": 4}}, MERGE, 200),
        ("PATCH", f"{APPS}/web", {"spec": {"replicas": 4}}, STRATEGIC, 200),
        ("PATCH", f"{APPS}/web", SIZE, JSON_PATCH, 200),
        ("PATCH", f"{APPS}/web", LARGER, APPLY, 200),
        ("PATCH", f"{APPS}/other", OTHER, APPLY, 201),
        ("PATCH", f"{APPS}/web/status", {"status": {"replicas": 4}}, MERGE, 200),
        ("PATCH", f"{APPS}/web/scale", {"spec": {"replicas": 4}}, MERGE, 200),
        ("DELETE", f"{APPS}/web", None, "application/json", 200),
        ("DELETE", APPS, None, "application/json", 200),
        ("DELETE", f"{CORE}/pods/p", None, "application/json", 200),
        ("POST", f"{CORE}/pods/p/eviction", EVICTION, "application/json", 201),
        ("DELETE", "/api/v1/namespaces/inference", None, "application/json", 200),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" not in value[1:2] else None,
)
def test_a_dry_run_of_any_write_changes_nothing(
    api: Api, method: str, path: str, body: Any, kind: str, status: int
) -> None:
    before = everything(api)
    query = {"dryRun": "All", "fieldManager": "tests", "force": "true"}
    text = b"" if body is None else json.dumps(body).encode()
    answer = api.handle(Request(method, path, query, {"content-type": kind}, text))
    assert answer.status == status, answer.body
    assert everything(api) == before
    if method != "DELETE" and "replicas" in json.dumps(body):
        assert 4 in (answer.json()["spec"].get("replicas"), answer.json().get("status", {}).get("replicas"))


def test_a_deletion_may_ask_for_a_dry_run_in_its_body(api: Api) -> None:
    before = everything(api)
    body = b'{"kind":"DeleteOptions","apiVersion":"v1","dryRun":["All"]}'
    assert api.handle(Request("DELETE", f"{APPS}/web", body=body)).status == 200
    assert everything(api) == before


def test_a_dry_run_is_refused_as_the_write_would_be(api: Api) -> None:
    wrong = {**OTHER, "metadata": {"name": "Bad_Name"}}
    for body, status in ((wrong, 422), (DEPLOYMENT, 409)):
        request = Request("POST", APPS, {"dryRun": "All"}, body=json.dumps(body).encode())
        assert api.handle(request).status == status
