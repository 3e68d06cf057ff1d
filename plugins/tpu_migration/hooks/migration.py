"""Make the clients of a migration from an Airflow connection, the way the Google provider does."""

from __future__ import annotations

from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.google import kubernetes_of, token_of
from tpu_migration.clients.iam import Permissions
from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.clients.prometheus import Prometheus, prometheus_of
from tpu_migration.domain.plan import Plan
from tpu_migration.hooks.kubernetes_engine import GKENodePoolHook


class MigrationHook(GKENodePoolHook):
    """Reach one GKE cluster: its node pools, and the Kubernetes API behind its endpoint."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(gcp_conn_id=plan.gcp_conn_id, location=plan.location)
        self._plan = plan

    def node_pools(self) -> NodePools:
        """Return the client of the cluster's node pools."""
        pools: NodePools = self.node_pools_of(cluster_name=self._plan.cluster, project_id=self._plan.project_id)
        return pools

    def monitoring(self) -> Prometheus | None:
        """Return the metrics server that the plan names, if it names one."""
        plan = self._plan
        return prometheus_of(plan.prometheus_url, plan.project_id, lambda: token_of(self.get_credentials()))

    def permissions(self) -> Permissions:
        """Return what asks for the connection's permissions; its extra `resource_manager_endpoint` is another host."""
        endpoint = self._get_field("resource_manager_endpoint", None) or ""
        return Permissions(self._plan.project_id, lambda: token_of(self.get_credentials()), endpoint)

    def kubernetes(self) -> Kubernetes:
        """Return the client of the cluster's API; its endpoint and CA come from the GKE API."""
        plan = self._plan
        return kubernetes_of(
            self.get_cluster_manager_client(),
            self.get_credentials(),
            f"projects/{plan.project_id}/locations/{plan.location}/clusters/{plan.cluster}",
            f"check project_id, location, cluster and the connection {plan.gcp_conn_id} (its key; its role needs "
            "container.clusters.get, and container.clusters.update for node pools)",
        )
