"""How objects go: preconditions, grace, finalizers, dependents, eviction."""

from __future__ import annotations

import pytest
from api_objects import NS, bound_pod, call, deployment

from sandbox.api import Api, ApiError, LocalClient
from sandbox.clock import VirtualClock
from sandbox.controllers import Manager


def test_a_bound_pod_waits_for_its_node_agent(client: LocalClient, clock: VirtualClock) -> None:
    bound_pod(client)
    assert client.delete("pods", NS, "p") is False
    marked = client.get("pods", NS, "p")
    assert marked is not None
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 30
    assert marked["metadata"]["deletionTimestamp"] == "2026-11-22T00:00:30Z"
    clock.advance(10)
    client.delete("pods", NS, "p", grace_period_s=60)  # a longer wait is not granted
    assert client.get("pods", NS, "p") == marked
    assert client.delete("pods", NS, "p", grace_period_s=0) is True
    assert client.get("pods", NS, "p") is None


def test_an_unbound_pod_goes_at_once(client: LocalClient) -> None:
    spec = {"containers": [{"name": "main", "image": "web:1"}]}
    client.create("pods", {"metadata": {"name": "p", "namespace": NS}, "spec": spec})
    assert client.delete("pods", NS, "p") is True


def test_a_finalizer_holds_an_object_until_it_is_taken_off(client: LocalClient) -> None:
    meta = {"name": "a", "namespace": NS, "finalizers": ["example.com/hold"]}
    client.create("configmaps", {"metadata": meta})
    assert client.delete("configmaps", NS, "a") is False
    client.patch("configmaps", NS, "a", {"metadata": {"finalizers": None}})
    assert client.get("configmaps", NS, "a") is None


def test_a_deletion_with_a_stale_resource_version_is_a_conflict(client: LocalClient) -> None:
    made = client.create("configmaps", {"metadata": {"name": "a", "namespace": NS}})
    client.patch("configmaps", NS, "a", {"data": {"k": "v"}})
    stale = {"resourceVersion": made["metadata"]["resourceVersion"]}
    with pytest.raises(ApiError) as refused:
        client.delete("configmaps", NS, "a", preconditions=stale)
    assert refused.value.code == 409


def test_a_deletion_of_another_object_with_the_same_name_is_a_conflict(api: Api, client: LocalClient) -> None:
    made = client.create("configmaps", {"metadata": {"name": "a", "namespace": NS}})
    path = f"/api/v1/namespaces/{NS}/configmaps/a"
    for wrong in ({"uid": "another"}, {"resourceVersion": "1"}):
        assert call(api, "DELETE", path, {"preconditions": wrong}).status == 409
    right = {"uid": made["metadata"]["uid"], "resourceVersion": made["metadata"]["resourceVersion"]}
    assert call(api, "DELETE", path, {"preconditions": right}).status == 200


@pytest.mark.parametrize(("policy", "left"), [("Background", 0), ("Foreground", 0), ("Orphan", 1)])
def test_a_deletions_policy_says_what_happens_to_dependents(
    api: Api, client: LocalClient, clock: VirtualClock, policy: str, left: int
) -> None:
    manager = Manager(api, clock)
    client.create("deployments", deployment())
    manager.settle()
    (owned,) = client.list("replicasets", NS)
    options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy}
    answer = call(api, "DELETE", f"/apis/apps/v1/namespaces/{NS}/deployments/web", options)
    assert answer.status == 200
    if policy == "Foreground":
        # It stays, marked, until its dependents are gone.
        assert answer.json()["metadata"]["finalizers"] == ["foregroundDeletion"]
    manager.settle()
    assert client.list("deployments", NS) == []
    remaining = client.list("replicasets", NS)
    assert [each["metadata"]["uid"] for each in remaining] == [owned["metadata"]["uid"]] * left
    assert all("ownerReferences" not in each["metadata"] for each in remaining)


def test_an_eviction_respects_the_disruption_budget(api: Api, client: LocalClient) -> None:
    pod = bound_pod(client)
    client.patch("pods", NS, "p", {"metadata": {"labels": {"app": "web"}}})
    client.patch("pods", NS, "p", {"status": {"phase": "Running"}}, subresource="status")
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}
    client.create("poddisruptionbudgets", {"metadata": {"name": "b", "namespace": NS}, "spec": spec})
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}}
    path = f"/api/v1/namespaces/{NS}/pods/p/eviction"
    response = call(api, "POST", path, eviction)
    assert (response.status, response.json()["reason"]) == (429, "TooManyRequests")
    client.patch("poddisruptionbudgets", NS, "b", {"status": {"disruptionsAllowed": 1}}, subresource="status")
    assert call(api, "POST", path, eviction).status == 201
    evicted = client.get("pods", NS, "p")
    assert evicted is not None
    assert "deletionTimestamp" in evicted["metadata"]
    assert evicted["metadata"]["uid"] == pod["metadata"]["uid"]
