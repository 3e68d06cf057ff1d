"""The gateway with a real Envoy and real streams."""

from __future__ import annotations

import asyncio
import copy
import itertools
import math
import os
import signal
import socket
import time
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from sandbox.clock import SystemClock
from sandbox.faults import Faults
from sandbox.gateway import backends as gateway_backends
from sandbox.gateway import run_gateway

GATEWAY, POD = "127.77.0.1", "127.77.1.{}"
HEALTHY = {"type": "HTTP", "httpHealthCheck": {"requestPath": "/health"}}


class FakeKube:
    """What the gateway needs of a Kubernetes client, in memory."""

    def __init__(self):
        self.objects = {}
        self.queues = {}
        self.ages = itertools.count(10)

    def put(self, resource, item):
        item = copy.deepcopy(item)
        meta = item["metadata"]
        meta.setdefault("namespace", "inference")
        key = (resource, meta["namespace"], meta["name"])
        old = self.objects.get(key)
        meta["creationTimestamp"] = (
            f"2026-11-22T00:00:{next(self.ages):02d}Z" if old is None else old["metadata"]["creationTimestamp"]
        )
        meta["generation"] = 1 if old is None else old["metadata"]["generation"] + 1
        if old is not None and "status" in old:
            item["status"] = old["status"]
        self._tell(key, item, "ADDED" if old is None else "MODIFIED")

    def remove(self, resource, name, namespace="inference"):
        self._tell((resource, namespace, name), None, "DELETED")

    def status(self, resource, name, namespace="inference"):
        return self.objects[(resource, namespace, name)].get("status") or {}

    def _tell(self, key, item, kind):
        if item is None:
            item = self.objects.pop(key)
        else:
            self.objects[key] = item
        for queue in self.queues.get(key[0], []):
            queue.put_nowait((kind, copy.deepcopy(item)))

    async def watch(self, resource, namespace=None):
        queue = asyncio.Queue()
        self.queues.setdefault(resource, []).append(queue)
        for key, item in list(self.objects.items()):
            if key[0] == resource:
                yield "ADDED", copy.deepcopy(item)
        yield "SYNC", None
        while True:
            yield await queue.get()

    async def patch(self, resource, namespace, name, body, content_type="", subresource=None):
        assert subresource == "status"
        key = (resource, namespace, name)
        item = {**self.objects[key], "status": {**self.objects[key].get("status", {}), **body["status"]}}
        self._tell(key, item, "MODIFIED")
        return item


