"""Tell people of what no stage could tell: a run that failed as a whole, a question that waits for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import BaseNotifier
from airflow.sdk.exceptions import AirflowFailException


class MigrationNotifier(BaseNotifier):  # type: ignore[misc]
    """Send a notice to the services of the connection `tpu_migration_notices`; nothing where there is none.

    :param title: what a phone's lock screen shows (templated)
    :param body: the rest (templated)
    :param kind: info, success, warning or failure
    """

    template_fields: Sequence[str] = ("title", "body")

    def __init__(self, title: str, body: str = "", kind: str = "info", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.title, self.body, self.kind = title, body, kind

    def notify(self, context: Mapping[str, Any]) -> None:
        """Send it, without waiting for longer than a moment."""
        from tpu_migration.hooks.notices import flush, tell
        from tpu_migration.notices import Notice

        tell(Notice(self.title, self.body or "see Airflow", self.kind))
        flush()


class UntoldNotifier(MigrationNotifier):
    """Tell of a task that failed without a word of its own: its worker was killed, or Airflow gave it up.

    A stage that fails tells so itself, and then raises AirflowFailException.
    """

    def __init__(self, **kwargs: Any) -> None:
        title = "{{ params.workload }}: {{ ti.task_id }} ended without a word"
        body = "Run {{ run_id }} of {{ dag.dag_id }}: its worker was killed, or Airflow gave it up. See the task's log."
        super().__init__(title, body, "failure", **kwargs)

    def notify(self, context: Mapping[str, Any]) -> None:
        """Send it, unless the stage has told."""
        if not isinstance(context.get("exception"), AirflowFailException):
            super().notify(context)
