"""Make the clients of a migration from an Airflow connection, the way the Google provider does."""

from __future__ import annotations

import functools
import threading
from typing import Any

from airflow.providers.google.cloud.hooks.kubernetes_engine import GKEClusterConnection, GKEHook
from google.api_core.client_options import ClientOptions

from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.kubernetes import Kubernetes, client_transport
from tpu_migration.domain.plan import Plan
from tpu_migration.errors import PermanentError, TransientError

_TOKEN_TIMEOUT_S = 5.0


class MigrationHook(GKEHook):  # type: ignore[misc]
    """Reach one GKE cluster: its node pools, and the Kubernetes API behind its endpoint.

    The connection is of type `google_cloud_platform`. Its extra `api_endpoint` (host:port) sends
    the GKE calls elsewhere, e.g. to a private endpoint.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(gcp_conn_id=plan.gcp_conn_id, location=plan.location)
        self._plan = plan

    def get_client_options(self, *args: Any, **kwargs: Any) -> ClientOptions | None:
        """Return the options of Google's clients, with the connection's own endpoint if it has one."""
        endpoint = self._get_field("api_endpoint", None)
        if endpoint:
            kwargs["api_endpoint_override"] = endpoint
        return super().get_client_options(*args, **kwargs)

    def node_pools(self) -> NodePools:
        """Return the client of the cluster's node pools."""
        plan = self._plan
        return NodePools(self.get_cluster_manager_client(), plan.project_id, plan.location, plan.cluster)

    def kubernetes(self) -> Kubernetes:
        """Return the client of the cluster's API; its endpoint and CA come from the GKE API."""
        from google.api_core import exceptions
        from google.auth import exceptions as auth

        plan = self._plan
        name = f"projects/{plan.project_id}/locations/{plan.location}/clusters/{plan.cluster}"
        try:
            cluster = self.get_cluster_manager_client().get_cluster(request={"name": name}, retry=None, timeout=10.0)
        except (exceptions.ServiceUnavailable, exceptions.DeadlineExceeded, auth.TransportError) as error:
            raise TransientError(f"the GKE API does not answer for {name}: {error}") from error
        except (exceptions.GoogleAPICallError, auth.GoogleAuthError) as error:
            raise PermanentError(
                f"cannot reach cluster {name}: {error}; check project_id, location, cluster and the connection "
                f"{plan.gcp_conn_id} (its key; its role needs container.clusters.get, and container.clusters.update "
                "for node pools)"
            ) from error
        connection = _Connection(
            cluster_url=f"https://{cluster.endpoint}",
            ssl_ca_cert=cluster.master_auth.cluster_ca_certificate,
            credentials=self.get_credentials(),
        )
        return Kubernetes(client_transport(connection.get_conn()))


class _Connection(GKEClusterConnection):  # type: ignore[misc]
    """A connection that never retries by itself: a stage reads before it repeats a write.

    Tokens are refreshed by one thread at a time, with a short timeout; a token endpoint that does
    not answer is transient, like an API that does not.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._refreshing = threading.Lock()

    def _refresh_api_key_hook(self, configuration: Any) -> None:
        with self._refreshing:
            configuration.api_key = self._bearer_api_key(self._get_token(self._credentials))

    @staticmethod
    def _get_token(creds: Any) -> str:
        from google.auth import exceptions as auth
        from google.auth.transport.requests import Request

        if creds.token is None or creds.expired:
            try:
                creds.refresh(functools.partial(Request(), timeout=_TOKEN_TIMEOUT_S))
            except auth.TransportError as error:
                raise TransientError(f"the token endpoint does not answer: {error}") from error
            except auth.RefreshError as error:
                kind = TransientError if getattr(error, "retryable", False) else PermanentError
                raise kind(f"no token for the connection's service account: {error}") from error
        return str(creds.token)

    def _get_config(self) -> Any:
        configuration = super()._get_config()
        configuration.retries = False
        configuration.connection_pool_maxsize = 16
        return configuration
