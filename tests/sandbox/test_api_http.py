"""Reach the API over TLS with real clients: kubectl, the kubernetes package, our own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from kubernetes import client as kubernetes_client
from served_api import DEPLOYMENT, TOKENS, Cluster, add_pod, needs_kubectl, run_pod, serving, until

from sandbox.api.http import serve
from sandbox.kube import KubeError


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with serving(tmp_path) as cluster:
        yield cluster


async def test_a_wrong_token_is_refused_as_recorded(cluster: Cluster) -> None:
    async with cluster.client("wrong") as client:
        with pytest.raises(KubeError) as refused:
            await client.list("pods")
    assert (refused.value.code, refused.value.reason) == (401, "Unauthorized")


async def test_a_service_account_may_do_what_its_role_says_and_nothing_else(cluster: Cluster) -> None:
    async with cluster.client("none") as client:
        with pytest.raises(KubeError) as refused:
            await client.list("pods", "inference")
        assert refused.value.code == 403
        rule = {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]}
        meta = {"name": "reader", "namespace": "inference"}
        cluster.local.create("roles", {"metadata": meta, "rules": [rule]})
        binding = {
            "metadata": meta,
            "roleRef": {"kind": "Role", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "nobody"}],
        }
        cluster.local.create("rolebindings", binding)
        assert await client.list("pods", "inference") == []
        with pytest.raises(KubeError):
            await client.delete("pods", "inference", "some-pod")


async def test_our_client_creates_changes_and_deletes(cluster: Cluster) -> None:
    async with cluster.client() as client:
        made = await client.create("configmaps", "inference", {"metadata": {"name": "a"}, "data": {"k": "1"}})
        stale = {**made, "data": {"k": "2"}}
        await client.update("configmaps", "inference", "a", stale)
        with pytest.raises(KubeError) as refused:
            await client.update("configmaps", "inference", "a", {**made, "data": {"k": "3"}})
        assert refused.value.code == 409
        patched = await client.patch("configmaps", "inference", "a", {"data": {"k": None, "n": "4"}})
        assert patched["data"] == {"n": "4"}
        with pytest.raises(KubeError):
            await client.delete("configmaps", "inference", "a", uid="another")
        assert await client.delete("configmaps", "inference", "a") is not None
        assert await client.delete("configmaps", "inference", "a") is None
        assert await client.get("configmaps", "inference", "a") is None


async def test_our_watch_survives_a_restart_of_the_server_and_misses_nothing(cluster: Cluster, tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    async def follow() -> None:
        async with cluster.client() as client:
            async for kind, obj in client.watch("configmaps", "inference"):
                seen.append((kind, obj["metadata"]["name"] if obj else ""))

    def create(name: str) -> None:
        cluster.local.create("configmaps", {"metadata": {"name": name, "namespace": "inference"}})

    create("before")
    following = asyncio.create_task(follow())
    await until(lambda: ("SYNC", "") in seen, "the first list")
    create("during")
    await until(lambda: ("ADDED", "during") in seen, "an event")
    await cluster.server.close()
    create("away")
    cluster.local.delete("configmaps", "inference", "before")
    again = await serve(
        cluster.api,
        "127.0.0.1",
        cluster.server.port,
        cluster.ca,
        tmp_path / "ca.key",
        lambda token: TOKENS.get(token or ""),
    )
    await until(lambda: ("DELETED", "before") in seen, "what changed while nobody listened")
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await again.close()
    assert seen == [
        ("ADDED", "before"),
        ("SYNC", ""),
        ("ADDED", "during"),
        ("ADDED", "away"),
        ("DELETED", "before"),
    ]


async def test_a_watch_from_a_forgotten_version_gets_an_error_event(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.api.store, "since", lambda version, resource: None)
    url = f"{cluster.url}/api/v1/configmaps?watch=1&resourceVersion=1"
    async with cluster.client() as client, client._open().get(url) as answer:
        event = json.loads(await answer.text())
    assert answer.status == 200
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")


async def test_a_watch_ends_at_its_timeout(cluster: Cluster) -> None:
    url = f"{cluster.url}/api/v1/configmaps?watch=1&resourceVersion=1&timeoutSeconds=1"
    async with cluster.client() as client, client._open().get(url) as answer:
        assert await answer.text() == ""


async def test_the_kubernetes_package_works_against_it(cluster: Cluster) -> None:
    configuration = kubernetes_client.Configuration(host=cluster.url)
    configuration.ssl_ca_cert = str(cluster.ca)
    configuration.api_key = {"authorization": "Bearer all"}

    def drive() -> str:
        with kubernetes_client.ApiClient(configuration) as connection:
            apps = kubernetes_client.AppsV1Api(connection)
            apps.create_namespaced_deployment("inference", DEPLOYMENT)
            apps.patch_namespaced_deployment_scale("web", "inference", {"spec": {"replicas": 5}})
            custom = kubernetes_client.CustomObjectsApi(connection)
            group = ("gateway.networking.k8s.io", "v1", "inference", "httproutes")
            backend = {"name": "web", "port": 80}
            route = {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "HTTPRoute",
                "metadata": {"name": "llm"},
                "spec": {"rules": [{"backendRefs": [backend]}]},
            }
            made = custom.create_namespaced_custom_object(*group, route)
            made["spec"]["rules"][0]["backendRefs"][0]["weight"] = 7
            changed = custom.replace_namespaced_custom_object(*group, "llm", made)
            assert changed["metadata"]["generation"] == 2
            with pytest.raises(kubernetes_client.ApiException) as refused:
                custom.replace_namespaced_custom_object(*group, "llm", made)
            assert refused.value.status == 409
            return str(apps.read_namespaced_deployment("web", "inference").spec.replicas)

    assert await asyncio.to_thread(drive) == "5"


async def start_pod_process(handler: object) -> tuple[web.AppRunner, int]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]


async def test_the_pod_proxy_passes_method_body_query_and_status_on(cluster: Cluster) -> None:
    async def echo(request: web.Request) -> web.Response:
        got = {"method": request.method, "path": request.raw_path, "body": await request.text()}
        got["authorization"] = request.headers.get("Authorization", "")
        return web.json_response(got, status=418)

    runner, port = await start_pod_process(echo)
    add_pod(cluster, "p", port)
    base = f"{cluster.url}/api/v1/namespaces/inference/pods"
    async with cluster.client() as client:
        session = client._open()
        async with session.post(f"{base}/p:{port}/proxy/v1/a%20b?x=1&y", data=b"hello") as answer:
            assert answer.status == 418
            got = await answer.json()
        async with session.get(f"{base}/p:http/proxy/metrics") as named:
            assert (await named.json())["path"] == "/metrics"
    assert got == {"method": "POST", "path": "/v1/a%20b?x=1&y", "body": "hello", "authorization": ""}
    await runner.cleanup()


async def test_the_pod_proxy_passes_a_streamed_answer_on_chunk_by_chunk(cluster: Cluster) -> None:
    read = asyncio.Semaphore(0)

    async def stream(request: web.Request) -> web.StreamResponse:
        wanted = (await request.json())["max_tokens"]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        for number in range(wanted):
            await response.write(f"data: {number}\n\n".encode())
            await read.acquire()  # not another one before the client has this one
        await response.write_eof()
        return response

    runner, port = await start_pod_process(stream)
    add_pod(cluster, "p", port)
    url = f"{cluster.url}/api/v1/namespaces/inference/pods/p:{port}/proxy/v1/completions"
    async with cluster.client() as client, client._open().post(url, json={"max_tokens": 5}) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        for number in range(5):
            assert await answer.content.readuntil(b"\n\n") == f"data: {number}\n\n".encode()
            read.release()
        assert await answer.read() == b""
    await runner.cleanup()


async def test_the_pod_proxy_streams_and_a_dead_pod_cuts_the_stream(cluster: Cluster) -> None:
    first_read = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(b"data: one\n\n")
        await first_read.wait()
        assert request.transport is not None
        request.transport.abort()
        return response

    runner, port = await start_pod_process(stream)
    add_pod(cluster, "p", port)
    url = f"{cluster.url}/api/v1/namespaces/inference/pods/p:{port}/proxy/v1/completions"
    async with cluster.client() as client, client._open().post(url, data=b"{}") as answer:
        assert await answer.content.readany() == b"data: one\n\n"
        first_read.set()
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    await runner.cleanup()


async def test_the_pod_proxy_says_that_a_port_is_closed(cluster: Cluster) -> None:
    async def never(request: web.Request) -> web.Response:
        return web.Response()

    runner, port = await start_pod_process(never)
    await runner.cleanup()  # so that nobody listens on its port any more
    add_pod(cluster, "p", port)
    url = f"{cluster.url}/api/v1/namespaces/inference/pods/p:{port}/proxy/health"
    async with cluster.client() as client, client._open().get(url) as answer:
        status = await answer.json()
    assert answer.status == 503
    assert status["message"].startswith("error trying to reach service: dial tcp 127.0.0.1:")
    assert status["message"].endswith("connect: connection refused")


async def test_logs_are_followed_until_the_pod_ends(cluster: Cluster) -> None:
    add_pod(cluster, "p", 8000)
    log = cluster.directory / "pods" / "inference_p_main.log"
    log.write_text("one\ntwo\nthree\n")
    url = f"{cluster.url}/api/v1/namespaces/inference/pods/p/log"
    async with cluster.client() as client:
        session = client._open()
        async with session.get(f"{url}?tailLines=2") as answer:
            assert await answer.text() == "two\nthree\n"
        async with session.get(f"{url}?follow=true&container=main") as answer:
            assert await answer.content.readany() == b"one\ntwo\nthree\n"
            with log.open("a") as file:
                file.write("four\n")
            assert await answer.content.readany() == b"four\n"
            cluster.local.patch("pods", "inference", "p", {"status": {"phase": "Succeeded"}}, subresource="status")
            assert await answer.read() == b""
        async with session.get(f"{url}?container=other") as answer:
            assert answer.status == 400


async def test_logs_that_cannot_be_had_say_why(cluster: Cluster) -> None:
    add_pod(cluster, "p", 8000)
    url = f"{cluster.url}/api/v1/namespaces/inference/pods/p/log"
    waiting = 'container "main" in pod "p" is waiting to start: ContainerCreating'
    async with cluster.client() as client:
        session = client._open()
        async with session.get(url) as answer:
            assert (answer.status, (await answer.json())["message"]) == (400, waiting)
        async with session.get(f"{url}?previous=true") as answer:
            assert "previous terminated container" in (await answer.json())["message"]
        # The node's kubelet is not there any more.
        gone = {"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}}}
        cluster.local.patch("nodes", None, "n1", gone, subresource="status")
        async with session.get(url) as answer:
            status = await answer.json()
            assert (answer.status, status["reason"]) == (500, "InternalError")
            assert "https://127.0.0.1:1/containerLogs/inference/p/main" in status["message"]
            assert status["message"].endswith("connect: connection refused")


async def test_a_service_account_gets_tokens_that_stand_for_it(cluster: Cluster) -> None:
    asked: list[tuple[str, float]] = []

    def issue(user: str, seconds: float) -> tuple[str, float]:
        asked.append((user, seconds))
        return "a-token", 1_800_000_000.0

    cluster.api.issue_token = issue
    async with cluster.client() as client:
        await until(lambda: cluster.local.get("serviceaccounts", "inference", "default"), "the default account")
        assert await client.request_token("inference", "default", 3600) == "a-token"
        assert asked == [("system:serviceaccount:inference:default", 3600)]
        with pytest.raises(KubeError, match="less than 10 minutes"):
            await client.request_token("inference", "default", 60)
        with pytest.raises(KubeError) as refused:
            await client.request_token("inference", "nobody", 3600)
        assert refused.value.code == 404
    async with cluster.client("none") as client:
        with pytest.raises(KubeError) as refused:
            await client.request_token("inference", "default", 3600)
        assert refused.value.code == 403


@needs_kubectl
async def test_kubectl_applies_scales_waits_and_deletes(cluster: Cluster) -> None:
    code, out = await cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(DEPLOYMENT))
    assert (code, out) == (0, "deployment.apps/web serverside-applied\n")
    await until(lambda: len(cluster.local.list("pods", "inference")) == 2, "pods")
    cluster.local.create("nodes", {"metadata": {"name": "n1"}, "status": {"allocatable": {"cpu": "8", "pods": "110"}}})
    code, out = await cluster.kubectl("scale", "deployment", "web", "--replicas=3")
    assert (code, out) == (0, "deployment.apps/web scaled\n")
    await until(lambda: len(cluster.local.list("pods", "inference")) == 3, "three pods")
    for pod in cluster.local.list("pods", "inference"):
        run_pod(cluster, pod["metadata"]["name"])
    code, out = await cluster.kubectl("rollout", "status", "deployment", "web", "--timeout=20s")
    assert (code, out.splitlines()[-1]) == (0, 'deployment "web" successfully rolled out')
    code, out = await cluster.kubectl("wait", "--for=condition=Available", "deployment/web", "--timeout=20s")
    assert (code, out) == (0, "deployment.apps/web condition met\n")
    code, out = await cluster.kubectl("get", "deployments")
    assert out.splitlines()[0].split() == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    assert out.splitlines()[1].split()[:4] == ["web", "3/3", "3", "3"]
    code, out = await cluster.kubectl("describe", "deployment", "web")
    assert "ScalingReplicaSet" in out
    assert "MinimumReplicasAvailable" in out
    pod = cluster.local.list("pods", "inference")[0]["metadata"]["name"]
    (cluster.directory / "pods" / f"inference_{pod}_main.log").write_text("hello\n")
    assert await cluster.kubectl("logs", pod) == (0, "hello\n")
    code, out = await cluster.kubectl("delete", "deployment", "web")
    assert code == 0
    assert cluster.local.list("deployments", "inference") == []


@needs_kubectl
async def test_kubectl_is_told_about_an_unknown_field(cluster: Cluster) -> None:
    wrong = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "tempalte": {}}}
    code, out = await cluster.kubectl("apply", "-f", "-", stdin=json.dumps(wrong))
    assert code == 1
    assert 'unknown field "spec.tempalte"' in out
