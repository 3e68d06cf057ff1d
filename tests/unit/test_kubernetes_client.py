"""Every call to the Kubernetes API says what really happened: only NotFound means absent."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from types import SimpleNamespace

import pytest
from cluster import GPU, NAMESPACE, Cluster, once

from sandbox.api import Request
from sandbox.pki import CertificateAuthority
from tpu_migration.clients.kubernetes import (
    CALL_TIMEOUT_S,
    CONFIG_MAPS,
    DEPLOYMENTS,
    FIELD_MANAGER,
    HTTP_ROUTES,
    LEASES,
    NODES,
    SECRETS,
    SERVICES,
    WATCH_CALL_TIMEOUT_S,
    Kubernetes,
    Resource,
    from_environment,
    resource_of,
)
from tpu_migration.clients.transport import Response, client_transport, token_transport
from tpu_migration.errors import ConflictError, MigrationError, NotHolderError, PermanentError, TransientError


@pytest.fixture
def cluster():
    return Cluster()


def config_map(name="one", **data):
    metadata = {"name": name, "namespace": NAMESPACE, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def answering(status, body=b"{}"):
    return Kubernetes(lambda *_, **__: Response(status, body))


# -------------------------------------------------------------------------------------- reading


def test_what_is_not_there_is_none(cluster):
    assert cluster.kube.get(CONFIG_MAPS, "one", NAMESPACE) is None
    assert cluster.kube.get(NODES, "one") is None


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, PermanentError), (403, PermanentError), (429, TransientError), (500, TransientError), (503, TransientError)],
)
def test_any_other_refusal_is_an_error_and_never_an_absent_object(status, error):
    body = b'{"kind":"Status","reason":"Other","message":"no"}'
    for call in (
        lambda kube: kube.get(SECRETS, "one", NAMESPACE),
        lambda kube: kube.list(SECRETS, NAMESPACE),
        lambda kube: kube.delete(SECRETS, "one", NAMESPACE),
    ):
        with pytest.raises(error, match=str(status)):
            call(answering(status, body))


@pytest.mark.parametrize("body", [b"404 page not found\n", b"", b"[]", b'{"reason":"Other"}'])
def test_a_404_of_an_api_that_is_not_installed_is_no_absent_object(body):
    with pytest.raises(PermanentError, match="CRD"):
        answering(404, body).get(HTTP_ROUTES, GPU, NAMESPACE)
    with pytest.raises(PermanentError, match="CRD"):
        answering(404, body).delete(HTTP_ROUTES, GPU, NAMESPACE)


def test_an_api_that_the_server_does_not_have_is_named_as_such(cluster):
    queues = Resource("kueue.x-k8s.io/v1", "Queue", "queues")
    with pytest.raises(PermanentError, match="CRD"):
        cluster.kube.get(queues, "one", NAMESPACE)


def test_errors_name_the_call_the_server_s_words_and_the_remedy(cluster):
    cluster.user = "system:serviceaccount:airflow:worker"
    with pytest.raises(PermanentError) as refused:
        cluster.kube.get(SECRETS, "one", NAMESPACE)
    for part in ("read Secret one", "403", "system:serviceaccount:airflow:worker", "rbac.yaml"):
        assert part in str(refused.value)


def test_a_list_gives_each_item_its_kind_so_that_it_can_be_written_again(cluster):
    cluster.kube.create(config_map("one"))
    [item] = cluster.kube.list(CONFIG_MAPS, NAMESPACE, labels="app=one")
    assert resource_of(item) is CONFIG_MAPS
    assert cluster.kube.replace(item | {"data": {"a": "b"}})["data"] == {"a": "b"}


def test_a_list_selects_by_label_and_by_field(cluster):
    for name in ("one", "two"):
        cluster.kube.create(config_map(name))
    by_label = cluster.kube.list(CONFIG_MAPS, NAMESPACE, labels="app=two")
    by_field = cluster.kube.list(CONFIG_MAPS, NAMESPACE, fields="metadata.name=two")
    assert [each["metadata"]["name"] for each in by_label + by_field] == ["two", "two"]


def test_a_namespaced_kind_without_a_namespace_is_refused_before_it_is_asked_for(cluster):
    with pytest.raises(PermanentError, match="no namespace was given"):
        cluster.kube.get(SECRETS, "one")
    assert cluster.calls == []


@pytest.mark.parametrize("name", ["../secrets/key", "a/b", "a?x=y", "a#b", "%2e%2e"])
def test_no_name_can_reach_another_object(name):
    path = CONFIG_MAPS.path(NAMESPACE, name)
    head, _, last = path.rpartition("/")
    assert head == f"/api/v1/namespaces/{NAMESPACE}/configmaps"
    assert not set(last) & set("/?#")


# -------------------------------------------------------------------------------------- writing


def test_a_taken_name_is_a_conflict(cluster):
    cluster.kube.create(config_map())
    with pytest.raises(ConflictError, match="ConfigMap inference/one"):
        cluster.kube.create(config_map())


def test_two_writers_of_one_version_the_second_loses(cluster):
    seen = cluster.kube.create(config_map(a="1"))
    cluster.kube.replace(seen | {"data": {"a": "2"}})
    with pytest.raises(ConflictError, match="409"):
        cluster.kube.replace(seen | {"data": {"a": "3"}})
    assert cluster.kube.get(CONFIG_MAPS, "one", NAMESPACE)["data"] == {"a": "2"}


def test_a_replacement_without_a_version_is_refused_for_it_would_win_blindly(cluster):
    cluster.kube.create(config_map())
    with pytest.raises(PermanentError, match="not be a compare-and-swap"):
        cluster.kube.replace(config_map(a="2"))
    assert [call.split()[0] for call in cluster.calls] == ["POST"]


def test_a_replacement_of_what_was_deleted_does_not_make_it_anew(cluster):
    seen = cluster.kube.create(config_map())
    cluster.kube.delete(CONFIG_MAPS, "one", NAMESPACE)
    with pytest.raises(MigrationError):
        cluster.kube.replace(seen)
    assert cluster.kube.get(CONFIG_MAPS, "one", NAMESPACE) is None


def test_an_invalid_object_is_a_permanent_error_and_is_not_tried_again(cluster):
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "one", "namespace": NAMESPACE},
        "spec": {"renewTime": "yesterday"},
    }
    with pytest.raises(PermanentError) as refused:
        cluster.kube.create(lease)
    assert not isinstance(refused.value, TransientError)
    assert cluster.kube.get(LEASES, "one", NAMESPACE) is None


def test_an_apply_makes_the_object_then_changes_it_and_owns_its_fields(cluster):
    cluster.kube.apply(config_map(a="1"))
    applied = cluster.kube.apply(config_map(a="2"))
    assert applied["data"] == {"a": "2"}
    assert {each["manager"] for each in applied["metadata"]["managedFields"]} == {FIELD_MANAGER}


def test_an_apply_over_somebody_elses_field_is_a_conflict_that_names_him(cluster):
    cluster.client.create("configmaps", config_map(a="1"))
    with pytest.raises(ConflictError, match=r"sandbox.*\.data\.a|\.data\.a"):
        cluster.kube.apply(config_map(a="2"))
    assert cluster.kube.apply(config_map(a="2"), force=True)["data"] == {"a": "2"}


def test_a_patch_with_a_version_is_a_compare_and_swap(cluster):
    seen = cluster.kube.create(config_map(a="1"))
    version = seen["metadata"]["resourceVersion"]
    cluster.kube.patch(CONFIG_MAPS, "one", NAMESPACE, {"data": {"b": "2"}})
    with pytest.raises(ConflictError):
        cluster.kube.patch(
            CONFIG_MAPS, "one", NAMESPACE, {"metadata": {"resourceVersion": version}, "data": {"b": "3"}}
        )


def test_a_deployment_is_scaled_through_its_scale_and_nothing_else_of_it_changes(cluster):
    cluster.give_deployment(GPU, 2)
    before = cluster.kube.get(DEPLOYMENTS, GPU, NAMESPACE)
    cluster.kube.scale(GPU, NAMESPACE, 0)
    after = cluster.kube.get(DEPLOYMENTS, GPU, NAMESPACE)
    assert after["spec"] == before["spec"] | {"replicas": 0}
    assert cluster.calls[-2].endswith(f"deployments/{GPU}/scale")


def test_a_delete_tells_whether_there_was_something_and_takes_what_it_owned_along(cluster):
    cluster.kube.create(config_map())
    assert cluster.kube.delete(CONFIG_MAPS, "one", NAMESPACE) is True
    assert cluster.sent[-1]["body"]["propagationPolicy"] == "Background"
    assert cluster.kube.delete(CONFIG_MAPS, "one", NAMESPACE) is False


def test_every_write_says_who_made_it_and_every_call_has_a_timeout(cluster):
    seen = cluster.kube.create(config_map())
    cluster.kube.replace(seen)
    cluster.kube.patch(CONFIG_MAPS, "one", NAMESPACE, {"data": {"b": "2"}})
    assert {each["query"].get("fieldManager") for each in cluster.sent} == {FIELD_MANAGER}
    cluster.kube.watching().get(CONFIG_MAPS, "one", NAMESPACE)
    assert {each["timeout_s"] for each in cluster.sent} == {CALL_TIMEOUT_S, WATCH_CALL_TIMEOUT_S}


def test_a_fence_stops_every_kind_of_write_and_no_read(cluster):
    seen = cluster.kube.create(config_map())
    cluster.give_deployment(GPU, 2)

    def forbid():
        raise NotHolderError("superseded")

    kube = cluster.kube.fenced(forbid).watching()
    cluster.calls.clear()
    for write in (
        lambda: kube.create(config_map("two")),
        lambda: kube.replace(seen),
        lambda: kube.apply(config_map()),
        lambda: kube.patch(CONFIG_MAPS, "one", NAMESPACE, {}),
        lambda: kube.scale(GPU, NAMESPACE, 0),
        lambda: kube.delete(CONFIG_MAPS, "one", NAMESPACE),
    ):
        with pytest.raises(NotHolderError):
            write()
    assert cluster.calls == []
    assert kube.get(CONFIG_MAPS, "one", NAMESPACE)["metadata"]["name"] == "one"
    assert kube.may("get", "", "secrets", NAMESPACE) is True


def test_a_kind_that_the_product_never_writes_is_refused(cluster):
    with pytest.raises(PermanentError, match="Namespace of v1"):
        cluster.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}})


def test_a_lost_answer_is_not_repeated_by_itself(cluster):
    def lost(*_):
        raise TransientError("no answer")

    cluster.after = once(lost, "POST", "configmaps")
    with pytest.raises(TransientError):
        cluster.kube.create(config_map())
    assert len(cluster.calls) == 1
    assert cluster.kube.get(CONFIG_MAPS, "one", NAMESPACE) is not None, "a failed call may have made the thing"


# ---------------------------------------------------------------------------------- subresources


def throttled(times, retry_after_s):
    """Return a client of a server that refuses so often, and what it waited and for how long it was given."""
    waits, limits = [], []

    def send(method, path, *, timeout_s, **_):
        limits.append(timeout_s)
        if len(limits) <= times:
            return Response(429, b"Too many requests", retry_after_s)
        return Response(200, b'{"kind":"ConfigMap"}')

    return Kubernetes(send, sleep=waits.append), waits, limits


def test_a_server_that_is_too_busy_is_asked_again_when_it_says():
    kube, waits, limits = throttled(2, 3.0)
    assert kube.get(CONFIG_MAPS, "one", NAMESPACE) == {"kind": "ConfigMap"}
    assert waits == [3.0, 3.0]
    assert limits == pytest.approx([CALL_TIMEOUT_S, CALL_TIMEOUT_S - 3, CALL_TIMEOUT_S - 6], abs=0.5)


def test_a_call_with_its_waits_never_takes_longer_than_its_timeout():
    kube, waits, _ = throttled(1000, 3.0)
    with pytest.raises(TransientError, match="429"):
        kube.get(CONFIG_MAPS, "one", NAMESPACE)
    assert sum(waits) < CALL_TIMEOUT_S
    kube, waits, limits = throttled(1000, 0.0)
    with pytest.raises(TransientError, match="429"):
        kube.watching().get(CONFIG_MAPS, "one", NAMESPACE)
    assert 0 < sum(waits) < WATCH_CALL_TIMEOUT_S
    assert min(limits) > 0, "a call that is given no time at all is an error of the client"


def test_a_server_that_takes_its_time_to_refuse_is_not_asked_beyond_the_timeout(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("tpu_migration.clients.kubernetes.time.monotonic", lambda: clock[0])

    def send(method, path, *, timeout_s, **_):
        clock[0] += 0.9 * timeout_s
        return Response(429, b"Too many requests", 1.0)

    def sleep(seconds):
        clock[0] += seconds

    with pytest.raises(TransientError, match="429"):
        Kubernetes(send, sleep=sleep).get(CONFIG_MAPS, "one", NAMESPACE)
    assert clock[0] <= CALL_TIMEOUT_S


def test_a_refusal_that_does_not_say_when_is_left_to_the_stage():
    kube, waits, _ = throttled(1, None)
    with pytest.raises(TransientError, match="429"):
        kube.get(CONFIG_MAPS, "one", NAMESPACE)
    assert waits == []


def give_pod(cluster, name="p0", containers=("vllm",)):
    spec = {"containers": [{"name": each, "image": "vllm/vllm-tpu:v0.32.0"} for each in containers]}
    cluster.client.create("pods", {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})


def test_a_pod_s_own_answer_comes_through_the_proxy_whatever_its_status(cluster):
    from sandbox.api import Response as Answer

    give_pod(cluster)
    asked = []

    def pod(namespace, name, port, request):
        asked.append((namespace, name, port, request.method, request.path, request.body))
        return Answer(404, {}, b'{"error":{"message":"The model does not exist."}}')

    cluster.api.pod_proxy = pod
    answer = cluster.kube.pod_proxy(NAMESPACE, "p0", 8000, "/v1/completions", "POST", {"model": "m"})
    assert (answer.status, answer.json()["error"]["message"]) == (404, "The model does not exist.")
    assert asked == [(NAMESPACE, "p0", 8000, "POST", "/v1/completions", b'{"model": "m"}')]


def test_a_pod_without_a_log_yet_has_an_empty_one(cluster):
    cluster.api.pod_logs = lambda ns, name, container, query: f"{container} {query.get('tailLines')}\n".encode()
    assert cluster.kube.pod_log(NAMESPACE, "gone") == ""
    give_pod(cluster)
    assert cluster.kube.pod_log(NAMESPACE, "p0", tail_lines=5) == "vllm 5\n"
    cluster.user = "somebody"
    with pytest.raises(PermanentError, match="403"):
        cluster.kube.pod_log(NAMESPACE, "p0")


def test_a_log_with_bytes_that_are_no_text_is_still_read(cluster):
    give_pod(cluster)
    cluster.api.pod_logs = lambda *_: b"ok \xff\n"
    assert cluster.kube.pod_log(NAMESPACE, "p0") == "ok \ufffd\n"


def test_rights_are_asked_of_the_server(cluster):
    group = HTTP_ROUTES.api_version.partition("/")[0]
    assert cluster.kube.may("update", group, "httproutes", NAMESPACE) is True
    cluster.user = "somebody"
    assert cluster.kube.may("update", group, "httproutes", NAMESPACE) is False
    assert cluster.kube.may("create", "", "pods/proxy", NAMESPACE) is False
    assert cluster.kube.may("list", "", "nodes", None) is False
    assert list(cluster.kube.rules(NAMESPACE)) == []


# ------------------------------------------------------- over HTTP, through the official client


@pytest.fixture
def server(cluster):
    """Serve the API on loopback, as the official client meets it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            path, _, query = self.path.partition("?")
            from urllib.parse import parse_qsl, unquote

            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {key.lower(): value for key, value in self.headers.items()}
            answer = cluster.api.handle(
                Request(self.command, unquote(path), dict(parse_qsl(query)), headers, body, cluster.user)
            )
            self.send_response(answer.status)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def official(url):
    from kubernetes import client

    configuration = client.Configuration(host=url)
    configuration.retries = False
    return Kubernetes(client_transport(client.ApiClient(configuration)), timeout_s=5.0)


