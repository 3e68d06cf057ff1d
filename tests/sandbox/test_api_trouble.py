"""An API server in trouble: throttled, away, and with watches that break off."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from sandbox.api import Api
from sandbox.api.http import serve
from sandbox.api.messages import Request
from sandbox.api.trouble import Trouble
from sandbox.clock import SystemClock, VirtualClock
from sandbox.faults import Faults
from sandbox.kube import KubeClient
from sandbox.kubeconfig import Access

PRODUCT, PERSON = "airflow@project.iam.gserviceaccount.com", "admin"
TOKENS = {"product": PRODUCT, "person": PERSON}
MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture
def faults(tmp_path) -> Faults:
    return Faults(tmp_path / "faults.json")


@pytest.fixture
async def server(faults):
    api = Api(SystemClock(), superusers=tuple(TOKENS.values()))
    server = await serve(api, "127.0.0.1", 0, None, None, lambda token: TOKENS.get(token or ""), faults=faults)
    yield server
    await server.close()


def client(server, who="product") -> KubeClient:
    return KubeClient(Access(f"http://127.0.0.1:{server.port}", None, who))


def session(server, who="product") -> aiohttp.ClientSession:
    return aiohttp.ClientSession(f"http://127.0.0.1:{server.port}", headers={"Authorization": f"Bearer {who}"})


async def test_a_throttled_user_gets_429_with_retry_after_for_a_share_and_others_do_not(server, faults):
    faults.set("api-throttled", {"share": 0.3, "retry_after_s": 2})
    async with session(server) as product, session(server, "person") as person:
        statuses = []
        for _ in range(200):
            async with product.get(MAPS) as answer:
                statuses.append(answer.status)
                if answer.status == 429:
                    assert answer.headers["Retry-After"] == "2"
        assert 30 <= statuses.count(429) <= 90
        assert set(statuses) == {200, 429}
        for _ in range(50):
            async with person.get(MAPS) as answer:
                assert answer.status == 200
        faults.clear()
        async with product.get(MAPS) as answer:
            assert answer.status == 200


def test_the_seed_decides_which_requests_are_throttled(faults):
    def drawn(seed: int) -> list[bool]:
        faults.set("api-throttled", {"share": 0.5, "seed": seed})
        trouble = Trouble(faults, VirtualClock().now)
        return [trouble.refusal(PRODUCT) is not None for _ in range(64)]

    assert drawn(1) == drawn(1) != drawn(2)


async def test_a_server_that_is_down_cuts_the_users_connections_and_no_others(server, faults):
    faults.set("api-down", {"for_s": None})
    async with session(server) as product, session(server, "person") as person:
        with pytest.raises(aiohttp.ClientConnectionError):
            await product.get(MAPS)
        async with person.get(MAPS) as answer:
            assert answer.status == 200
        faults.set("api-down", {"for_s": None, "status": 503})
        async with product.get(MAPS) as answer:
            assert answer.status == 503


def test_a_server_is_down_for_its_time_from_the_first_request_on_and_again_when_switched_on_again(faults):
    clock = VirtualClock()
    trouble = Trouble(faults, clock.now)
    faults.set("api-down", {"for_s": 25})
    assert not trouble.down(PERSON)
    clock.advance(100)
    seen = []
    for _ in range(4):
        seen.append(trouble.down(PRODUCT))
        clock.advance(10)
    assert seen == [True, True, True, False]
    faults.clear()
    assert not trouble.down(PRODUCT)
    faults.set("api-down", {"for_s": 25})
    assert trouble.down(PRODUCT)


async def test_a_watch_that_is_open_breaks_off_when_its_server_goes_down(server, faults):
    async with session(server) as product, product.get(MAPS, params={"watch": "1"}) as answer:
        assert answer.status == 200
        faults.set("api-down", {"for_s": None})
        with pytest.raises(aiohttp.ClientPayloadError):
            await asyncio.wait_for(answer.content.read(), 20)


async def test_watches_break_off_again_and_again_and_our_client_misses_nothing(server, faults):
    faults.set("watch-cut", {"every_s": 0.05, "expired": 0.5})
    seen: list[str] = []
    async with client(server) as product, client(server, "person") as person:

        async def follow() -> None:
            async for kind, obj in product.watch("configmaps", "default"):
                if kind == "ADDED":
                    seen.append(obj["metadata"]["name"])

        following = asyncio.create_task(follow())
        for number in range(20):
            await person.create("configmaps", "default", {"metadata": {"name": f"m{number}"}})
            async with asyncio.timeout(20):
                while f"m{number}" not in seen:
                    await asyncio.sleep(0.01)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert sorted(seen) == sorted(f"m{number}" for number in range(20)), "each once"


async def test_a_share_of_the_watches_that_resume_is_told_410(server, faults):
    faults.set("watch-cut", {"every_s": 0.05, "expired": 1.0})
    async with session(server) as product, product.get(MAPS, params={"watch": "1", "resourceVersion": "7"}) as answer:
        event = json.loads(await answer.content.readline())
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")
    assert event["object"]["message"].startswith("too old resource version: 7 (")


def test_a_watch_that_begins_anew_is_never_told_410(faults):
    faults.set("watch-cut", {"expired": 1.0})
    trouble = Trouble(faults, VirtualClock().now)
    fresh = trouble.watch(Request("GET", MAPS, {"watch": "1"}, user=PRODUCT))
    assert fresh is not None
    assert not fresh.expired
    assert 1.0 <= fresh.after_s <= 5.0
