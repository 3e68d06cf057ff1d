"""Tell whether a maintenance window of GKE falls into a span of time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dateutil.rrule import rrulestr


@dataclass(frozen=True)
class Window:
    """Hold a recurring window: its first opening (aware), its length, and how it recurs (RFC 5545's RRULE)."""

    start: dt.datetime
    length: dt.timedelta
    recurrence: str = "FREQ=DAILY"


@dataclass(frozen=True)
class Exclusion:
    """Hold a span in which GKE upgrades no node."""

    start: dt.datetime
    end: dt.datetime


def next_overlap(
    windows: Iterable[Window], now: float, span_s: float, exclusions: Sequence[Exclusion] = ()
) -> dt.datetime | None:
    """Return when the first window opens (UTC) that overlaps the `span_s` seconds after `now` (Unix seconds).

    An opening that lies within an exclusion counts for nothing.
    """
    begin = dt.datetime.fromtimestamp(now, dt.UTC)
    found = []
    for each in windows:
        rule = rrulestr(each.recurrence, dtstart=each.start)
        opened = rule.between(begin - each.length, begin + dt.timedelta(seconds=span_s))
        found += [at for at in opened if not any(e.start <= at and at + each.length <= e.end for e in exclusions)][:1]
    return min(found, default=None)
