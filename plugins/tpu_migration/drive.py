"""Step a stage to its end: what a worker, the triggerer, a terminal and a simulation have in common.

Each of them sleeps in its own way between two turns; nothing else differs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType

from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.lease import Lease, renewing
from tpu_migration.stages.base import Done, Failed, Outcome, Waiting
from tpu_migration.stages.run import StageRun

Keeping = Callable[[Lease], AbstractContextManager[None]]
_NOT_REACHED_S = 2.0  # until clients that could not be made are tried again


class Turns:
    """Take a stage forward turn by turn; inside `with`, its lease is kept beside the steps.

    `make` gives the stage with its clients, and is tried again while the cluster does not answer; `spent` tells
    whether the stage's time is over. `news` is what the last turn waits for, where it has not been told before.
    """

    def __init__(self, make: Callable[[], StageRun], spent: Callable[[], bool], keeping: Keeping = renewing) -> None:
        self.run: StageRun | None = None
        self.news = ""
        self._told = ""
        self._make, self._spent, self._keeping = make, spent, keeping
        self._kept = ExitStack()
        self._closing = threading.Lock()
        self._closed = False

    def __enter__(self) -> Turns:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._closing:
            self._closed = True
            self._kept.close()

    @property
    def replaced(self) -> bool:
        """Tell whether a newer worker of the same run goes on with the stage: this one has nothing to say any more."""
        return self.run is not None and self.run.context.lease.replaced

    def take(self) -> Outcome:
        """Make one step, and give the stage up where it waits and its time is spent."""
        outcome = self._step()
        why = outcome.why if isinstance(outcome, Waiting) else ""
        self.news = why if why != self._told else ""
        self._told = why
        if isinstance(outcome, Waiting) and self._spent():
            return self.run.time_out(why) if self.run else Failed(why, "timeout")
        return outcome

    def _step(self) -> Outcome:
        if self.run is None:
            try:
                self.run = self._make()
            except TransientError as error:
                return Waiting(_NOT_REACHED_S, str(error))
            except PermanentError as error:
                return Failed(str(error))
            with self._closing:
                if self._closed:  # a trigger that is cancelled leaves its thread behind: it must not keep a lease
                    return Failed("this worker was told to stop", "superseded")
                self._kept.enter_context(self._keeping(self.run.context.lease))
        return self.run.step()


def drive(
    run: StageRun,
    *,
    sleep: Callable[[float], object] = time.sleep,
    say: Callable[[str], object] = print,
    keeping: Keeping = renewing,
) -> Done | Failed:
    """Step until the stage is done, has failed, or its budget is spent; say each time what it waits for.

    `keeping` holds the lease meanwhile: beside the steps, unless `sleep` itself renews it.
    """
    clock = run.context.clock
    deadline = clock.monotonic() + run.stage.budget_s(run.context.plan)
    with Turns(lambda: run, lambda: clock.monotonic() > deadline, keeping) as turns:
        while isinstance(outcome := turns.take(), Waiting):
            if turns.news:
                say(turns.news)
            if outcome.seconds:
                sleep(outcome.seconds)
    return outcome
