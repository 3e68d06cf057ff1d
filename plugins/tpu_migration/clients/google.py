"""Reach a GKE cluster with Google credentials, wherever they come from: an Airflow connection or a person's own."""

from __future__ import annotations

import functools
import threading
from typing import Any

from tpu_migration.clients.kubernetes import Kubernetes, client_transport
from tpu_migration.errors import PermanentError, TransientError

_CALL_TIMEOUT_S = 10.0
_TOKEN_TIMEOUT_S = 5.0
_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)


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
    return Kubernetes(client_transport(_api_client(found, credentials)))


def _api_client(cluster: Any, credentials: Any) -> Any:
    """Return a client that never retries by itself: a stage reads before it repeats a write.

    Tokens are refreshed by one thread at a time, with a short timeout; a token endpoint that does not answer is
    transient, like an API that does not.
    """
    from kubernetes import client
    from kubernetes.config.kube_config import FileOrData

    refreshing = threading.Lock()
    # Release 36 of the client renamed the key: https://github.com/kubernetes-client/python/issues/2582
    names = ("authorization", "BearerToken")

    def refresh(configuration: Any) -> None:
        with refreshing:
            configuration.api_key = dict.fromkeys(names, token_of(credentials))

    authority = {"certificate-authority-data": cluster.master_auth.cluster_ca_certificate}
    configuration = client.Configuration(
        host=f"https://{cluster.endpoint}", api_key_prefix=dict.fromkeys(names, "Bearer")
    )
    configuration.ssl_ca_cert = FileOrData(authority, file_key_name="certificate-authority").as_file()
    configuration.retries = False
    configuration.connection_pool_maxsize = 16
    refresh(configuration)  # a configuration without a key when it is made sends none later
    configuration.refresh_api_key_hook = refresh
    return client.ApiClient(configuration)


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
