"""Make or delete a node pool in the triggerer, holding no worker slot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from tpu_migration.clients.gke import Definition
from tpu_migration.errors import PermanentError
from tpu_migration.hooks.kubernetes_engine import GKENodePoolHook
from tpu_migration.hooks.pool import step_pool
from tpu_migration.stages.base import Done, Failed, Outcome, Waiting
from tpu_migration.stages.pool_alone import MakePool, PoolWork, RemovePool, State


@dataclass(frozen=True)
class NodePoolTask:
    """What a worker and the triggerer are told to do with a node pool; plain values.

    `body` is the NodePool message of one to make; without it the pool `name` is deleted. `deadline` is in Unix
    seconds, so that it survives a restart of the triggerer; `poll_interval` in seconds.
    """

    name: str
    location: str
    cluster_name: str
    project_id: str
    deadline: float
    body: dict[str, Any] | None = None
    delete_on_failure: bool = True
    gcp_conn_id: str = "google_cloud_default"
    impersonation_chain: str | Sequence[str] | None = None
    poll_interval: float = 10.0

    def work(self, state: State | None = None) -> PoolWork:
        """Return the work, its client made from the connection."""
        hook = GKENodePoolHook(
            gcp_conn_id=self.gcp_conn_id, location=self.location, impersonation_chain=self.impersonation_chain
        )
        pools = hook.node_pools_of(cluster_name=self.cluster_name, project_id=self.project_id)
        if self.body is None:
            return RemovePool(pools, self.name, self.deadline, state, poll_s=self.poll_interval)
        wanted = Definition.read(self.body)
        return MakePool(pools, wanted, self.deadline, state, clear=self.delete_on_failure, poll_s=self.poll_interval)


class GKENodePoolTrigger(BaseTrigger):  # type: ignore[misc]
    """Step the work on a node pool until it has ended. `task` and `state` are plain values, as `serialize` gives them.

    A restarted triggerer begins from the state at the deferral and reads what has become of the pool since.
    """

    def __init__(self, task: dict[str, Any], state: dict[str, Any]) -> None:
        super().__init__()
        # Airflow's triggers have attributes `task` and `task_instance` of their own.
        self.node_pool_task = task
        self.state = state
        self._work: PoolWork | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what a restarted triggerer needs."""
        return (
            "tpu_migration.triggers.kubernetes_engine.GKENodePoolTrigger",
            {"task": self.node_pool_task, "state": self.state},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Step in a thread of our own pool, sleep as long as the work says, and end with its outcome."""
        loop, told = asyncio.get_running_loop(), ""
        while isinstance(outcome := await loop.run_in_executor(step_pool(), self._step), Waiting):
            if outcome.why != told:
                self.log.info("%s", outcome.why)
                told = outcome.why
            await asyncio.sleep(outcome.seconds)
        yield TriggerEvent(event(outcome, self.node_pool_task["project_id"]))

    async def on_kill(self) -> None:
        """Cancel the operation that this task began: a person has marked or cleared the task."""
        if self._work is not None:
            await asyncio.get_running_loop().run_in_executor(step_pool(), self._work.stop)

    def _step(self) -> Outcome:
        if self._work is None:
            try:
                self._work = NodePoolTask(**self.node_pool_task).work(State(**self.state))
            except PermanentError as error:
                return Failed(str(error))
        return self._work.step()


def event(outcome: Done | Failed, project_id: str) -> dict[str, Any]:
    """Return what the operator is told of the end."""
    if isinstance(outcome, Done):
        return {"status": "success", "project_id": project_id, **outcome.result}
    return {"status": "error", "project_id": project_id, "message": outcome.reason, "kind": outcome.kind}
