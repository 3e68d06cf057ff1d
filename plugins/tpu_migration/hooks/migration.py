"""Make the clients of a migration from an Airflow connection, the way the Google provider does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.google import EMAIL_SCOPE, kubernetes_of, token_of
from tpu_migration.clients.iam import Permissions
from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.clients.prometheus import Prometheus, prometheus_of
from tpu_migration.domain.plan import Plan
from tpu_migration.hooks.kubernetes_engine import GKENodePoolHook
from tpu_migration.hooks.shared import Shared

_KEPT_S = 600.0  # a changed connection, or a new certificate of the cluster, is seen by what begins after that


class ClusterHook(GKENodePoolHook):
    """Hook over one GKE cluster: its node pools, and the Kubernetes API behind its endpoint."""

    def __init__(self, gcp_conn_id: str, project_id: str, location: str, cluster: str) -> None:
        super().__init__(gcp_conn_id=gcp_conn_id, location=location)
        self._name = f"projects/{project_id}/locations/{location}/clusters/{cluster}"

    @property
    def scopes(self) -> Sequence[str]:
        """The connection's own, or the provider's, and the one by which GKE knows an account by its e-mail."""
        return list(dict.fromkeys([*super().scopes, EMAIL_SCOPE]))

    @cached_property
    def kubernetes(self) -> Kubernetes:
        """The client of the cluster's API; its endpoint and CA come from the GKE API."""
        return kubernetes_of(
            self.get_cluster_manager_client(),
            self.get_credentials(),
            self._name,
            f"check project_id, location, cluster and the connection {self.gcp_conn_id} (its key; its role needs "
            "container.clusters.get, and container.clusters.update for node pools)",
        )

    def token(self) -> str:
        """Return a bearer token of the connection that is valid now."""
        return token_of(self.get_credentials())

    @property
    def permissions_endpoint(self) -> str:
        """Where permissions are asked for: the connection's extra `resource_manager_endpoint` is another host."""
        return self._get_field("resource_manager_endpoint", None) or ""


_clusters: Shared[ClusterHook] = Shared(_KEPT_S)


def _reach(gcp_conn_id: str, project_id: str, location: str, cluster: str) -> ClusterHook:
    hook = ClusterHook(gcp_conn_id, project_id, location, cluster)
    hook.kubernetes  # noqa: B018 - reached once for all who wait for it
    return hook


class MigrationHook:
    """Reach what a plan names, over clients that all migrations of a process share that are on one cluster."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @property
    def _cluster(self) -> ClusterHook:
        plan = self._plan
        place = plan.gcp_conn_id, plan.project_id, plan.location, plan.cluster
        return _clusters.get(place, lambda: _reach(*place))

    def kubernetes(self) -> Kubernetes:
        """Return the client of the cluster's API."""
        return self._cluster.kubernetes

    def node_pools(self) -> NodePools:
        """Return the client of the cluster's node pools."""
        pools: NodePools = self._cluster.node_pools_of(
            cluster_name=self._plan.cluster, project_id=self._plan.project_id
        )
        return pools

    def monitoring(self) -> Prometheus | None:
        """Return the metrics server that the plan names, if it names one."""
        return prometheus_of(self._plan.prometheus_url, self._plan.project_id, lambda: self._cluster.token())  # noqa: PLW0108 - reached when it is needed

    def permissions(self) -> Permissions:
        """Return what asks for the connection's permissions."""
        return Permissions(self._plan.project_id, self._cluster.token, self._cluster.permissions_endpoint)
