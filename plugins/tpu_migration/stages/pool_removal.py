"""Take a node pool away for good: a create that failed, or is given up, may still make it later."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tpu_migration.clients.gke import CALL_TIMEOUT_S, NodePools
from tpu_migration.clock import Clock
from tpu_migration.errors import PermanentError
from tpu_migration.record import Record
from tpu_migration.stages.base import Context, Waiting
from tpu_migration.stages.pool import POLL_S, Request

log = logging.getLogger(__name__)

CREATE_INTENT = "create node pool"  # begins the record's intent until the create call is answered
_LATE_CREATE_S = 2 * CALL_TIMEOUT_S + 5.0  # how late a create whose answer was lost can still reach GKE


def removed(ctx: Context, record: Record) -> Waiting | None:
    """Cancel, read, delete the pool of the last attempt; None once it is gone and nothing can bring it back.

    A pool that was there before the run is no attempt's, and stays.
    """
    attempt, request = record.attempt, Request(record.intent.startswith(CREATE_INTENT), record.operation)
    if attempt is None or (attempt.error and attempt.ended):
        return None

    def forget() -> None:
        ctx.update(lambda r: replace(r, operation=""))

    return cleared(ctx.pools, record.pool, request, forget, ctx.clock, ctx.memory)


def cleared(
    pools: NodePools,
    name: str,
    request: Request,
    forget: Callable[[], object],
    clock: Clock,
    memory: dict[str, Any],
) -> Waiting | None:
    """Cancel, read, delete what a request for a pool made; None once it is gone and nothing can bring it back.

    `forget` drops the name of the operation, once that is cancelled.
    """
    if request.operation:
        cancel(pools, request.operation)
        forget()
        return Waiting(2.0, f"cancelling {request.operation}: a pool that comes late must not stay")
    gone_since = f"{name} is gone since"
    if waiting := deleted(pools, name):
        memory.pop(gone_since, None)
        return waiting
    gone_s = clock.monotonic() - memory.setdefault(gone_since, clock.monotonic())
    if request.sent and gone_s < _LATE_CREATE_S:
        return Waiting(POLL_S, f"seeing that no late answer still makes node pool {name}")
    return None


def deleted(pools: NodePools, name: str, remember: Callable[[str], object] = lambda operation: None) -> Waiting | None:
    """Delete a pool that no operation holds; None while neither it nor an operation on it is there."""
    pool = pools.get(name)
    running = pools.running_operations(name)
    if pool is not None and pool.status != "STOPPING" and not running and (operation := pools.delete(name)):
        remember(operation)
    return Waiting(POLL_S, f"node pool {name} is being deleted") if pool is not None or running else None


def cancel(pools: NodePools, operation: str) -> None:
    """Ask for an end; one that is over already, or forgotten, is none to wait for."""
    try:
        if not pools.operation(operation).done:
            pools.cancel(operation)
    except PermanentError as error:
        log.info("going on: %s", error)
