"""Without a key in any connection: the machine's own identity, or a chain of accounts that it may impersonate."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import google.auth
import pytest
from airflow.sdk import Connection
from google.auth import iam
from google.auth.credentials import Credentials, Scoped
from google.auth.impersonated_credentials import Credentials as Impersonated

from tpu_migration.clients.google import EMAIL_SCOPE, token_of
from tpu_migration.errors import PermanentError
from tpu_migration.hooks.migration import ClusterHook

FIRST, LAST = "hop@p.iam.gserviceaccount.com", "migrator@p.iam.gserviceaccount.com"
OF_THE_MACHINE, OF_THE_LAST = "ya29.machine", "ya29.migrator"


class Machine(Credentials, Scoped):
    """The identity that Workload Identity gives to a pod: a token from the metadata server, and no key."""

    def __init__(self) -> None:
        super().__init__()
        self.token = OF_THE_MACHINE

    requires_scopes = True

    def with_scopes(self, scopes, default_scopes=None):
        return self

    def refresh(self, request):
        self.token = OF_THE_MACHINE


@pytest.fixture
def asked(monkeypatch):
    """What Google's IAM Credentials API is asked, by a pod with an identity of its own; `status` is its answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.asked.append((unquote(self.path), self.headers["authorization"], body))
            self.send_response(server.status)
            self.end_headers()
            expires = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
            self.wfile.write(json.dumps({"accessToken": OF_THE_LAST, "expireTime": expires}).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.status = [], 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}/v1/projects/-/serviceAccounts/{{}}:generateAccessToken"
    monkeypatch.setattr(iam, "_IAM_ENDPOINT", here)
    monkeypatch.setattr(google.auth, "default", lambda *_, **__: (Machine(), "p"))
    yield server
    server.shutdown()
    server.server_close()


def hook(monkeypatch, **extra) -> ClusterHook:
    made = Connection(conn_id="google_cloud_default", conn_type="google_cloud_platform", extra=json.dumps(extra))
    monkeypatch.setattr(ClusterHook, "get_connection", classmethod(lambda cls, conn_id: made))
    return ClusterHook("google_cloud_default", "p", "us-central1-a", "inference")


def test_a_connection_without_a_key_is_the_machines_own_identity(asked, monkeypatch):
    assert token_of(hook(monkeypatch).get_credentials()) == OF_THE_MACHINE
    assert asked.asked == []


def test_a_chain_of_accounts_is_walked_to_its_last(asked, monkeypatch):
    credentials = hook(monkeypatch, impersonation_chain=f"{FIRST},{LAST}").get_credentials()
    assert isinstance(credentials, Impersonated)
    assert token_of(credentials) == OF_THE_LAST
    ((path, authorization, body),) = asked.asked
    assert path == f"/v1/projects/-/serviceAccounts/{LAST}:generateAccessToken"
    assert authorization == f"Bearer {OF_THE_MACHINE}"
    assert body["delegates"] == [FIRST]
    assert body["scope"] == ["https://www.googleapis.com/auth/cloud-platform", EMAIL_SCOPE]


def test_every_client_of_a_run_acts_as_the_last_of_the_chain(asked, monkeypatch):
    made = hook(monkeypatch, impersonation_chain=LAST)
    assert made.token() == OF_THE_LAST
    assert made.get_cluster_manager_client().transport._credentials is made.get_credentials()


def test_an_account_that_may_not_impersonate_is_told_so(asked, monkeypatch):
    asked.status = 403
    credentials = hook(monkeypatch, impersonation_chain=LAST).get_credentials()
    with pytest.raises(PermanentError, match="no token for the credentials"):
        token_of(credentials)
