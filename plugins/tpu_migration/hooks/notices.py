"""Send notices over Apprise: to Slack, by mail, to webhooks, and wherever else its connection says.

Off unless there is an Airflow connection `tpu_migration_notices` of type `apprise`. Sent beside the work, by one
thread a process; a service that hangs, refuses or is set up wrongly is a line in the log and nothing more.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from functools import cache

from tpu_migration.notices import Notice

CONN_ID = "tpu_migration_notices"
FLUSH_S = 1.0
_MOST_WAITING = 100
_ASK_AGAIN_S = 300.0  # whether there is a connection by now

log = logging.getLogger(__name__)


class Sender:
    """Send notices one after the other in a thread of its own; `deliver` is given each, and may fail or hang."""

    def __init__(self, deliver: Callable[[Notice], object]) -> None:
        self._deliver = deliver
        self._waiting: queue.Queue[Notice] = queue.Queue(_MOST_WAITING)
        threading.Thread(target=self._run, name="tpu-migration-notices", daemon=True).start()

    def send(self, notice: Notice) -> None:
        """Take a notice and return at once; too many are dropped, the newest first."""
        try:
            self._waiting.put_nowait(notice.short())
        except queue.Full:
            log.warning("the notice %r is dropped: %d wait already", notice.title, _MOST_WAITING)

    def flush(self, seconds: float = FLUSH_S) -> None:
        """Wait for what is on its way, no longer than so: a process is about to end."""
        end = time.monotonic() + seconds
        while self._waiting.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.01)

    def _run(self) -> None:
        while True:
            notice = self._waiting.get()
            try:
                self._deliver(notice)
            except Exception as error:  # noqa: BLE001 (over a hundred services: nothing of them may end this thread)
                # Its message may hold the service's address, and with it the key.
                log.error("the notice %r was not sent: %s", notice.title, type(error).__name__)
            finally:
                self._waiting.task_done()


@cache
def _sender() -> Sender:
    return Sender(_Services().deliver)


def tell(notice: Notice) -> None:
    """Send a notice if a connection says where to; never raises, never waits."""
    _sender().send(notice)


def flush() -> None:
    """Let what was told get out before a worker's process ends; a moment at most."""
    _sender().flush()


class _Addresses(logging.Filter):
    """Keep addresses out of what Apprise logs: of one that it does not understand it masks nothing, key included."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record through, but for what follows the word URL."""
        told, found, _ = record.getMessage().partition("URL")
        if found:
            record.msg, record.args = f"{told}URL in the connection {CONN_ID}", None
        return True


class _Services:
    """The services of the connection, which is read anew for each notice: a triggerer lives long."""

    def __init__(self) -> None:
        self._off_until = -math.inf
        logging.getLogger("apprise").addFilter(_Addresses("apprise"))

    def deliver(self, notice: Notice) -> None:
        """Notify all of them. Apprise answers False where one did not take it, and logs why."""
        if time.monotonic() < self._off_until:
            return
        from airflow.sdk import BaseHook
        from airflow.sdk.exceptions import AirflowNotFoundException

        try:
            connection = BaseHook.get_connection(CONN_ID)
        except AirflowNotFoundException:
            self._off_until = time.monotonic() + _ASK_AGAIN_S
            return
        try:  # only now: each task is a process of its own, and would load it for nothing
            import apprise
            from airflow.providers.apprise.hooks.apprise import AppriseHook
        except ImportError:
            self._off_until = math.inf  # the provider is optional
            log.warning("there is a connection %s, but no apache-airflow-providers-apprise: nobody is told", CONN_ID)
            return
        hook, services = AppriseHook(CONN_ID), apprise.Apprise()
        hook.set_config_from_conn(conn=connection, apprise_obj=services)
        # As text: each service escapes it as its own format needs, so that a reason's HTML or Markdown stays text.
        text = apprise.NotifyFormat.TEXT
        if not services.notify(body=notice.body, title=notice.title, notify_type=notice.kind, body_format=text):
            log.warning("the notice %r did not reach everybody", notice.title)
