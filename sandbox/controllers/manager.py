"""Run all controllers on one API, in virtual time or beside the HTTP server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from sandbox.api.core import Api
from sandbox.api.store import Change
from sandbox.clock import Clock

from .accounts import ServiceAccountController
from .autoscalers import AutoscalerController
from .base import Cluster, Controller
from .budgets import BudgetController
from .definitions import DefinitionController
from .deployments import DeploymentController
from .endpoints import EndpointController
from .garbage import GarbageCollector
from .jobs import JobController
from .namespaces import NamespaceController
from .nodes import NodeController
from .replicasets import ReplicaSetController
from .scheduler import Scheduler

CONTROLLERS: tuple[type[Controller], ...] = (
    GarbageCollector,
    NamespaceController,
    DefinitionController,
    ServiceAccountController,
    NodeController,
    AutoscalerController,
    DeploymentController,
    ReplicaSetController,
    JobController,
    Scheduler,
    EndpointController,
    BudgetController,
)
MAX_ROUNDS = 10_000
# Changes come in bursts (a rollout writes dozens); one pass after a pause handles them together.
BATCH_S = 0.005
log = logging.getLogger(__name__)


class Manager:
    """The controllers of one cluster."""

    def __init__(
        self, api: Api, clock: Clock, speed: float = 1.0, controllers: Iterable[type[Controller]] = CONTROLLERS
    ) -> None:
        self._clock = clock
        cluster = Cluster(api, clock, speed)
        self._controllers = [controller(cluster) for controller in controllers]
        self._watching: dict[str, list[Controller]] = {}
        for controller in self._controllers:
            for resource in controller.watches:
                self._watching.setdefault(resource, []).append(controller)
        self._watching_all = [controller for controller in self._controllers if controller.watches_all]
        self._woken: asyncio.Event | None = None
        self._stop = api.store.listen(self._observe)
        for resource in {**self._watching, **{r.plural: r for r in api.registry.resources}}:
            for entry in api.store.list(resource):
                self._observe(Change("ADDED", resource, entry, None))

    def settle(self) -> None:
        """Run all controllers until nothing is left to do now."""
        for _ in range(MAX_ROUNDS):
            now = self._clock.now()
            if not any([controller.run_queued(now) for controller in self._controllers]):
                return
        raise RuntimeError(f"the controllers do not come to rest within {MAX_ROUNDS} rounds")

    def next_due(self) -> float | None:
        """Return when (Unix seconds) something is to be done though nothing changes, or None."""
        times = [at for c in self._controllers if (at := c.next_due()) is not None]
        return min(times, default=None)

    async def run(self) -> None:
        """Settle after every change and when a timer goes off, until cancelled."""
        self._woken = asyncio.Event()
        self._woken.set()
        while True:
            due = self.next_due()
            timeout = None if due is None else max(0.0, due - self._clock.now())
            try:
                async with asyncio.timeout(timeout):
                    await self._woken.wait()
                await asyncio.sleep(BATCH_S)
            except TimeoutError:
                log.debug("a timer went off")
            self._woken.clear()
            self.settle()

    def close(self) -> None:
        """Stop following the API."""
        self._stop()

    def _observe(self, change: Change) -> None:
        for controller in self._watching.get(change.resource, self._watching_all):
            controller.observe(change)
        if self._woken is not None:
            self._woken.set()
