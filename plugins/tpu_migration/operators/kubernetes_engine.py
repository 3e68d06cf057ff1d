"""Make and delete GKE node pools as tasks of any DAG, in the style of the Google provider's cluster operators."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowFailException

from tpu_migration.errors import MigrationError
from tpu_migration.links.kubernetes_engine import KubernetesEngineNodePoolLink

if TYPE_CHECKING:
    from tpu_migration.stages.pool_alone import PoolWork
    from tpu_migration.triggers.kubernetes_engine import NodePoolTask

_AIRFLOWS_MARGIN_S = 300.0  # Airflow's own timeout comes after the trigger's, should that hang


class NodePoolError(MigrationError):
    """Report a node pool that did not come or did not go in time; another try of the task may do better."""


class _NodePoolOperator(BaseOperator):  # type: ignore[misc]
    """What both operators share: reach the pool, step in the worker or in the triggerer, cancel when killed."""

    template_fields: Sequence[str] = ("project_id", "location", "cluster_name", "gcp_conn_id", "impersonation_chain")
    operator_extra_links = (KubernetesEngineNodePoolLink(),)

    def __init__(
        self,
        *,
        location: str,
        cluster_name: str,
        project_id: str | None = None,
        gcp_conn_id: str = "google_cloud_default",
        impersonation_chain: str | Sequence[str] | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float = 10.0,
        time_limit: float = 3600.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.location = location
        self.cluster_name = cluster_name
        self.project_id = project_id
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.time_limit = time_limit
        self._work: PoolWork | None = None

    @property
    @abstractmethod
    def node_pool_name(self) -> str:
        """The pool's name."""

    @abstractmethod
    def _task(self, **common: Any) -> NodePoolTask:
        """Return what is to be done."""

    def execute(self, context: Mapping[str, Any]) -> Any:
        """Do what can be done at once; then wait here, or defer to the trigger."""
        # Google's clients are heavy: the scheduler parses DAG files with this operator, and must not load them.
        from tpu_migration.stages.base import Waiting
        from tpu_migration.triggers.kubernetes_engine import event

        task = self._prepared()
        self._work = work = task.work()
        while isinstance(outcome := work.step(), Waiting):
            self.log.info("%s", outcome.why)
            if self.deferrable and outcome.seconds:
                self._defer(task, work)
            time.sleep(outcome.seconds)
        return self.execute_complete(context, event(outcome, task.project_id))

    def _prepared(self) -> NodePoolTask:
        from tpu_migration.hooks.kubernetes_engine import GKENodePoolHook

        if not self.project_id:
            hook = GKENodePoolHook(gcp_conn_id=self.gcp_conn_id, impersonation_chain=self.impersonation_chain)
            self.project_id = hook.project_id
        try:
            return self._task(
                location=self.location,
                cluster_name=self.cluster_name,
                project_id=self.project_id,
                deadline=time.time() + self.time_limit,
                gcp_conn_id=self.gcp_conn_id,
                impersonation_chain=self.impersonation_chain,
                poll_interval=self.poll_interval,
            )
        except MigrationError as error:
            raise AirflowFailException(str(error)) from error

    def _defer(self, task: NodePoolTask, work: PoolWork) -> None:
        from tpu_migration.stages.pool_alone import CLEARING_S
        from tpu_migration.triggers.kubernetes_engine import GKENodePoolTrigger

        self.defer(
            trigger=GKENodePoolTrigger(asdict(task), work.plain_state()),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.time_limit + CLEARING_S + _AIRFLOWS_MARGIN_S),
        )

    def execute_complete(self, context: Mapping[str, Any], event: Mapping[str, Any]) -> Any:
        """Return the pool's link in the API, or fail: for good where another try would meet the same."""
        self.project_id = event["project_id"]
        if event["status"] == "success":
            return event.get("self_link")
        if event["kind"] == "permanent":
            raise AirflowFailException(event["message"])
        raise NodePoolError(event["message"])

    def on_kill(self) -> None:
        """Cancel the operation that this task began; in the triggerer the trigger does."""
        if self._work is not None:
            self._work.stop()


class GKECreateNodePoolOperator(_NodePoolOperator):
    """Create a node pool of a GKE cluster and wait until it runs.

    An operation that ends DONE with an error is a failure, and so is a pool that GKE gives up on. A pool of that
    name and shape (machine type, zones, kind of capacity, GPUs, TPU topology, as far as the body says) that is
    there is adopted; one of another shape fails the task with the difference. A create call whose answer was lost is
    resolved by reading. While another operation holds the cluster, the task waits for its turn.

    :param body: The node pool, a dict or a ``google.cloud.container_v1.types.NodePool``. (templated)
    :param location: Region or zone of the cluster. (templated)
    :param cluster_name: Name of the cluster. (templated)
    :param project_id: Project of the cluster; the connection's unless given. (templated)
    :param gcp_conn_id: Airflow connection of type ``google_cloud_platform``. (templated)
    :param impersonation_chain: Service account to impersonate, or the chain to it. (templated)
    :param deferrable: Wait in the triggerer.
    :param poll_interval: Seconds between two looks.
    :param time_limit: Seconds until the pool must run. A create without stock holds the cluster for 35 minutes.
    :param delete_on_failure: Cancel and delete what a failed create left, unless the pool was there before.
    """

    template_fields: Sequence[str] = ("body", *_NodePoolOperator.template_fields)
    template_fields_renderers: ClassVar[dict[str, str]] = {"body": "json"}

    def __init__(self, *, body: Any, delete_on_failure: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.body = body
        self.delete_on_failure = delete_on_failure

    @property
    def node_pool_name(self) -> str:
        """The pool's name, as the body gives it."""
        return str(self.body.get("name", "") if isinstance(self.body, Mapping) else getattr(self.body, "name", ""))

    def _task(self, **common: Any) -> NodePoolTask:
        from tpu_migration.clients.gke import Definition
        from tpu_migration.triggers.kubernetes_engine import NodePoolTask

        wanted = Definition.read(self.body)
        return NodePoolTask(wanted.name, body=wanted.to_dict(), delete_on_failure=self.delete_on_failure, **common)


class GKEDeleteNodePoolOperator(_NodePoolOperator):
    """Delete a node pool of a GKE cluster and wait until it is gone; one that is not there is a success.

    One that is still being made is cancelled first. What runs on its nodes is not looked at.

    :param node_pool: Name of the pool. (templated)

    For the other parameters see :class:`GKECreateNodePoolOperator`.
    """

    template_fields: Sequence[str] = ("node_pool", *_NodePoolOperator.template_fields)

    def __init__(self, *, node_pool: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.node_pool = node_pool

    @property
    def node_pool_name(self) -> str:
        """The pool's name."""
        return self.node_pool

    def _task(self, **common: Any) -> NodePoolTask:
        from tpu_migration.triggers.kubernetes_engine import NodePoolTask

        return NodePoolTask(self.node_pool, **common)