def test_the_official_client_s_transport_keeps_status_message_and_body(cluster, server):
    kube = official(server)
    assert kube.get(SECRETS, "one", NAMESPACE) is None
    seen = kube.create(config_map(a="1"))
    assert kube.apply(config_map("two", a="1"))["data"] == {"a": "1"}
    kube.patch(CONFIG_MAPS, "one", NAMESPACE, {"data": {"b": "2"}})
    with pytest.raises(ConflictError, match="the object has been modified"):
        kube.replace(seen)
    assert [each["metadata"]["name"] for each in kube.list(CONFIG_MAPS, NAMESPACE, labels="app=one")] == ["one"]
    assert kube.delete(CONFIG_MAPS, "one", NAMESPACE) is True
    assert kube.delete(CONFIG_MAPS, "one", NAMESPACE) is False
    with pytest.raises(PermanentError, match="CRD"):
        kube.get(Resource("kueue.x-k8s.io/v1", "Queue", "queues"), "one", NAMESPACE)
    cluster.user = "somebody"
    with pytest.raises(PermanentError, match='services is forbidden: User "somebody" cannot list'):
        kube.list(SERVICES, NAMESPACE)


@pytest.mark.parametrize(
    ("headers", "seconds"), [({"Retry-After": "2"}, 2.0), ({}, None), ({"Retry-After": "x"}, None)]
)
def test_a_transport_tells_when_to_come_again(headers, seconds):
    answer = SimpleNamespace(status=429, data=b"Too Many Requests", headers=headers)
    busy = SimpleNamespace(
        rest_client=SimpleNamespace(pool_manager=SimpleNamespace(request=lambda *_, **__: answer)),
        configuration=SimpleNamespace(host="https://c"),
        update_params_for_auth=lambda *_: None,
    )
    found = client_transport(busy)("GET", "/x", query={}, content_type="", body=None, timeout_s=1.0)
    assert (found.status, found.retry_after_s) == (429, seconds)


