"""Reach a cluster's node pools from an Airflow connection, as the Google provider's hooks reach its other services."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.providers.google.common.consts import CLIENT_INFO
from airflow.providers.google.common.hooks.base_google import PROVIDE_PROJECT_ID, GoogleBaseHook
from google.api_core.client_options import ClientOptions

from tpu_migration.clients.gke import NodePools


class GKENodePoolHook(GoogleBaseHook):  # type: ignore[misc]
    """Hook over ClusterManagerClient for node pools.

    The connection is of type `google_cloud_platform`. Its extra `api_endpoint` (host:port) sends the calls
    elsewhere, e.g. to a private endpoint.

    Not a GKEHook: that one's file loads two clients of Kubernetes for its pods and jobs, and doubles the time that
    each task needs before its first call.
    """

    def __init__(
        self,
        gcp_conn_id: str = "google_cloud_default",
        location: str | None = None,
        impersonation_chain: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(gcp_conn_id=gcp_conn_id, impersonation_chain=impersonation_chain, **kwargs)
        self.location = location
        self._client: Any = None

    def get_client_options(self, *args: Any, **kwargs: Any) -> ClientOptions | None:
        """Return the options of Google's clients, with the connection's own endpoint if it has one."""
        endpoint = self._get_field("api_endpoint", None)
        if endpoint:
            kwargs["api_endpoint_override"] = endpoint
        return super().get_client_options(*args, **kwargs)

    def get_cluster_manager_client(self) -> Any:
        """Return the hook's one ClusterManagerClient."""
        if self._client is None:
            from google.cloud.container_v1 import ClusterManagerClient

            self._client = ClusterManagerClient(
                credentials=self.get_credentials(), client_info=CLIENT_INFO, client_options=self.get_client_options()
            )
        return self._client

    @GoogleBaseHook.fallback_to_default_project_id  # type: ignore[untyped-decorator]
    def node_pools_of(self, *, cluster_name: str, project_id: str = PROVIDE_PROJECT_ID) -> NodePools:
        """Return the client of a cluster's node pools; the project is the connection's unless one is given."""
        return NodePools(self.get_cluster_manager_client(), project_id, self.location or "", cluster_name)
