"""Serve a cluster with many migrations under way: `python -m tests.prove.served_migrations DIRECTORY WAITING SHIFTING`.

The stages themselves make each kind once, in virtual time: one migration whose engines still compile, and one with a
tenth of its users on the target, held there for an hour. Their objects are then copied, each into a namespace of its
own, and served by the sandbox's API server over TLS, with the GKE API and the token endpoint beside it. Pods answer
through the proxy as those of the two worlds do, whose time goes on; an engine's metrics are as long as the real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiohttp import web

from sandbox import world
from sandbox.api import Api, LocalClient, Request, Response
from sandbox.api.http import Server, _plain, _read
from sandbox.api.routes import Route
from sandbox.clock import SystemClock, VirtualClock
from sandbox.cluster import HOST
from sandbox.embedded import SERVICE_ACCOUNT
from sandbox.engine.metrics import Metrics
from sandbox.faults import NoFaults
from sandbox.gke.core import GkeCloud
from sandbox.gke.nodes import LocalNodes
from sandbox.gke.server import serve_gke
from sandbox.gke.tokens import TokenIssuer, serve_tokens
from sandbox.pki import CertificateAuthority
from sandbox.state import write_state
from sandbox.workload import NAMESPACE, WORKLOAD
from sandbox.world import CLUSTER, LOCATION, PROJECT
from tests.simulation.harness import Scene
from tpu_migration.domain.plan import Plan
from tpu_migration.names import record_name
from tpu_migration.record import Record

RUN = "run-1"
STAGE_OF = {"waiting": "warm_up", "shifting": "shift"}
_COPIED = (
    "configmaps", "secrets", "services", "deployments", "pods", "endpointslices", "httproutes", "gateways", "leases",
    "horizontalpodautoscalers", "poddisruptionbudgets",
)  # fmt: skip
_OTHER_METRICS = Metrics("m", {}).render()


class Reached(BaseException):
    """The migration is where it shall stay."""


def made(kind: str) -> Scene:
    """Return a world whose migration the stages have brought to where it is watched, or waits, by now."""
    took_s = _made(kind, 0.0).world.clock.now()
    return _made(kind, time.time() - took_s)  # the same once more: its clock ends at the wall's time


def _made(kind: str, start: float) -> Scene:
    world.VirtualClock = lambda: VirtualClock(start)  # type: ignore[assignment,misc]
    scene = Scene(bake_s=3600, soak_s=3600)
    flow = scene.airflow(RUN)

    def wait(seconds: float) -> None:
        scene.world.advance(seconds)
        stage = flow.current.stage.name if flow.current else ""
        if stage == STAGE_OF[kind] and (kind == "waiting" or scene.record.shift.observed is not None):
            raise Reached

    flow.wait = wait
    try:
        flow.run()
    except Reached:
        scene.world.on_tick.clear()  # no guard there: nothing goes on in this world but traffic
        return scene
    raise RuntimeError(f"the migration ended before it was {kind}: {flow.reasons()}")


def plan_in(scene: Scene, namespace: str) -> Plan:
    """Return the plan of a copy."""
    return Plan.from_params({**scene.plan.to_dict(), "namespace": namespace})


def copy(scene: Scene, api: Api, namespace: str) -> None:
    """Put the world's objects into a namespace of the API."""
    LocalClient(api).create("namespaces", {"metadata": {"name": namespace}})
    for resource in _COPIED:
        for entry in scene.world.objects(resource):
            obj = json.loads(json.dumps(entry))
            obj["metadata"] = {
                **obj["metadata"],
                "namespace": namespace,
                "uid": f"{namespace}-{entry['metadata']['uid']}",
            }
            if resource == "configmaps" and obj["metadata"]["name"] == record_name(WORKLOAD):
                record = Record.from_json(obj["data"]["record.json"])
                moved = replace(record, namespace=namespace, plan_hash=plan_in(scene, namespace).hash)
                obj["data"]["record.json"] = moved.to_json()
            api.store.put(resource, obj)


class Served(Server):
    """The sandbox's server, whose pods are those of the virtual worlds."""

    calls = 0

    async def _handle(self, http: web.BaseRequest) -> web.StreamResponse:
        self.calls += 1
        return await super()._handle(http)

    async def _forward(self, http: web.BaseRequest, request: Request, route: Route) -> web.StreamResponse:
        request.body = await _read(http, 1 << 20)
        return _plain(self._api.handle(request))

    async def _log(self, http: web.BaseRequest, request: Request, route: Route) -> web.StreamResponse:
        return _plain(self._api.handle(request))


