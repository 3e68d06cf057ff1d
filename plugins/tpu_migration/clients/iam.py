"""Ask Google which permissions the caller has, on a project or on a service account."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from tpu_migration.errors import PermanentError, TransientError

ENDPOINT = "https://cloudresourcemanager.googleapis.com"
IAM_ENDPOINT = "https://iam.googleapis.com"
TIMEOUT_S = 10.0
# What making, following and deleting node pools takes:
# https://cloud.google.com/kubernetes-engine/docs/reference/rest/v1/projects.locations.clusters.nodePools/create
NEEDED = (
    "container.clusters.get",
    "container.clusters.update",
    "container.operations.get",
    "container.operations.list",
)
READ_METRICS = "monitoring.timeSeries.list"  # where the peak comes from Google's managed Prometheus
ACT_AS = "iam.serviceAccounts.actAs"  # on the nodes' service account, to make nodes that run as it
_HERE = ("localhost", "127.0.0.1", "::1")


class Permissions:
    """Test the caller's permissions on one project, and on service accounts; `endpoint` answers in Google's place."""

    def __init__(self, project_id: str, token: Callable[[], str], endpoint: str = "", session: Any = None) -> None:
        import requests

        self._project, self._endpoint = project_id, endpoint
        self._token, self._session = token, session or requests.Session()

    def missing(self, wanted: Sequence[str] = NEEDED, account: str = "") -> list[str]:
        """Return those that the caller lacks, on the service account `account` or else on the project.

        Raises TransientError or PermanentError where Google does not say: its API may be off.
        https://cloud.google.com/iam/docs/reference/rest/v1/projects.serviceAccounts/testIamPermissions
        """
        import requests

        if account:
            url = f"{self._endpoint or IAM_ENDPOINT}/v1/projects/-/serviceAccounts/{account}:testIamPermissions"
        else:
            url = f"{self._endpoint or ENDPOINT}/v1/projects/{self._project}:testIamPermissions"
        parts = urlsplit(url)
        if parts.scheme != "https" and parts.hostname not in _HERE:
            raise PermanentError(f"{url} is no https address: a token is not sent in the clear")
        headers = {"Authorization": f"Bearer {self._token()}"}
        try:
            answer = self._session.post(
                url, json={"permissions": list(wanted)}, headers=headers, timeout=TIMEOUT_S, allow_redirects=False
            )
        except requests.exceptions.RequestException as error:
            raise TransientError(f"{url} does not answer: {type(error).__name__}") from error
        if answer.status_code != 200:
            raise PermanentError(f"{url} answers {answer.status_code}: {' '.join(answer.text.split())[:160]}")
        try:
            granted = answer.json().get("permissions") or []
        except (ValueError, AttributeError) as error:
            raise PermanentError(f"{url} gives no JSON object") from error
        return [each for each in wanted if each not in granted]
