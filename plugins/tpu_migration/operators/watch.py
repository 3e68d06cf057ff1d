"""Look after migrated workloads: find them in the fleet, and alarm on what has drifted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import BaseOperator, Variable
from airflow.sdk.exceptions import AirflowFailException

FLEET_VARIABLE = "tpu_migration_fleet"


class FindMigratedOperator(BaseOperator):  # type: ignore[misc]
    """Return the workloads of the fleet that are on TPU for good, one mapping each, for `WatchOperator`.

    The fleet is the Airflow variable `tpu_migration_fleet`, see `tpu_migration.domain.fleet`. What cannot be
    reached is returned, too, so that its trouble is told beside the others and hides none of them.
    """

    def execute(self, context: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Read the records of every namespace."""
        from dataclasses import asdict

        from tpu_migration.domain.fleet import EXAMPLE, FleetError, parse_fleet
        from tpu_migration.domain.plan import Plan
        from tpu_migration.drift import to_look_after
        from tpu_migration.errors import MigrationError
        from tpu_migration.hooks.migration import MigrationHook

        data = Variable.get(FLEET_VARIABLE, default=None, deserialize_json=True)
        try:
            fleet = parse_fleet(data)
        except FleetError as error:
            raise AirflowFailException(
                f"the Airflow variable {FLEET_VARIABLE} {error}" if data else
                f"the Airflow variable {FLEET_VARIABLE} is not set: it says where to look, for example {EXAMPLE}"
            ) from error  # fmt: skip
        found = []
        for place in fleet:
            try:
                kube = MigrationHook(place.plan(Plan().workload)).kubernetes()
                workloads = to_look_after(kube, place.namespace)
            except MigrationError as error:
                found.append({"place": asdict(place), "workload": "", "trouble": str(error)})
                continue
            self.log.info("%s in %s: %s", place.namespace, place.cluster, ", ".join(workloads) or "nothing migrated")
            found += [{"place": asdict(place), "workload": each, "trouble": ""} for each in workloads]
        return found


class WatchOperator(BaseOperator):  # type: ignore[misc]
    """Look at one migrated workload; the task fails, and so alarms, with all that has drifted and who did it.

    Users who are sent to where nobody is ready are sent to the safe route. Nothing else is changed.

    :param item: one mapping of those that `FindMigratedOperator` returns
    """

    template_fields: Sequence[str] = ("item",)

    def __init__(self, *, item: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.item = item

    def execute(self, context: Mapping[str, Any]) -> str:
        """Return that all is well, or fail."""
        from tpu_migration.clock import SystemClock
        from tpu_migration.domain.fleet import Place
        from tpu_migration.domain.phases import AFTER_COMMIT
        from tpu_migration.drift import drifts, serve_users
        from tpu_migration.errors import PermanentError, TransientError
        from tpu_migration.hooks.migration import MigrationHook
        from tpu_migration.records import Records

        place = Place(**self.item["place"])
        where = f"namespace {place.namespace} of cluster {place.cluster}"
        if self.item["trouble"]:
            raise AirflowFailException(f"{where} could not be looked at: {self.item['trouble']}")
        try:
            kube = MigrationHook(place.plan(self.item["workload"])).kubernetes()
            record = Records(kube, place.namespace, self.item["workload"]).read()
            if record is None or record.phase not in AFTER_COMMIT:
                return "it is not on TPU any more"
            told = drifts(kube, record)
            if done := serve_users(kube, record, f"tpu_watch, run {context['run_id']}", SystemClock()):
                told.insert(0, done)
        except TransientError as error:
            raise AirflowFailException(f"{where} does not answer: {error}") from error
        except PermanentError as error:
            raise AirflowFailException(f"{self.item['workload']} in {where}: {error}") from error
        if told:
            raise AirflowFailException(f"{self.item['workload']} in {where}: " + "; ".join(told))
        return f"as it was proven, {record.phase} by run {record.run_id}"