class World:
    def __init__(self, tmp_path, speed=50.0):
        self.kube = FakeKube()
        self.faults = Faults(tmp_path / "faults.json")
        self.directory = tmp_path / "gateway"
        self.speed = speed
        self.runners, self.tasks, self.members = [], [], {}
        self.port = free_port(GATEWAY)
        self.url = f"http://{GATEWAY}:{self.port}"
        self.session = None

    async def start(self):
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        listener = {"name": "http", "port": self.port, "protocol": "HTTP"}
        spec = {"gatewayClassName": "gke-l7-regional-external-managed", "listeners": [listener]}
        self.kube.put("gateways", {"metadata": {"name": "gw"}, "spec": spec})
        self.controller = asyncio.create_task(
            run_gateway(self.kube, self.directory, GATEWAY, SystemClock(), self.speed, self.faults)
        )
        await self.eventually(lambda: self.condition("gateways", "gw", "Programmed") == "True")

    async def stop(self):
        if self.session:
            await self.session.close()
            self.controller.cancel()
            await asyncio.gather(self.controller, return_exceptions=True)
        for runner in self.runners:
            await runner.cleanup()

    async def pod(self, service, number):
        """Run a small server as a pod of `service`: /health, /slow streams, everything else names it."""

        async def stream(request):
            response = web.StreamResponse()
            await response.prepare(request)
            for _ in range(int(request.query["n"])):
                await response.write(b"x\n")
                await asyncio.sleep(0.1)
            return response

        async def health(_):
            return web.Response()

        async def root(_):
            return web.Response(status=404)

        async def drop(request):
            request.transport.close()
            return web.Response()

        async def name(request):
            return web.Response(text=service, headers={"X-Seen": request.headers.get("X-Request-Id", "")})

        app = web.Application()
        app.router.add_get("/health", health)
        app.router.add_get("/", root)
        app.router.add_get("/slow", stream)
        app.router.add_get("/drop", drop)
        app.router.add_route("*", "/{rest:.+}", name)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        self.runners.append(runner)
        await web.TCPSite(runner, POD.format(number), 8000).start()
        self.join(service, number)

    def service(self, name, health=HEALTHY, **policy):
        port = {"name": "http", "port": 8000, "targetPort": 8000}
        self.kube.put("services", {"metadata": {"name": name}, "spec": {"ports": [port]}})
        self.join(name)
        if health:
            self.policy("healthcheckpolicies", name, {"config": health})
        if policy:
            self.policy("gcpbackendpolicies", name, policy)

    def policy(self, resource, service, default):
        target = {"group": "", "kind": "Service", "name": service}
        self.kube.put(resource, {"metadata": {"name": service}, "spec": {"default": default, "targetRef": target}})

    def join(self, service, *numbers):
        self.members[service] = self.members.get(service, set()) | set(numbers)
        self._slice(service)

    def leave(self, service, number):
        self.members[service] -= {number}
        self._slice(service)

    def _slice(self, service):
        meta = {"name": f"{service}-1", "labels": {"kubernetes.io/service-name": service}}
        endpoints = [
            {"addresses": [POD.format(n)], "conditions": {"ready": True}} for n in sorted(self.members[service])
        ]
        ports = [{"name": "http", "port": 8000}]
        self.kube.put("endpointslices", {"metadata": meta, "endpoints": endpoints, "ports": ports})

    def route(self, weights, name="llm", path="/", path_type="PathPrefix", headers=(), **extra):
        refs = [{"name": service, "port": 8000, "weight": weight} for service, weight in weights.items()]
        match = {"path": {"type": path_type, "value": path}}
        if headers:
            match["headers"] = [{"name": key, "value": value} for key, value in headers]
        rule = {"matches": [match], "backendRefs": refs, **extra}
        self.kube.put(
            "httproutes", {"metadata": {"name": name}, "spec": {"parentRefs": [{"name": "gw"}], "rules": [rule]}}
        )

    def condition(self, resource, name, kind):
        status = self.kube.status(resource, name)
        conditions = status.get("conditions") or [c for p in status.get("parents", []) for c in p["conditions"]]
        return next((c["status"] for c in conditions if c["type"] == kind), None)

    async def get(self, path="/v1/x", headers=None):
        try:
            async with self.session.get(self.url + path, headers=headers or {}) as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientConnectionError as error:
            return 0, type(error).__name__

    async def answers(self, expected, path="/v1/x", headers=None, times=5):
        """Wait until `expected` (status or text) comes `times` times in a row."""

        async def ask():
            return [await self.get(path, headers) for _ in range(times)]

        await self.eventually(lambda found: all(expected in one for one in found), ask)

    async def stream(self, seconds, started=None):
        """Return how a stream of that length ended: whole, cut or an HTTP status."""
        n = int(seconds * 10)
        got = 0
        try:
            async with self.session.get(f"{self.url}/slow?n={n}") as answer:
                if answer.status != 200:
                    return answer.status
                async for _ in answer.content:
                    got += 1
                    if started:
                        started.set()
        except aiohttp.ClientPayloadError:
            return "cut"
        return "whole" if got == n else "cut"

    async def split(self, names, count):
        """Return how many of `count` requests each service (or status) got."""
        found = dict.fromkeys(names, 0)
        for _ in range(count // 20):
            for status, text in await asyncio.gather(*(self.get() for _ in range(20))):
                key = text if status == 200 else status
                found[key] = found.get(key, 0) + 1
        return found

    async def eventually(self, check, ask=None, deadline_s=20.0):
        deadline = time.monotonic() + deadline_s
        while True:
            found = await ask() if ask else None
            if check(found) if ask else check():
                return
            if self.controller.done():
                self.controller.result()
            assert time.monotonic() < deadline, f"not within {deadline_s} s; last seen {found}"
            await asyncio.sleep(0.03)


def free_port(address):
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def within_binomial(found, count, share):
    return abs(found - count * share) <= 5 * math.sqrt(count * share * (1 - share))


@pytest.fixture
async def world(request, tmp_path):
    """Give a world that runs 50 times as fast as GKE, or as fast as `at_speed` says."""
    world = World(tmp_path, getattr(request, "param", 50.0))
    yield world
    await world.stop()


def at_speed(speed):
    return pytest.mark.parametrize("world", [speed], indirect=True, ids=[f"speed-{speed}"])


async def two_arms(world, **policy):
    for number, name in enumerate(("gpu", "tpu"), start=1):
        world.service(name, **policy)
        await world.pod(name, number)
    world.route({"gpu": 100, "tpu": 0})
    await world.start()
    await world.answers("gpu")


async def test_the_status_says_where_users_find_the_gateway_and_that_all_is_attached(world):
    await two_arms(world, timeoutSec=600)
    assert world.kube.status("gateways", "gw")["addresses"] == [{"type": "IPAddress", "value": GATEWAY}]
    assert world.kube.status("gateways", "gw")["listeners"][0]["attachedRoutes"] == 1
    assert world.condition("httproutes", "llm", "Accepted") == "True"
    assert world.condition("httproutes", "llm", "ResolvedRefs") == "True"
    for resource in ("healthcheckpolicies", "gcpbackendpolicies"):
        assert world.condition(resource, "tpu", "Attached") == "True"
    assert not list(world.directory.rglob("*.sock"))


async def test_requests_are_split_by_weight_and_weight_zero_gets_none(world):
    await two_arms(world)
    assert await world.split(("gpu", "tpu"), 200) == {"gpu": 200, "tpu": 0}
    world.route({"gpu": 90, "tpu": 10})
    await world.eventually(lambda found: "tpu" in found[1], world.get)
    found = await world.split(("gpu", "tpu"), 2000)
    assert within_binomial(found["tpu"], 2000, 0.10), found
    world.route({"gpu": 0, "tpu": 100})
    await world.answers("tpu", times=20)
    assert await world.split(("gpu", "tpu"), 200) == {"gpu": 0, "tpu": 200}


@at_speed(4)
async def test_a_weight_takes_effect_only_after_the_propagation_delay(world):
    await two_arms(world)
    world.faults.set("gateway-slow", {"factor": 0.5})
    began = time.monotonic()
    world.route({"gpu": 0, "tpu": 100})
    await world.answers("tpu", times=1)
    assert time.monotonic() - began >= 8 / 4 * 0.5 - 0.01


@at_speed(400)
async def test_thirty_weight_changes_cut_none_of_fifty_streams(world):
    await two_arms(world)
    started = [asyncio.Event() for _ in range(50)]
    streams = [asyncio.create_task(world.stream(6, event)) for event in started]
    await asyncio.gather(*(event.wait() for event in started))
    for change in range(30):
        share = (change * 37) % 101
        world.route({"gpu": 100 - share, "tpu": share})
        wanted = f'"numerator": {(100 - share) * 10_000}' if 0 < share < 100 else '"cluster"'
        rds = world.directory / "inference-gw" / f"rds-{world.port}.json"
        await world.eventually(lambda rds=rds, wanted=wanted: wanted in rds.read_text())
        streams.append(asyncio.create_task(world.stream(0.3)))
    assert set(await asyncio.gather(*streams)) == {"whole"}


async def test_a_header_matched_probe_rule_reaches_the_arm_that_has_no_weight(world):
    await two_arms(world)
    world.route({"tpu": 1}, name="probe", headers=[("X-Arm", "tpu")])
    await world.answers("tpu", headers={"X-Arm": "tpu"})
    await world.answers("gpu")
    await world.answers("gpu", headers={"X-Arm": "gpu"})


async def test_more_specific_paths_win_over_shorter_ones_whatever_their_age(world):
    await two_arms(world)
    world.route({"tpu": 1}, name="narrow", path="/v1/models")
    await world.answers("tpu", path="/v1/models")
    await world.answers("tpu", path="/v1/models/x")
    await world.answers("gpu", path="/v1/modelsx")
    world.route({"gpu": 1}, name="exact", path="/v1/models", path_type="Exact")
    await world.answers("gpu", path="/v1/models")
    await world.answers("tpu", path="/v1/models/x")


async def test_hostnames_choose_the_route_and_any_host_gets_the_rest(world):
    await two_arms(world)
    rule = {"matches": [{"path": {"value": "/v1/x"}}], "backendRefs": [{"name": "tpu", "port": 8000}]}
    spec = {"parentRefs": [{"name": "gw"}], "hostnames": ["tpu.example.com", "*.tpu.test"], "rules": [rule]}
    world.kube.put("httproutes", {"metadata": {"name": "named"}, "spec": spec})
    for host in ("tpu.example.com", "tpu.example.com:8080", "a.tpu.test"):
        await world.answers("tpu", headers={"Host": host})
    await world.answers("gpu", headers={"Host": "other.example.com"})
    await world.answers("gpu", path="/v1/y", headers={"Host": "tpu.example.com"})


async def test_a_backend_that_does_not_resolve_answers_500_for_its_share_only(world):
    await two_arms(world)
    world.route({"gpu": 50, "nowhere": 50})
    await world.eventually(lambda found: found[0] == 500, world.get)
    found = await world.split(("gpu", 500), 1000)
    assert within_binomial(found["gpu"], 1000, 0.5), found
    assert found["gpu"] + found[500] == 1000
    assert world.condition("httproutes", "llm", "Accepted") == "True"
    assert world.condition("httproutes", "llm", "ResolvedRefs") == "False"


async def test_a_service_without_ready_endpoints_answers_503(world):
    await two_arms(world)
    world.leave("gpu", 1)
    await world.answers(503)


async def test_the_default_health_check_on_slash_keeps_a_vllm_like_backend_out(world):
    world.service("gpu", health=None)
    await world.pod("gpu", 1)
    world.route({"gpu": 1})
    await world.start()
    await world.answers(503, times=20)
    world.policy("healthcheckpolicies", "gpu", {"config": HEALTHY})
    await world.answers("gpu")


async def test_the_default_timeout_cuts_a_long_stream_and_a_policy_lifts_it(world, monkeypatch):
    monkeypatch.setattr(gateway_backends, "GKE_TIMEOUT_S", 1.0)
    await two_arms(world)
    assert await world.stream(2) == "cut"
    assert await world.stream(0.5) == "whole"
    world.policy("gcpbackendpolicies", "gpu", {"timeoutSec": 600})
    await world.eventually(lambda found: found == "whole", lambda: world.stream(1.5))


async def test_without_draining_the_streams_of_a_leaving_endpoint_are_cut(world):
    await two_arms(world)
    started = asyncio.Event()
    stream = asyncio.create_task(world.stream(15, started))
    await started.wait()
    world.leave("gpu", 1)
    assert await stream == "cut"


async def test_with_draining_they_finish_while_new_requests_go_elsewhere(world):
    await two_arms(world, connectionDraining={"drainingTimeoutSec": 30})
    await world.pod("gpu", 3)
    started = [asyncio.Event() for _ in range(4)]
    streams = [asyncio.create_task(world.stream(4, event)) for event in started]
    await asyncio.gather(*(event.wait() for event in started))
    world.leave("gpu", 1)
    assert await asyncio.gather(*streams) == ["whole"] * 4
    await world.answers("gpu", times=20)


async def test_draining_ends_at_its_time(world):
    await two_arms(world, connectionDraining={"drainingTimeoutSec": 1})
    started = asyncio.Event()
    stream = asyncio.create_task(world.stream(15, started))
    await started.wait()
    world.leave("gpu", 1)
    await world.answers(503)
    assert not stream.done()
    assert await stream == "cut"


async def test_a_detached_backend_is_cut_even_with_draining(world):
    await two_arms(world, connectionDraining={"drainingTimeoutSec": 600})
    started = asyncio.Event()
    stream = asyncio.create_task(world.stream(15, started))
    await started.wait()
    world.route({"tpu": 1})
    assert await stream == "cut"


async def test_timeouts_in_a_rule_are_refused_and_the_route_serves_nothing(world):
    await two_arms(world)
    world.route({"gpu": 1}, timeouts={"request": "60s"})
    await world.eventually(lambda: world.condition("httproutes", "llm", "Accepted") == "False")
    (parent,) = world.kube.status("httproutes", "llm")["parents"]
    assert parent["conditions"][0]["reason"] == "UnsupportedValue"
    await world.answers(404)


async def test_load_balancer_errors_hit_their_percentage_and_stop_when_switched_off(world):
    await two_arms(world)
    world.faults.set("lb-errors", {"percent": 30, "status": 502})
    await world.eventually(lambda found: found[0] == 502, world.get)
    found = await world.split(("gpu", 502), 1000)
    assert within_binomial(found[502], 1000, 0.3), found
    world.faults.clear()
    await world.answers("gpu", times=20)


async def test_a_pod_that_breaks_off_before_it_answers_is_a_502(world):
    await two_arms(world)
    assert (await world.get("/drop"))[0] == 502


async def test_the_clients_request_id_reaches_the_pod(world):
    await two_arms(world)
    async with world.session.get(f"{world.url}/v1/x", headers={"X-Request-Id": "r-7"}) as answer:
        assert answer.headers["X-Seen"] == "r-7"


async def test_envoy_is_restarted_when_it_dies_and_ended_with_the_controller(world):
    await two_arms(world)
    (first,) = envoys(world)
    os.kill(first, signal.SIGKILL)
    await world.eventually(lambda: envoys(world) not in ([], [first]))
    await world.answers("gpu")
    world.controller.cancel()
    await asyncio.gather(world.controller, return_exceptions=True)
    assert envoys(world) == []


async def test_a_port_that_is_taken_is_said_in_the_gateways_status(world):
    taken = socket.create_server((GATEWAY, world.port))
    start = asyncio.create_task(world.start())
    await asyncio.sleep(0)
    await world.eventually(lambda: "cannot listen" in str(world.kube.status("gateways", "gw")))
    taken.close()
    await start


def envoys(world):
    """Return the process ids of this world's Envoys, found by the bootstrap file they were given."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(world.directory).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
