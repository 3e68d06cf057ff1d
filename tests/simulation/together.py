"""Let several orchestrators work at once in one virtual world, in an order that is the same in each run.

Each is a greenlet. It gives way before and after each of its API calls, so that any other's call may come in
between; time passes only while all of them wait.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from greenlet import getcurrent, greenlet

from sandbox.world import World
from tpu_migration.lease import Lease

_LEAST_S = 1e-5


@dataclass
class _Waiting:
    actor: Any
    ready: Callable[[], bool]
    due: float = math.inf  # when the clock alone makes it ready


@dataclass
class Together:
    """A round of actors; made where `run` is called."""

    world: World
    tick_s: float = 1.0  # the world reacts at least so often
    _actors: deque[_Waiting] = field(default_factory=deque)
    _hub: Any = field(default_factory=getcurrent)

    def start(self, work: Callable[[], object]) -> Callable[[], bool]:
        """Add an actor, and return what tells whether it has ended."""
        actor = greenlet(work, self._hub)
        self._actors.append(_Waiting(actor, lambda: True))
        return lambda: bool(actor.dead)

    def all(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Make the calls side by side, as the product's own threads do, and return what they gave, in order."""
        given: dict[int, Any] = {}

        def make(index: int, call: Callable[[], Any]) -> None:
            try:
                given[index] = call()
            except Exception as error:  # noqa: BLE001 - raised below, where the caller waits
                given[index] = error

        for index, call in enumerate(calls):
            self.start(lambda index=index, call=call: make(index, call))
        self.wait(lambda: len(given) == len(calls))
        for answer in given.values():
            if isinstance(answer, Exception):
                raise answer
        return [given[index] for index in range(len(calls))]

    @contextmanager
    def renewing(self, lease: Lease) -> Iterator[None]:
        """Renew the lease beside the work, as the product's own thread does."""
        working = [True]

        def renew() -> None:
            while working:
                self.sleep(1.0)
                if working:
                    lease.renew_if_due()

        self.start(renew)
        try:
            yield
        finally:
            working.clear()

    def give_way(self) -> None:
        """Let every other actor that is ready take its turn first."""
        self.wait(lambda: True)

    def sleep(self, seconds: float) -> None:
        """Wait in virtual time."""
        due = self.world.clock.now() + seconds
        self.wait(lambda: self.world.clock.now() >= due - 1e-6, due)

    def wait(self, ready: Callable[[], bool], due: float = math.inf) -> None:
        """Wait until something is so; `due` is when the clock alone makes it so."""
        self._actors.append(_Waiting(getcurrent(), ready, due))
        self._hub.switch()

    def run(self) -> None:
        """Let all of them work until each has ended; what one raises is raised here."""
        while self._actors:
            for _ in range(len(self._actors)):
                waiting = self._actors.popleft()
                if waiting.ready():
                    waiting.actor.switch()
                    break
                self._actors.append(waiting)
            else:
                left = min(each.due for each in self._actors) - self.world.clock.now()
                self.world.advance(min(self.tick_s, max(left, _LEAST_S)))
