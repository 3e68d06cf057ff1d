"""Ask Google which permissions a project gives to the caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tpu_migration.errors import PermanentError, TransientError

ENDPOINT = "https://cloudresourcemanager.googleapis.com"
TIMEOUT_S = 10.0
# What making, following and deleting node pools takes:
# https://cloud.google.com/kubernetes-engine/docs/reference/rest/v1/projects.locations.clusters.nodePools/create
NEEDED = (
    "container.clusters.get",
    "container.clusters.update",
    "container.operations.get",
    "container.operations.list",
)


class Permissions:
    """Test the caller's permissions on one project."""

    def __init__(self, project_id: str, token: Callable[[], str], endpoint: str = "", session: Any = None) -> None:
        import requests

        self._url = f"{endpoint or ENDPOINT}/v1/projects/{project_id}:testIamPermissions"
        self._token, self._session = token, session or requests.Session()

    def missing(self, wanted: Sequence[str] = NEEDED) -> list[str]:
        """Return those that the caller lacks.

        Raises TransientError or PermanentError where Google does not say: its Resource Manager API may be off.
        """
        import requests

        headers = {"Authorization": f"Bearer {self._token()}"}
        try:
            answer = self._session.post(
                self._url, json={"permissions": list(wanted)}, headers=headers, timeout=TIMEOUT_S, allow_redirects=False
            )
        except requests.exceptions.RequestException as error:
            raise TransientError(f"{self._url} does not answer: {type(error).__name__}") from error
        if answer.status_code != 200:
            raise PermanentError(f"{self._url} answers {answer.status_code}: {' '.join(answer.text.split())[:160]}")
        try:
            granted = answer.json().get("permissions") or []
        except (ValueError, AttributeError) as error:
            raise PermanentError(f"{self._url} gives no JSON object") from error
        return [each for each in wanted if each not in granted]
