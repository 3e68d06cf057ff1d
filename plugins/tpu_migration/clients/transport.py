"""Carry requests to a Kubernetes API server: raw JSON over urllib3, and nothing that repeats by itself.

The official client is asked for a person's kubeconfig only. To load it costs a task more than all its calls, a third of
Airflow's own start, for models and APIs of which this product uses none.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

import msgspec

from tpu_migration.errors import PermanentError, TransientError

# Of one API server's; whoever comes when all are taken opens one more for a single call.
_CONNECTIONS_KEPT = 64
_USER_AGENT = "tpu-migration"


@dataclass(frozen=True)
class Response:
    """What the API server answered, read to its end."""

    status: int
    body: bytes
    retry_after_s: float | None = None  # what a server that refuses for now asks for

    def json(self) -> Any:
        """Return the body as JSON values; an answer that was cut short is none, and may come whole next time."""
        try:
            return msgspec.json.decode(self.body)
        except ValueError as error:
            raise TransientError(f"an answer of {len(self.body)} bytes is no JSON: {error}") from error


class Transport(Protocol):
    """Send one request; raise TransientError if no answer came."""

    def __call__(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        content_type: str,
        body: Any,
        timeout_s: float,
    ) -> Response:
        """Return the answer, whatever its status."""
        ...


def token_transport(host: str, authority_pem: str, token: Callable[[], str]) -> Transport:
    """Return the transport to a host (https://…) with a certificate of that authority, for bearer tokens.

    It goes through the proxy that HTTPS_PROXY and NO_PROXY name, if they do. `token` is asked before each call.
    """
    import urllib3
    from requests.utils import get_environ_proxies

    options: dict[str, Any] = {
        "maxsize": _CONNECTIONS_KEPT,
        "ssl_context": ssl.create_default_context(cadata=authority_pem),
    }
    proxy = get_environ_proxies(host).get("https")
    pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
    return _transport(pool, host, lambda: {"Authorization": f"Bearer {token()}"})


def client_transport(api_client: Any) -> Transport:
    """Return the transport of a `kubernetes.client.ApiClient`, with its TLS, credentials and pool."""

    def authorization() -> dict[str, str]:
        headers: dict[str, str] = {}
        api_client.update_params_for_auth(headers, [], ["BearerToken"])
        return headers

    return _transport(api_client.rest_client.pool_manager, api_client.configuration.host, authorization)


def _transport(pool: Any, host: str, authorization: Callable[[], Mapping[str, str]]) -> Transport:
    import urllib3

    def send(
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        content_type: str,
        body: Any,
        timeout_s: float,
    ) -> Response:
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": _USER_AGENT}
        try:
            answer = pool.request(
                method,
                f"{host}{path}?{urlencode(query)}" if query else f"{host}{path}",
                body=None if body is None else json.dumps(body).encode(),
                headers={**headers, **authorization()},
                timeout=timeout_s,
                retries=False,
            )
        except urllib3.exceptions.SSLError as error:
            # One that is not trusted, or a connection that was cut while it was being shown.
            if "certificate" in str(error).lower():
                raise PermanentError(f"{method} {path}: {error}: check the cluster's certificate") from error
            raise TransientError(f"no answer to {method} {path} within {timeout_s} s: {error}") from error
        except urllib3.exceptions.HTTPError as error:
            raise TransientError(f"no answer to {method} {path} within {timeout_s} s: {error}") from error
        return Response(answer.status, answer.data, _seconds(answer.headers.get("Retry-After", "")))

    return send


def _seconds(retry_after: str) -> float | None:
    """Return Retry-After in seconds; the API server gives no dates."""
    return float(retry_after) if retry_after.isdigit() else None
