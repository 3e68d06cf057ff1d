"""Share one pool of threads: Airflow's default one has six here, and lags by seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

_STEPS = 64
_CALLS = 32


@cache
def step_pool() -> ThreadPoolExecutor:
    """Return the pool in which triggers step their stages."""
    return ThreadPoolExecutor(_STEPS, thread_name_prefix="tpu-migration-step")


@cache
def _call_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_CALLS, thread_name_prefix="tpu-migration-call")


def side_by_side(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Make the calls at the same time and return their results in order; one that raises, raises."""
    if len(calls) < 2:
        return [call() for call in calls]
    return list(_call_pool().map(lambda call: call(), calls))