class Pods:
    """Answer for the pods of each namespace from the world that it was copied from, at most once a second each."""

    def __init__(self, scenes: Mapping[str, Scene]) -> None:
        self.scenes = scenes  # by namespace
        self._said: dict[tuple[int, str, str], tuple[int, Response]] = {}

    def proxy(self, namespace: str, name: str, port: int, request: Request) -> Response:
        key, second = (id(self.scenes[namespace]), name, request.path), int(time.monotonic())
        at, said = self._said.get(key, (-1, None))
        if said is None or at != second:
            said = self._ask(namespace, name, request)
            self._said[key] = second, said
        return said

    def _ask(self, namespace: str, name: str, request: Request) -> Response:
        world = self.scenes[namespace].world
        pod = world.pod_named(name)
        if pod is None or not pod.listens(world.clock.now()):
            return Response(503, {}, b'{"kind":"Status","message":"no answer from the pod"}')
        status, body = pod.answer(request.method, request.path, request.body)
        if request.path == "/metrics":
            text = body.decode()
            told = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines()}
            more = [
                line
                for line in _OTHER_METRICS.splitlines()
                if line.removeprefix("# HELP ").removeprefix("# TYPE ").partition("{")[0].partition(" ")[0] not in told
            ]
            body = (text + "\n".join(more) + "\n").encode()
        return Response(status, {}, body)

    def log(self, namespace: str, name: str, container: str, query: dict[str, str]) -> bytes:
        return self.scenes[namespace].world._log(NAMESPACE, name, container, query)


async def main(directory: Path, counts: dict[str, int]) -> None:
    """Serve until ended; state.json tells where, and which namespace is of which kind."""
    directory.mkdir(parents=True, exist_ok=True)
    clock = SystemClock()
    issuer = TokenIssuer(clock)
    authority = CertificateAuthority(directory)
    tls = authority.issue("server", [HOST, "localhost"])
    await serve_tokens(issuer, HOST)
    key_file = directory / "service-account.json"
    key_file.write_text(json.dumps(issuer.new_service_account_key(SERVICE_ACCOUNT, PROJECT)))
    key_file.chmod(0o600)
    api = Api(clock)
    scenes, kinds = {}, {}
    for kind, count in counts.items():
        scene = made(kind)
        for number in range(count):
            namespace = f"{kind}-{number:03}"
            copy(scene, api, namespace)
            scenes[namespace], kinds[namespace] = scene, kind
    pods = Pods(scenes)
    api.pod_proxy, api.pod_logs = pods.proxy, pods.log
    server = Served(api, issuer.authenticate, [SERVICE_ACCOUNT], NoFaults())
    await server.start(HOST, 0, _context(tls))
    cloud = GkeCloud(
        clock, LocalNodes(LocalClient(api)), project=PROJECT, location=LOCATION, cluster=CLUSTER,
        endpoint=f"{HOST}:{server.port}", ca_pem=authority.pem,
    )  # fmt: skip
    gke = await serve_gke(cloud, HOST, 0, tls, issuer.authenticate)
    write_state(
        directory,
        {
            "service_account_key_file": str(key_file), "project": PROJECT, "location": LOCATION, "cluster": CLUSTER,
            "gke_endpoint": f"localhost:{gke.port}", "namespace": NAMESPACE, "ca_file": str(authority.cert_path),
            "plans": {name: plan_in(scenes[name], name).to_dict() for name in kinds}, "kinds": kinds,
        },
    )  # fmt: skip
    while True:
        await asyncio.sleep(1.0)
        for scene in {id(each): each for each in scenes.values()}.values():
            scene.world.traffic.arrive(1.0)
            scene.world.clock.advance(1.0)
            for pod in list(scene.world.pods.values()):
                pod.tick(scene.world.clock.now())
        (directory / "calls").write_text(f"{server.calls} {time.monotonic()} {time.process_time()}")


def _context(tls: Any) -> Any:
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.cert, tls.key)
    return context


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(Path(sys.argv[1]), {"waiting": int(sys.argv[2]), "shifting": int(sys.argv[3])}))
    os._exit(0)
