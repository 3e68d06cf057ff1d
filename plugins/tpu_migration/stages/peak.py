"""Find how busy the workload gets: what the plan says, else what monitoring remembers; never a guess."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass
from typing import Any

from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.record import Record
from tpu_migration.stages.base import Context

_PATIENCE_S = 30.0
_ENOUGH_S = 86_400.0  # of history: less has not seen every hour of a day


@dataclass(frozen=True)
class LivePeak:
    """The rate that the target must carry, in requests a second, and whose word that is."""

    rps: float
    told_by: str

    def note(self) -> dict[str, Any]:
        """Return it as the record keeps it."""
        return asdict(self)


def live_peak(ctx: Context) -> LivePeak:
    """Return the plan's peak, else the highest rate in the metrics server that the plan names.

    Raises PermanentError where neither is known.
    """
    plan = ctx.plan
    if plan.peak_rps > 0:
        return LivePeak(plan.peak_rps, "the plan")
    if ctx.monitoring is None:
        raise PermanentError(
            "peak_rps is not given: a migration in a quiet hour proves nothing about the peak; give the workload's "
            "highest rate of the last weeks in requests a second, or prometheus_url to read it from"
        )
    try:
        found = ctx.monitoring.peak(plan.namespace, plan.workload, ctx.clock.now())
    except TransientError as error:
        since = ctx.memory.setdefault("monitoring_since", ctx.clock.monotonic())
        if ctx.clock.monotonic() - since < _PATIENCE_S:
            raise
        raise PermanentError(f"the peak cannot be read: {error}; give peak_rps") from error
    if found.history_s < _ENOUGH_S:
        raise PermanentError(
            f"{ctx.monitoring.url} remembers only {found.history_s / 3600:.1f} h of {plan.workload}: that says nothing "
            f"of a day's peak (highest so far {found.rps:.3g} requests/s); give peak_rps"
        )
    when = dt.datetime.fromtimestamp(found.at, dt.UTC)
    days = found.history_s / 86_400
    return LivePeak(found.rps, f"{ctx.monitoring.url}: highest of {days:.0f} days, at {when:%Y-%m-%d %H:%M} UTC")


def peak_rps(ctx: Context, record: Record) -> float:
    """Return the peak that this run was planned for: preflight wrote it into the record."""
    return ctx.plan.peak_rps or float(record.notes["peak"]["rps"])
