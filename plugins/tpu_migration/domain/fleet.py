"""Say which clusters are looked after on a schedule: where migrated workloads may be, and how they are tried again."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tpu_migration.domain.maintenance import Window, next_overlap
from tpu_migration.domain.plan import Plan, PlanError

# What follows when a canary has failed: GPUs come back by themselves, or once people say so; or an alarm is all.
AUTO, ASK, ALERT = "auto", "ask", "alert"
ON_FAIL = (AUTO, ASK, ALERT)

EXAMPLE = (
    '[{"project_id": "my-project", "location": "us-central1-a", "cluster": "inference", "namespaces": ["inference"]}]'
)


class FleetError(ValueError):
    """Report what is wrong with the list of clusters."""


@dataclass(frozen=True)
class Place:
    """A namespace of a cluster, the Airflow connection that reaches it, and what canaries may do there.

    `blackouts` are spans without canaries, each {"start": ISO 8601 with its offset, "hours": number} and, where it
    comes again, "recurrence" (RFC 5545, such as FREQ=WEEKLY); plain values, for they go through Airflow's database.
    """

    project_id: str  # of the cluster
    location: str  # region or zone
    cluster: str  # its name
    namespace: str  # where workloads are looked for
    gcp_conn_id: str = "google_cloud_default"  # the Airflow connection
    on_fail: str = ASK  # `ask`, `auto` or `alert`: what follows a canary that failed
    blackouts: Sequence[Mapping[str, Any]] = ()  # spans without canaries

    def plan(self, workload: str) -> Plan:
        """Return a plan that names this place, for the clients that are made from one."""
        where = ("project_id", "location", "cluster", "namespace", "gcp_conn_id")
        return Plan.from_params({**{name: getattr(self, name) for name in where}, "workload": workload})

    def blackout(self, now: float, span_s: float) -> str:
        """Say which blackout is on, or begins within so many seconds; empty for none. `now` in Unix seconds."""
        opened = next_overlap([_window(each) for each in self.blackouts], now, span_s)
        return f"a blackout from {opened:%Y-%m-%d %H:%M} UTC on" if opened else ""


def parse_fleet(data: Any) -> list[Place]:
    """Read the list of clusters, each with its namespaces. Raises FleetError naming the entry and the field."""
    if not isinstance(data, list) or not data:
        raise FleetError(f"must be a list of clusters, for example {EXAMPLE}")
    return [place for number, each in enumerate(data, 1) for place in _places(number, each)]


def _places(number: int, data: Any) -> list[Place]:
    known = {f.name for f in fields(Place)} - {"namespace"} | {"namespaces"}
    needed = known - {"gcp_conn_id", "on_fail", "blackouts"}
    if not isinstance(data, Mapping) or (wrong := set(data) - known | needed - set(data)):
        told = sorted(wrong) if isinstance(data, Mapping) else data
        raise FleetError(f"entry {number}: {told} is missing or not known; an entry is like {EXAMPLE[1:-1]}")
    namespaces = data["namespaces"]
    if not isinstance(namespaces, list) or not namespaces:
        raise FleetError(f"entry {number}: namespaces={namespaces!r} must be a list of names")
    if data.get("on_fail", ASK) not in ON_FAIL:
        raise FleetError(f"entry {number}: on_fail={data['on_fail']!r} must be one of {', '.join(ON_FAIL)}")
    if not isinstance(data.get("blackouts", []), list):
        raise FleetError(f"entry {number}: blackouts={data['blackouts']!r} must be a list of spans")
    where = {key: value for key, value in data.items() if key != "namespaces"}
    places = [Place(namespace=each, **where) for each in namespaces]
    try:
        for place in places:
            place.plan(Plan().workload)
            place.blackout(0.0, 0.0)
    except (PlanError, FleetError) as error:
        raise FleetError(f"entry {number}: {error}") from error
    return places


def _window(data: Any) -> Window:
    """Read a blackout; FleetError says what of it cannot be meant."""
    known = {"start", "hours", "recurrence"}
    try:
        if unknown := set(data) - known:
            raise ValueError(f"{sorted(unknown)} is not known")
        start, hours = dt.datetime.fromisoformat(data["start"]), float(data["hours"])
        if start.tzinfo is None:
            raise ValueError("start needs an offset, such as Z or +01:00")
        if not 0 < hours <= 24 * 366:
            raise ValueError("hours must be above 0, and a year at most")
        window = Window(start, dt.timedelta(hours=hours), str(data.get("recurrence") or "FREQ=DAILY;COUNT=1"))
        next_overlap([window], start.timestamp(), 0.0)  # a recurrence that is none is told here
    except (KeyError, TypeError, ValueError) as error:
        raise FleetError(
            f"blackout {data!r}: {type(error).__name__}: {error}; one is like "
            '{"start": "2026-11-26T00:00:00-08:00", "hours": 96, "recurrence": "FREQ=YEARLY"}'
        ) from error
    return window
