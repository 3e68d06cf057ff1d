"""The peak that monitoring remembers, and the permissions that Google tells: no answer is ever taken for a good one."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest

from tpu_migration.clients.iam import ACT_AS, NEEDED, Permissions
from tpu_migration.clients.prometheus import Prometheus, prometheus_of
from tpu_migration.errors import PermanentError, TransientError

NOW = 1_795_600_000.0


class Answering:
    """A server on loopback that gives one answer and keeps what it was asked."""

    def __init__(self, status=200, body=None, text=None):
        self.asked = []
        reply = (json.dumps(body) if text is None else text).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):
                sent = handler.rfile.read(int(handler.headers["Content-Length"])).decode()
                self.asked.append((handler.path, dict(handler.headers), sent))
                handler.send_response(status)
                handler.send_header("Content-Length", str(len(reply)))
                handler.end_headers()
                handler.wfile.write(reply)

            def log_message(handler, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def matrix(*values):
    """A range answer, five minutes a point, ending now."""
    points = [[NOW - 300 * (len(values) - 1 - index), str(value)] for index, value in enumerate(values)]
    return {"status": "success", "data": {"resultType": "matrix", "result": [{"metric": {}, "values": points}]}}


def peak(server):
    return Prometheus(server.url).peak("inference", "vllm", NOW)


def test_the_peak_is_the_highest_rate_with_its_time_and_the_history_behind_it():
    with Answering(body=matrix(1.5, 7.25, "NaN", 3)) as server:
        found = peak(server)
    assert (found.rps, found.at, found.history_s) == (7.25, NOW - 600, 1200)
    path, headers, sent = server.asked[0]
    asked = parse_qs(sent)
    assert path == "/api/v1/query_range"
    assert "Authorization" not in headers
    assert float(asked["end"][0]) - float(asked["start"][0]) == 14 * 86_400
    assert asked["query"] == [
        'sum(rate(vllm:request_success_total{namespace="inference",pod=~"vllm-[a-z0-9]+-[a-z0-9]+"}[5m]))'
    ]


@pytest.mark.parametrize(
    "body",
    [
        matrix(),
        matrix(0, 0),
        matrix("NaN", "NaN"),
        {"status": "success", "data": {"resultType": "matrix", "result": []}},
        {"status": "success", "data": {"resultType": "vector", "result": []}},
    ],
)
def test_no_data_is_no_peak_of_zero(body):
    with Answering(body=body) as server, pytest.raises(PermanentError, match="knows no request"):
        peak(server)


@pytest.mark.parametrize(
    ("status", "text", "kind", "told"),
    [
        (500, "boom", TransientError, "answers 500: boom"),
        (429, "slow", TransientError, "answers 429"),
        (403, "no", PermanentError, r"roles/monitoring\.viewer"),
        (302, "", PermanentError, "answers 302"),
        (200, "<html>", PermanentError, "no Prometheus answer"),
        (200, "[]", PermanentError, "no Prometheus answer"),
    ],
)
def test_an_answer_that_is_none_says_whether_it_may_pass(status, text, kind, told):
    with Answering(status, text=text) as server, pytest.raises(kind, match=told):
        peak(server)


def test_a_server_that_is_not_there_may_come_back():
    with Answering(body={}) as server:
        url = server.url
    with pytest.raises(TransientError, match="does not answer"):
        Prometheus(url).peak("inference", "vllm", NOW)


class Recorded:
    """A session that sends nothing, and keeps the headers."""

    def __init__(self):
        self.headers = None

    def post(self, url, *, headers, **_):
        self.headers = headers
        raise AssertionError(url)


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("gmp", True),
        ("https://prometheus.example", False),
        ("https://googleapis.com.evil.example", False),
        ("https://evil-googleapis.com", False),
    ],
)
def test_the_token_goes_to_googles_hosts_and_nowhere_else(url, sent):
    server = prometheus_of(url, "p", lambda: "ya29.secret")
    server._session = session = Recorded()
    with pytest.raises(AssertionError):
        server.peak("n", "w", NOW)
    assert ("Authorization" in session.headers) is sent


def test_a_plan_without_a_server_has_none():
    assert prometheus_of("", "p", lambda: "t") is None


def test_each_missing_permission_is_named():
    with Answering(body={"permissions": ["container.clusters.get"]}) as server:
        missing = Permissions("p", lambda: "t", server.url).missing()
    assert missing == [each for each in NEEDED if each != "container.clusters.get"]
    path, headers, sent = server.asked[0]
    assert (path, headers["Authorization"]) == ("/v1/projects/p:testIamPermissions", "Bearer t")
    assert json.loads(sent) == {"permissions": list(NEEDED)}


def test_whether_nodes_may_run_as_an_account_is_asked_of_the_account():
    """A project's own answer knows nothing of what is granted on the account alone."""
    account = "tpu-nodes@p.iam.gserviceaccount.com"
    with Answering(body={}) as server:
        assert Permissions("p", lambda: "t", server.url).missing([ACT_AS], account) == [ACT_AS]
    assert server.asked[0][0] == f"/v1/projects/-/serviceAccounts/{account}:testIamPermissions"


def test_an_empty_answer_means_that_all_are_missing():
    with Answering(body={}) as server:
        assert Permissions("p", lambda: "t", server.url).missing() == list(NEEDED)


@pytest.mark.parametrize(("status", "text"), [(403, "API has not been used in project p before"), (200, "no json")])
def test_where_google_does_not_say_nothing_is_taken_for_granted(status, text):
    with Answering(status, text=text) as server, pytest.raises(PermanentError):
        Permissions("p", lambda: "t", server.url).missing()
