"""Hold the embedded API server to what a real kube-apiserver 1.36 answered: every recorded scene, none left out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from recorded_cluster import (
    CAUGHT,
    RECORDINGS,
    TOKENS,
    Exchange,
    RecordedCluster,
    all_exchanges,
    blanked,
    comparable,
    settled,
)

from sandbox.api.times import seconds

pytestmark = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings of ../shared are not on this machine")
one_loop = pytest.mark.asyncio(loop_scope="module")
EXCHANGES = all_exchanges() if RECORDINGS.is_dir() else []
ROUTES = "/apis/gateway.networking.k8s.io/v1/namespaces/inference/httproutes"
SCALE = "/apis/apps/v1/namespaces/inference/deployments/vllm-tpu/scale"
MERGE = {"Content-Type": "application/merge-patch+json"}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["kinds built in", "definitions installed"])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[RecordedCluster]:
    """The one cluster that the scenes were recorded on, in their order; custom kinds as here, and as there."""
    cluster = RecordedCluster()
    await cluster.start(definitions=request.param == "definitions installed")
    yield cluster
    await cluster.close()


def test_every_recording_is_replayed() -> None:
    files = {file.stem for file in RECORDINGS.iterdir()}
    assert {exchange.file for exchange in EXCHANGES} == files
    assert len(EXCHANGES) == sum(file.read_text().count("\n## ") for file in RECORDINGS.iterdir())
    assert {*CAUGHT, *TOKENS} <= {str(exchange) for exchange in EXCHANGES}


@one_loop
@pytest.mark.parametrize("exchange", EXCHANGES, ids=str)
async def test_answers_as_the_real_server_did(cluster: RecordedCluster, exchange: Exchange) -> None:
    await catch_up(cluster, EXCHANGES.index(exchange))
    cluster.replayed += 1
    await check(cluster, exchange)


async def catch_up(cluster: RecordedCluster, number: int) -> None:
    """Replay what goes before an exchange, where another process has run those tests."""
    while cluster.replayed < number:
        cluster.replayed += 1
        await check(cluster, EXCHANGES[cluster.replayed - 1])


async def check(cluster: RecordedCluster, exchange: Exchange) -> None:
    # The controllers get their turn between two requests, as they did.
    cluster.turn(CAUGHT.get(str(exchange), settled))
    if "watch=1" in exchange.path:
        await compare_watch(cluster, exchange)
        return
    if exchange.title == "pods by label":
        # Not in the recordings, but its generation tells: the Deployment was scaled from 0 to 1 before this scene.
        assert (await cluster.send("PATCH", SCALE, '{"spec":{"replicas":1}}', MERGE))[0] == 200
        cluster.turn()
    status, _, body = await cluster.replay(exchange)
    assert status == exchange.status, body
    if not exchange.answer.startswith("{"):
        assert body.strip() == exchange.answer
        return
    compare(cluster, json.loads(body), json.loads(exchange.answer))


def compare(cluster: RecordedCluster, ours: Any, recorded: Any) -> None:
    ours, recorded = comparable(ours), comparable(recorded)
    assert blanked(ours) == blanked(recorded)
    cluster.twins.pair(recorded, ours)


async def compare_watch(cluster: RecordedCluster, exchange: Exchange) -> None:
    """Compare a watch; what it sees is done before it resumes from the version before, for it is to end at once."""
    recorded = [json.loads(line) for line in exchange.answer.splitlines()]
    path = exchange.path.replace("resourceVersion=478", f"resourceVersion={cluster.api.store.version}")
    if recorded:
        await change_a_route(cluster, recorded[0]["object"]["metadata"]["creationTimestamp"])
    # Its timeout is all that ends a watch; nothing hangs on how long it is.
    path = path.replace("timeoutSeconds=5", "timeoutSeconds=1").replace("timeoutSeconds=3", "timeoutSeconds=1")
    status, headers, body = await cluster.send(exchange.method, path)
    assert status == exchange.status
    assert headers == exchange.answer_headers.strip() or not recorded
    ours = [json.loads(line) for line in body.splitlines()]
    assert [event["type"] for event in ours] == [event["type"] for event in recorded]
    for mine, theirs in zip(ours, recorded, strict=True):
        compare(cluster, mine["object"], theirs["object"])
    # Nobody else wrote meanwhile, so here the versions follow each other exactly.
    assert steps(ours) == steps(recorded)


def steps(events: list[Any]) -> list[int]:
    """Return how far each event's version is from the first one's."""
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    return [version - versions[0] for version in versions]


async def change_a_route(cluster: RecordedCluster, at: str) -> None:
    """Do what the recording was watching, by a client without a name."""
    cluster.clock.advance(seconds(at) - cluster.clock.now())
    nameless = {"User-Agent": ""}
    rule = {"backendRefs": [{"name": "a", "port": 80, "weight": 1}]}
    route = {"metadata": {"name": "w"}, "spec": {"rules": [rule]}}
    change = [{"op": "replace", "path": "/spec/rules/0/backendRefs/0/weight", "value": 2}]
    patch = {**nameless, "Content-Type": "application/json-patch+json"}
    assert (await cluster.send("POST", ROUTES, json.dumps(route), nameless))[0] == 201
    assert (await cluster.send("PATCH", f"{ROUTES}/w", json.dumps(change), patch))[0] == 200
    assert (await cluster.send("DELETE", f"{ROUTES}/w"))[0] == 200


@one_loop
async def test_the_deleted_deployment_takes_its_pods_along(cluster: RecordedCluster) -> None:
    # The recorder deleted with the policy Background: the answer is there first, then the dependents go.
    await catch_up(cluster, len(EXCHANGES))
    cluster.turn()
    for resource in ("apps/v1/namespaces/inference/replicasets", "v1/namespaces/inference/pods"):
        root = "/apis/" if resource.startswith("apps") else "/api/"
        assert json.loads((await cluster.send("GET", root + resource))[2])["items"] == []
