"""Link from a task to what it works on in Google's console."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperatorLink

_PAGE = "https://console.cloud.google.com/kubernetes/nodepool/{location}/{cluster}/{pool}?project={project}"


class KubernetesEngineNodePoolLink(BaseOperatorLink):  # type: ignore[misc]
    """Link to a node pool. The worker makes it and Airflow stores it, so that the UI needs no code of ours."""

    name = "Kubernetes Node Pool"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the address of the pool's page; empty while its project is not known."""
        if not operator.project_id or not operator.node_pool_name:
            return ""
        return _PAGE.format(
            location=operator.location,
            cluster=operator.cluster_name,
            pool=operator.node_pool_name,
            project=operator.project_id,
        )
