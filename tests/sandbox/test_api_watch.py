"""What a watch brings, and how one that was cut goes on."""

from __future__ import annotations

import json

import pytest
from api_objects import NS

from sandbox.api import Api, LocalClient, Request
from sandbox.api.watch import Watch
from sandbox.clock import VirtualClock


def seen(watch: Watch) -> list[tuple[str, str]]:
    """Return what a watch has brought so far: the type, and the object's name."""
    events = [json.loads(line) for line in watch.pending]
    return [(event["type"], event["object"].get("metadata", {}).get("name", "")) for event in events]


def watch_from(api: Api, version: int | str) -> Watch:
    query = {"resourceVersion": str(version), "allowWatchBookmarks": "true"}
    return api.watch(Request("GET", "/api/v1/namespaces/inference/configmaps", query), lambda: None)


def test_a_watch_sees_objects_come_into_and_out_of_its_selection(api: Api, client: LocalClient) -> None:
    query = {"labelSelector": "tier=gpu", "resourceVersion": str(api.store.version)}
    watch = api.watch(Request("GET", f"/api/v1/namespaces/{NS}/configmaps", query), lambda: None)
    client.create("configmaps", {"metadata": {"name": "a", "namespace": NS}})
    for tier in ("gpu", "tpu"):
        client.patch("configmaps", NS, "a", {"metadata": {"labels": {"tier": tier}}})
    assert [json.loads(line)["type"] for line in watch.pending] == ["ADDED", "DELETED"]


def test_a_streaming_list_ends_with_its_bookmark(api: Api, client: LocalClient) -> None:
    client.create("configmaps", {"metadata": {"name": "a", "namespace": NS}})
    query = {"sendInitialEvents": "true", "allowWatchBookmarks": "true", "resourceVersionMatch": "NotOlderThan"}
    watch = api.watch(Request("GET", f"/api/v1/namespaces/{NS}/configmaps", query), lambda: None)
    added, bookmark = (json.loads(line) for line in watch.pending)
    assert added["type"] == "ADDED"
    assert bookmark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_a_watch_that_was_cut_resumes_after_its_last_event_or_bookmark(api: Api, client: LocalClient) -> None:
    def make(name: str) -> None:
        client.create("configmaps", {"metadata": {"name": name, "namespace": "inference"}})

    first = watch_from(api, api.store.version)
    make("one")
    first.close()
    last = json.loads(first.pending[-1])["object"]["metadata"]["resourceVersion"]
    make("two")
    client.delete("configmaps", "inference", "one")
    resumed = watch_from(api, last)
    make("three")
    assert seen(resumed) == [("ADDED", "two"), ("DELETED", "one"), ("ADDED", "three")]
    # What other kinds do moves the version on; a bookmark tells, so that a quiet watch does not grow too old.
    client.create("secrets", {"metadata": {"name": "s", "namespace": "inference"}})
    resumed.bookmark()
    marked = json.loads(resumed.pending[-1])
    assert marked["type"] == "BOOKMARK"
    assert set(marked["object"]) == {"kind", "apiVersion", "metadata"}
    assert seen(watch_from(api, marked["object"]["metadata"]["resourceVersion"])) == []


def test_a_watch_from_before_the_history_is_expired_and_one_from_its_edge_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sandbox.api.store.HISTORY", 3)
    api = Api(VirtualClock())
    client = LocalClient(api)
    client.create("namespaces", {"metadata": {"name": "inference"}})
    before = api.store.version
    for name in ("a", "b", "c"):
        client.create("configmaps", {"metadata": {"name": name, "namespace": "inference"}})
    assert seen(watch_from(api, before)) == [("ADDED", "a"), ("ADDED", "b"), ("ADDED", "c")]
    expired = watch_from(api, before - 1)
    (event,) = [json.loads(line) for line in expired.pending]
    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
    assert event["object"]["message"] == f"too old resource version: {before - 1} ({before})"
    assert expired.expired