@pytest.fixture
def tls(tmp_path):
    """Serve what was asked for, over TLS with a certificate of an authority of one's own."""
    ours = CertificateAuthority(tmp_path)
    issued = ours.issue("apiserver", ["127.0.0.1"])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"path": self.path, "token": self.headers["Authorization"]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(issued.cert, issued.key)
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f"https://127.0.0.1:{httpd.server_port}", ours.pem.decode()
        httpd.shutdown()


def test_each_call_carries_the_token_of_its_moment(tls):
    host, authority = tls
    tokens = iter(["first", "second"])
    kube = Kubernetes(token_transport(host, authority, lambda: next(tokens)), timeout_s=5.0)
    assert [kube.get(NODES, "one")["token"] for _ in range(2)] == ["Bearer first", "Bearer second"]


def test_a_cluster_with_another_certificate_gets_no_token(tls, tmp_path):
    host, _ = tls
    other = CertificateAuthority(tmp_path / "other").pem.decode()
    with pytest.raises(PermanentError, match="check the cluster's certificate"):
        Kubernetes(token_transport(host, other, lambda: "secret"), timeout_s=5.0).get(NODES, "one")


def test_a_proxy_of_the_environment_is_gone_through_and_one_s_own_hosts_are_not(tls, monkeypatch):
    host, authority = tls
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(TransientError, match="proxy"):
        Kubernetes(token_transport(host, authority, lambda: "t"), timeout_s=5.0).get(NODES, "one")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert Kubernetes(token_transport(host, authority, lambda: "t"), timeout_s=5.0).get(NODES, "one")


def test_a_server_that_is_away_is_transient(server):
    free = "http://127.0.0.1:9"  # the discard port: nobody listens
    with pytest.raises(TransientError, match="no answer to GET"):
        official(free).get(SECRETS, "one", NAMESPACE)


def test_without_any_kubeconfig_a_person_is_told_what_to_set(monkeypatch, tmp_path):
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"), raising=True
    )
    monkeypatch.setattr("kubernetes.config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"), raising=False)
    with pytest.raises(PermanentError, match="set KUBECONFIG, or run inside a pod"):
        from_environment()
