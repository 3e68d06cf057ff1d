"""Ask a Prometheus server, Google's managed one included, how busy a workload was."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tpu_migration.errors import PermanentError, TransientError

TIMEOUT_S = 10.0
# https://cloud.google.com/stackdriver/docs/managed-prometheus/query-api-ui: the same API, for Cloud Monitoring's data.
MANAGED = "https://monitoring.googleapis.com/v1/projects/{project_id}/location/global/prometheus"
_STEP_S = 300
_HISTORY_S = 14 * 86_400  # 4,032 points of five minutes; a server gives 11,000 at most


@dataclass(frozen=True)
class Peak:
    """The highest rate seen: requests a second over five minutes, when that was, and how much history there was."""

    rps: float
    at: float  # Unix seconds
    history_s: float


def prometheus_of(url: str, project_id: str, token: Callable[[], str]) -> Prometheus | None:
    """Return the server that a plan names, None if it names none; `gmp` is the project's managed one."""
    if not url:
        return None
    return Prometheus(MANAGED.format(project_id=project_id) if url == "gmp" else url, token)


class Prometheus:
    """Read one server. `token` gives a bearer token; it is sent to Google's hosts only, over TLS."""

    def __init__(self, url: str, token: Callable[[], str] | None = None, session: Any = None) -> None:
        import requests

        self._url = url.rstrip("/")
        parts = urlsplit(self._url)
        googles = f".{parts.hostname or ''}".endswith(".googleapis.com")
        self._token = token if googles and parts.scheme == "https" else None
        self._session = session or requests.Session()

    @property
    def url(self) -> str:
        """The address that is asked, without what it is asked."""
        return self._url

    def peak(self, namespace: str, workload: str, now: float) -> Peak:
        """Return the highest rate of finished requests of a Deployment's pods in the last 14 days.

        Raises PermanentError where nothing is known of them: no data is no peak of zero.
        """
        # A Deployment's pods are NAME-HASH-SUFFIX; one more part would be another Deployment's.
        pods = f"{workload}-[a-z0-9]+-[a-z0-9]+"
        query = f'sum(rate(vllm:request_success_total{{namespace="{namespace}",pod=~"{pods}"}}[5m]))'
        answer = self._range(query, now - _HISTORY_S, now)
        points = [(float(at), float(value)) for each in answer for at, value in each["values"]]
        known = [(at, value) for at, value in points if math.isfinite(value)]
        if not known or max(value for _, value in known) <= 0:
            raise PermanentError(
                f"{self._url} knows no request to the pods of {workload} in namespace {namespace} in the last 14 days "
                f"({query}): is vLLM's /metrics scraped into it? Else give peak_rps"
            )
        at, rps = max(known, key=lambda point: point[1])
        return Peak(rps, at, known[-1][0] - known[0][0] + _STEP_S)

    def _range(self, query: str, start: float, end: float) -> list[Mapping[str, Any]]:
        import requests

        asked = {"query": query, "start": f"{start:.0f}", "end": f"{end:.0f}", "step": str(_STEP_S)}
        headers = {"Authorization": f"Bearer {self._token()}"} if self._token else {}
        try:
            answer = self._session.post(
                f"{self._url}/api/v1/query_range", data=asked, headers=headers, timeout=TIMEOUT_S, allow_redirects=False
            )
        except requests.exceptions.SSLError as error:
            raise PermanentError(f"{self._url}: its certificate is not trusted: {error}") from error
        except requests.exceptions.RequestException as error:
            raise TransientError(f"{self._url} does not answer: {error}") from error
        if answer.status_code == 429 or answer.status_code >= 500:
            raise TransientError(f"{self._url} answers {answer.status_code}: {answer.text[:200]}")
        if answer.status_code != 200:
            raise PermanentError(
                f"{self._url} answers {answer.status_code}: {answer.text[:200]}; check prometheus_url, and that the "
                "connection's service account may read metrics (roles/monitoring.viewer); else give peak_rps"
            )
        try:
            data = answer.json()["data"]
            return list(data["result"]) if data["resultType"] == "matrix" else []
        except (ValueError, KeyError, TypeError) as error:
            raise PermanentError(
                f"{self._url} gives no Prometheus answer ({answer.text[:80]!r}): "
                "give the server's own address, without /api"
            ) from error
