"""Reach a cluster's node pools from an Airflow connection, as the Google provider's GKEHook reaches clusters."""

from __future__ import annotations

from typing import Any

from airflow.providers.google.cloud.hooks.kubernetes_engine import GKEHook
from airflow.providers.google.common.hooks.base_google import PROVIDE_PROJECT_ID, GoogleBaseHook
from google.api_core.client_options import ClientOptions

from tpu_migration.clients.gke import NodePools


class GKENodePoolHook(GKEHook):  # type: ignore[misc]
    """Hook over ClusterManagerClient for node pools.

    The connection is of type `google_cloud_platform`. Its extra `api_endpoint` (host:port) sends the calls
    elsewhere, e.g. to a private endpoint.
    """

    def get_client_options(self, *args: Any, **kwargs: Any) -> ClientOptions | None:
        """Return the options of Google's clients, with the connection's own endpoint if it has one."""
        endpoint = self._get_field("api_endpoint", None)
        if endpoint:
            kwargs["api_endpoint_override"] = endpoint
        return super().get_client_options(*args, **kwargs)

    @GoogleBaseHook.fallback_to_default_project_id  # type: ignore[untyped-decorator]
    def node_pools_of(self, *, cluster_name: str, project_id: str = PROVIDE_PROJECT_ID) -> NodePools:
        """Return the client of a cluster's node pools; the project is the connection's unless one is given."""
        return NodePools(self.get_cluster_manager_client(), project_id, self.location, cluster_name)
