"""Every server is asked for its certificate, and one that a stranger has signed gets no word of ours, no token."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials

from sandbox.pki import CertificateAuthority
from tpu_migration.bench.stream import exchange, session
from tpu_migration.clients import google
from tpu_migration.clients.iam import Permissions
from tpu_migration.clients.kubernetes import CONFIG_MAPS, Kubernetes
from tpu_migration.clients.matrices import Matrices
from tpu_migration.clients.prometheus import Prometheus
from tpu_migration.clients.transport import token_transport
from tpu_migration.errors import MigrationError, PermanentError, TransientError

ROOT = Path(__file__).parents[2]
# What turns verification off, in the libraries that talk to servers here.
UNVERIFIED = re.compile(
    r"verify\s*=\s*False|verify_ssl\s*=\s*False|\bssl\s*=\s*(?:False|None)|CERT_NONE|check_hostname\s*=\s*False"
    r"|_create_unverified|insecure_channel|assert_hostname|disable_warnings|insecure[-_]skip|TCPConnector\([^)]*ssl"
)
TOKEN = "ya29.never-to-be-sent"


class Stranger(ThreadingHTTPServer):
    """A server of the right address with a certificate that nobody trusts; `heard` is what got through to it."""

    def __init__(self, ca: CertificateAuthority) -> None:
        heard: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                heard.append(f"{self.path} {self.headers.get('Authorization')}")
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            do_POST = do_PUT = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        issued = ca.issue("stranger", ["127.0.0.1", "localhost"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(issued.cert, issued.key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.heard = heard
        self.host = f"127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """A client that goes away in mid-handshake is what is wanted."""


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Stranger]:
    server = Stranger(CertificateAuthority(tmp_path / "theirs"))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def cluster_at(host: str, ca: CertificateAuthority) -> Kubernetes:
    """Return the client of a cluster by what GKE tells of it: its endpoint, and the CA to trust."""
    return Kubernetes(token_transport(f"https://{host}", ca.pem.decode(), lambda: TOKEN))


def test_a_kubernetes_api_with_a_certificate_of_another_ca_is_refused(stranger, tmp_path):
    kube = cluster_at(stranger.host, CertificateAuthority(tmp_path / "ours"))
    with pytest.raises(PermanentError, match=r"(?i)certificate"):
        kube.get(CONFIG_MAPS, "one", "inference")
    assert stranger.heard == []


def test_an_api_that_goes_away_in_mid_handshake_may_come_back(tmp_path):
    """A control plane that restarts does so: a migration that ended by it would have ended for nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                connection.recv(1)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(65536)
                connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        port = listening.getsockname()[1]
        kube = cluster_at(f"127.0.0.1:{port}", CertificateAuthority(tmp_path / "ours"))
        with pytest.raises(TransientError):
            kube.get(CONFIG_MAPS, "one", "inference")
        listening.shutdown(socket.SHUT_RDWR)


def test_the_same_api_is_believed_with_the_ca_that_gke_tells(stranger, tmp_path):
    """Else the tests here would pass on a server that nobody reaches."""
    kube = cluster_at(stranger.host, CertificateAuthority(tmp_path / "theirs"))
    kube.get(CONFIG_MAPS, "one", "inference")
    assert stranger.heard == [f"/api/v1/namespaces/inference/configmaps/one Bearer {TOKEN}"]


def test_googles_clients_refuse_it(stranger):
    from google.api_core.client_options import ClientOptions
    from google.cloud import container_v1

    options = ClientOptions(api_endpoint=stranger.host)
    manager = container_v1.ClusterManagerClient(credentials=AnonymousCredentials(), client_options=options)
    with pytest.raises(MigrationError):
        google.kubernetes_of(manager, AnonymousCredentials(), "projects/p/locations/l/clusters/c", "check")
    assert stranger.heard == []


def test_what_asks_over_http_refuses_it(stranger):
    url = f"https://{stranger.host}"
    for ask in (
        lambda: Permissions("p", lambda: TOKEN, url).missing(),
        lambda: Prometheus(url).peak("inference", "vllm", 0.0),
        lambda: Matrices(url).read("release/v6e.csv"),
    ):
        with pytest.raises(MigrationError):
            ask()
    assert stranger.heard == []


def test_the_load_generator_and_the_prober_count_it_as_a_failure(stranger):
    async def ask() -> str | None:
        async with session(5.0) as client:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            found = await exchange(client, f"https://{stranger.host}/v1/completions", b"{}", headers, asked_tokens=1)
        return found.error

    error = asyncio.run(ask())
    assert error is not None
    assert "Certificate" in error
    assert TOKEN not in error
    assert stranger.heard == []


def test_no_line_of_ours_turns_verification_off():
    files = [file for folder in ("plugins", "dags", "deployment") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    found = [f"{file}: {line}" for file in files for line in file.read_text().splitlines() if UNVERIFIED.search(line)]
    assert found == []


@pytest.mark.parametrize("url", ["http://metrics.example", "https://metrics.example"])
def test_a_token_is_sent_over_tls_to_google_and_to_nobody_else(url):
    """A server that the plan names is asked without credentials, whatever it is."""
    assert Prometheus(url, lambda: TOKEN)._token is None
    assert Prometheus("https://monitoring.googleapis.com/v1/projects/p", lambda: TOKEN)._token is not None


def test_a_token_is_never_sent_in_the_clear():
    assert Prometheus("http://monitoring.googleapis.com/v1/projects/p", lambda: TOKEN)._token is None
    with pytest.raises(PermanentError, match="https"):
        Permissions("p", lambda: TOKEN, "http://resource-manager.example").missing()
