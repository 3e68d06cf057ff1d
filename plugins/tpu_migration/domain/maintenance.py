"""Tell whether a maintenance window of GKE falls into a span of time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass

from dateutil.rrule import rrulestr


@dataclass(frozen=True)
class Window:
    """Hold a recurring window: its first opening (aware), its length, and how it recurs (RFC 5545's RRULE)."""

    start: dt.datetime
    length: dt.timedelta
    recurrence: str = "FREQ=DAILY"


def next_overlap(windows: Iterable[Window], now: float, span_s: float) -> dt.datetime | None:
    """Return when the first window opens (UTC) that overlaps the `span_s` seconds after `now` (Unix seconds)."""
    begin = dt.datetime.fromtimestamp(now, dt.UTC)
    found = []
    for each in windows:
        rule = rrulestr(each.recurrence, dtstart=each.start)
        opened = rule.between(begin - each.length, begin + dt.timedelta(seconds=span_s))
        found += opened[:1]
    return min(found, default=None)
