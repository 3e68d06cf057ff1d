"""Make a thing once for all threads of a process that need it at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """Things by key, each made by whoever asks first and made anew once it is older than `keep_s` seconds.

    All who ask meanwhile wait for that one attempt and get its error, too, which is not kept: a server that
    does not answer is asked once, not by each thread after the other.
    """

    def __init__(self, keep_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_s, self._clock = keep_s, clock
        self._lock = threading.Lock()
        self._made: dict[Hashable, tuple[float, Future[T]]] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the thing of a key; raises what `make` raised."""
        with self._lock:
            at, future = self._made.get(key, (0.0, None))
            first = future is None or self._clock() - at > self._keep_s
            if first:
                future = Future()
                self._made[key] = self._clock(), future
        assert future is not None
        if first:
            try:
                future.set_result(make())
            except BaseException as error:  # noqa: BLE001 - whoever waits for it must hear of it
                with self._lock:
                    del self._made[key]
                future.set_exception(error)
        return future.result()
