"""Make or remove one node pool by itself, in small steps, without a plan or a record: the work of the operators.

What must survive a restart is plain values in `state`. A step that finds its work done says so, and may be repeated.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from tpu_migration.backoff import Backoff
from tpu_migration.clients.gke import NodePools
from tpu_migration.clock import Clock, SystemClock
from tpu_migration.domain.node_pools import Wanted
from tpu_migration.errors import MigrationError, NoCapacityError, PermanentError, TransientError
from tpu_migration.stages.base import Done, Failed, Outcome, Waiting
from tpu_migration.stages.pool import POLL_S, Request, follow
from tpu_migration.stages.pool_removal import cancel, cleared, deleted

log = logging.getLogger(__name__)

CLEARING_S = 900.0  # what clearing a failed pool away may take beyond the time for making it
_LONGEST_PAUSE_S = 30.0
_STOP_PAUSE_S = 2.0


@dataclass(frozen=True)
class State:
    """What a step knows of the steps before it; plain values."""

    ours: bool | None = None  # the pool was asked for here; None: nobody has looked yet
    operation: str = ""
    answered: bool = False  # a create call was, so that none can still be under way
    failure: str = ""  # why it is being cleared away


class PoolWork(ABC):
    """One node pool and what is to become of it. `deadline` is in Unix seconds; pauses take `poll_s`."""

    def __init__(
        self,
        pools: NodePools,
        name: str,
        deadline: float,
        state: State | None = None,
        *,
        poll_s: float = POLL_S,
        clock: Clock | None = None,
    ) -> None:
        self.state = state or State()
        self._pools, self._name, self._deadline, self._poll_s = pools, name, deadline, poll_s
        self._clock = clock or SystemClock()
        self._backoff = Backoff(f"{name}/{deadline}", _LONGEST_PAUSE_S)
        self._turn = threading.Lock()
        self._stopped = False

    def step(self) -> Outcome:
        """Look, and do one thing; an API that does not answer is a pause, longer each time."""
        with self._turn:
            if self._stopped:
                return Failed(f"node pool {self._name}: this task was told to stop")
            try:
                outcome = self._step()
            except TransientError as error:
                return self._late(Waiting(self._backoff.pause_s(), f"will try again: {error}"))
            except PermanentError as error:
                return Failed(str(error), "capacity" if isinstance(error, NoCapacityError) else "permanent")
        self._backoff.succeeded()
        if isinstance(outcome, Waiting) and outcome.seconds:
            return self._late(replace(outcome, seconds=self._poll_s))
        return outcome

    def stop(self, patience_s: float = 20.0, sleep: Callable[[float], object] = time.sleep) -> None:
        """End what this task began, as far as that goes within `patience_s`; a step under way is waited for."""
        with self._turn:
            self._stopped = True
            end = self._clock.monotonic() + patience_s
            while self._clock.monotonic() < end:
                try:
                    if self._ended():
                        return
                except MigrationError as error:
                    log.warning("node pool %s: %s", self._name, error)
                sleep(_STOP_PAUSE_S)
        log.warning("node pool %s may be left behind: look at it, and delete it by hand", self._name)

    def plain_state(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return asdict(self.state)

    def _remember(self, operation: str) -> None:
        self.state = replace(self.state, ours=True, answered=True, operation=operation)

    def _forget(self) -> None:
        self.state = replace(self.state, operation="")

    @abstractmethod
    def _step(self) -> Outcome: ...

    @abstractmethod
    def _late(self, waiting: Waiting) -> Outcome:
        """Return what becomes of a wait; after the deadline, something else than more waiting."""

    @abstractmethod
    def _ended(self) -> bool:
        """Do one thing to end what was begun; tell whether that is all."""


class MakePool(PoolWork):
    """Make a pool, or adopt one of the same shape. One that was asked for here and fails is cleared away again."""

    def __init__(
        self,
        pools: NodePools,
        wanted: Wanted,
        deadline: float,
        state: State | None = None,
        *,
        clear: bool = True,
        **more: Any,
    ) -> None:
        super().__init__(pools, wanted.name, deadline, state, **more)
        self._wanted, self._clear = wanted, clear
        self._memory: dict[str, Any] = {}

    def _step(self) -> Outcome:
        if self.state.failure:
            return self._clear_away()
        if self.state.ours is None:
            found = self._pools.get(self._name)
            if found is not None and found.status == "STOPPING":
                return Waiting(self._poll_s, f"node pool {self._name} of an earlier time is being deleted")
            self.state = replace(self.state, ours=found is None)
        try:
            waiting = follow(self._pools, self._wanted, self._request(), self._remember)
        except NoCapacityError as error:
            return self._fail(str(error), "capacity")
        if waiting:
            return waiting
        made = self._pools.get(self._name)
        return Done({"self_link": made.self_link if made else ""})

    def _request(self) -> Request:
        return Request(bool(self.state.ours) and not self.state.answered, self.state.operation)

    def _late(self, waiting: Waiting) -> Outcome:
        over_s = self._clock.now() - self._deadline
        if over_s <= 0:
            return waiting
        if not self.state.failure:
            return self._fail(f"node pool {self._name} does not run, and its time is over: {waiting.why}", "timeout")
        if over_s > CLEARING_S:
            return Failed(
                f"{self.state.failure}; {waiting.why}: see that node pool {self._name} does not stay", "timeout"
            )
        return waiting

    def _fail(self, reason: str, kind: str) -> Outcome:
        if not (self.state.ours and self._clear):
            return Failed(reason, kind)
        self.state = replace(self.state, failure=reason)
        return Waiting(0, f"{reason}; clearing it away")

    def _clear_away(self) -> Outcome:
        waiting = cleared(self._pools, self._name, self._request(), self._forget, self._clock, self._memory)
        return waiting or Failed(f"{self.state.failure}; nothing of it is left", "capacity")

    def _ended(self) -> bool:
        if not self.state.ours:
            return True
        if self.state.operation:
            cancel(self._pools, self.state.operation)
            self._forget()
            return not self._clear
        found = self._pools.get(self._name) if self._clear else None
        if found is not None and found.status != "STOPPING" and not self._pools.running_operations(self._name):
            self._pools.delete(self._name)
            return True
        return found is None or found.status == "STOPPING"


class RemovePool(PoolWork):
    """Delete a pool until GKE says that it is not there; one that is being made is cancelled first."""

    def __init__(self, pools: NodePools, name: str, deadline: float, state: State | None = None, **more: Any) -> None:
        super().__init__(pools, name, deadline, state, **more)
        self._cancelled: set[str] = set()

    def _step(self) -> Outcome:
        if self.state.operation:
            operation = self._pools.operation(self.state.operation)
            if operation.error:
                raise PermanentError(f"cannot delete node pool {self._name}: {operation.error}")
            if not operation.done:
                return Waiting(self._poll_s, f"node pool {self._name} is being deleted")
            self._forget()
        for each in self._pools.running_operations(self._name):
            if each.kind == "CREATE_NODE_POOL" and each.name not in self._cancelled:
                cancel(self._pools, each.name)
                self._cancelled.add(each.name)
                return Waiting(self._poll_s, f"node pool {self._name} is still being made: {each.name} is cancelled")
        return deleted(self._pools, self._name, self._remember) or Done({})

    def _late(self, waiting: Waiting) -> Outcome:
        if self._clock.now() <= self._deadline:
            return waiting
        return Failed(f"node pool {self._name} is still there, and its time is over: {waiting.why}", "timeout")

    def _ended(self) -> bool:
        return True  # GKE does not cancel a deletion
