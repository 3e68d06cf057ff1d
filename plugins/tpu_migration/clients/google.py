"""Reach a GKE cluster with Google credentials, wherever they come from: an Airflow connection or a person's own."""

from __future__ import annotations

import base64
import functools
import threading
from collections.abc import Callable
from typing import Any

from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.clients.transport import token_transport
from tpu_migration.errors import PermanentError, TransientError

_CALL_TIMEOUT_S = 10.0
_TOKEN_TIMEOUT_S = 5.0
# Without the second GKE knows a service account by its numeric id, and a RoleBinding by its e-mail is of no use
# (gke-gcloud-auth-plugin asks for both, too).
EMAIL_SCOPE = "https://www.googleapis.com/auth/userinfo.email"
_SCOPES = ("https://www.googleapis.com/auth/cloud-platform", EMAIL_SCOPE)


def cluster_manager(key_file: str = "", api_endpoint: str = "") -> tuple[Any, Any]:
    """Return a ClusterManagerClient and its credentials: of a key file, else Application Default Credentials.

    `api_endpoint` (host:port) sends the calls elsewhere. Raises PermanentError where there are no credentials.
    """
    import google.auth
    from google.api_core.client_options import ClientOptions
    from google.auth import exceptions as auth
    from google.cloud import container_v1
    from google.oauth2 import service_account

    try:
        if key_file:
            credentials = service_account.Credentials.from_service_account_file(key_file, scopes=_SCOPES)
        else:
            credentials, _ = google.auth.default(scopes=_SCOPES)
    except (auth.GoogleAuthError, OSError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise PermanentError(
            f"no Google credentials{f' in {key_file}' if key_file else ''}: {first}; run `gcloud auth "
            "application-default login`, or give the key of a service account"
        ) from error
    options = ClientOptions(api_endpoint=api_endpoint) if api_endpoint else None
    return container_v1.ClusterManagerClient(credentials=credentials, client_options=options), credentials


def kubernetes_of(manager: Any, credentials: Any, cluster: str, remedy: str) -> Kubernetes:
    """Return the client of a cluster's API; its endpoint and CA come from the GKE API.

    `cluster` is projects/P/locations/L/clusters/C. Raises PermanentError, ending in `remedy`, for a cluster that is not
    there or not allowed, TransientError for an API that does not answer.
    """
    from google.api_core import exceptions
    from google.auth import exceptions as auth

    try:
        found = manager.get_cluster(request={"name": cluster}, retry=None, timeout=_CALL_TIMEOUT_S)
    except (exceptions.ServiceUnavailable, exceptions.DeadlineExceeded, auth.TransportError) as error:
        raise TransientError(f"the GKE API does not answer for {cluster}: {error}") from error
    except (exceptions.GoogleAPICallError, auth.GoogleAuthError) as error:
        raise PermanentError(f"cannot reach cluster {cluster}: {error}; {remedy}") from error
    authority = base64.b64decode(found.master_auth.cluster_ca_certificate).decode()
    token = _shared_token(credentials)
    token()  # credentials that give none are told of here
    return Kubernetes(token_transport(f"https://{found.endpoint}", authority, token))


def _shared_token(credentials: Any) -> Callable[[], str]:
    """Return what gives a valid token to any thread; one of them at a time refreshes it."""
    refreshing = threading.Lock()

    def token() -> str:
        with refreshing:
            return token_of(credentials)

    return token


def token_of(credentials: Any) -> str:
    """Return a bearer token that is valid now; TransientError where its endpoint does not answer."""
    from google.auth import exceptions as auth
    from google.auth.transport.requests import Request

    if credentials.token is None or credentials.expired:
        try:
            credentials.refresh(functools.partial(Request(), timeout=_TOKEN_TIMEOUT_S))
        except auth.TransportError as error:
            raise TransientError(f"the token endpoint does not answer: {error}") from error
        except auth.RefreshError as error:
            kind = TransientError if getattr(error, "retryable", False) else PermanentError
            raise kind(f"no token for the credentials: {error}") from error
    return str(credentials.token)
