"""Watch what TPUs learn and unlearn, for the workloads that gave something up to be on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import Asset, AssetAlias, BaseOperator, Variable
from airflow.sdk.exceptions import AirflowFailException

SETTING, SEEN = "tpu_migration_matrices", "tpu_migration_matrices_seen"
MATRICES = Asset("tpu-inference-support-matrices", uri="x-tpu-migration://tpu-inference/support-matrices")
# By an alias, for a task emits an event of its outlets whenever it ends well: here only when there is news.
NEWS = AssetAlias("tpu-feature-news")


class FeatureWatchOperator(BaseOperator):  # type: ignore[misc]
    """Compare the published support matrices with those seen last; emit an asset event for what concerns a workload.

    What was seen last is the Airflow variable `tpu_migration_matrices_seen`: the matrices belong to no cluster, and
    losing them loses one comparison. Where to read them is the variable `tpu_migration_matrices`, a JSON object with
    `source` (an address or a folder) and `channel` (release, nightly); both may be left out.

    :param items: the mappings that `FindMigratedOperator` returns
    """

    template_fields: Sequence[str] = ("items",)

    def __init__(self, *, items: Any, **kwargs: Any) -> None:
        super().__init__(outlets=[NEWS], **kwargs)
        self.items = items

    def execute(self, context: Mapping[str, Any]) -> list[str]:
        """Return the news that concern a workload, a sentence each."""
        from tpu_migration.clients.matrices import Matrices
        from tpu_migration.clock import SystemClock
        from tpu_migration.errors import PermanentError
        from tpu_migration.feature_watch import Known, news, read_all, stale
        from tpu_migration.hooks.notices import flush, tell
        from tpu_migration.notices import Notice
        from tpu_migration.resources import features

        setting = Variable.get(SETTING, default=None, deserialize_json=True)
        source, channel = _where(setting)
        try:
            before = Known.from_dict(Variable.get(SEEN, default=None, deserialize_json=True))
        except PermanentError as error:
            raise AirflowFailException(f"Airflow variable {SEEN}: {error}") from error
        now = SystemClock().now()
        after, warnings = read_all(Matrices(source), channel, before, now)
        for warning in warnings:
            self.log.warning("%s", warning)
        if why := stale(after, now):
            raise AirflowFailException(f"{why}: {'; '.join(warnings)}")
        found = news(before, after, self._workloads(), features())
        for each in found:
            self.log.info("%s", each.sentence)
        told = [each for each in found if each.workloads]
        if told:
            tell(Notice("TPU features: news", "\n".join(each.sentence for each in told)))
            extra = {
                "news": [each.sentence for each in told],
                "changes": [
                    {
                        "kind": each.change.kind, "name": each.change.name, "gained": each.change.gained,
                        "generation": each.generation, "workloads": list(each.workloads),
                    }
                    for each in told
                ],
            }  # fmt: skip
            context["outlet_events"][NEWS].add(MATRICES, extra=extra)
        # Last: a task that failed before has told nobody, and the next run tells.
        Variable.set(SEEN, after.to_dict(), serialize_json=True)
        flush()
        return [each.sentence for each in told]

    def _workloads(self) -> list[Any]:
        """Read what each workload gave up; one that cannot be read is told, and hides no other."""
        from tpu_migration.domain.fleet import Place
        from tpu_migration.domain.matrices import Workload
        from tpu_migration.errors import MigrationError
        from tpu_migration.hooks.migration import MigrationHook
        from tpu_migration.records import Records

        found = []
        for item in self.items:
            place, name = Place(**item["place"]), item["workload"]
            try:
                if item["trouble"]:
                    raise MigrationError(item["trouble"])
                record = Records(MigrationHook(place.plan(name)).kubernetes(), place.namespace, name).read()
            except MigrationError as error:
                self.log.warning("what %s gave up is not known: %s", name or place.namespace, error)
                continue
            if record is not None:
                gaps = record.notes.get("gaps")
                generation = str(record.plan["target"]).split("-")[1]
                model, known = record.source.model, None if gaps is None else tuple(gaps)
                found.append(Workload(f"{place.namespace}/{name}", generation, model, known))
        return found


def _where(setting: Any) -> tuple[str, str]:
    from tpu_migration.clients.matrices import PUBLISHED
    from tpu_migration.domain.matrices import CHANNELS

    values = {"source": PUBLISHED, "channel": CHANNELS[0], **(setting if isinstance(setting, dict) else {})}
    if (setting and not isinstance(setting, dict)) or len(values) > 2 or values["channel"] not in CHANNELS:
        raise AirflowFailException(
            f'the Airflow variable {SETTING} must be like {{"source": "{PUBLISHED}", "channel": "release"}}; channel '
            f"is one of {', '.join(CHANNELS)}"
        )
    return str(values["source"]), str(values["channel"])
