"""Notices go out over Apprise where a connection says so, and hold nothing up where a service hangs."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

from tpu_migration.hooks import notices
from tpu_migration.hooks.notices import CONN_ID, Sender, _Services
from tpu_migration.notices import Notice
from tpu_migration.operators.notices import UntoldNotifier


@pytest.fixture
def webhook():
    """A service that takes JSON, as Apprise's `json://` posts it; `taken` is what it got."""
    taken: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            taken.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.taken = taken
    yield server
    server.shutdown()
    server.server_close()


def connect(monkeypatch, port):
    config = {"config": [{"path": f"json://127.0.0.1:{port}", "tag": "all"}]}
    made = Connection(conn_id=CONN_ID, conn_type="apprise", extra=json.dumps(config))
    monkeypatch.setattr(BaseHook, "get_connection", staticmethod(lambda conn_id: made))


def test_a_notice_reaches_a_service_with_its_title_and_kind(monkeypatch, webhook):
    connect(monkeypatch, webhook.server_port)
    sender = Sender(_Services().deliver)
    sender.send(Notice("gemma: committed", "The soak passed.", "success"))
    sender.flush(20.0)
    (got,) = webhook.taken
    assert (got["title"], got["message"], got["type"]) == ("gemma: committed", "The soak passed.", "success")


def test_a_service_that_refuses_is_a_line_in_the_log(monkeypatch, caplog):
    connect(monkeypatch, 1)  # nobody listens there
    _Services().deliver(Notice("gemma: committed", "x"))
    assert "did not reach everybody" in caplog.text


def test_a_service_that_fails_is_told_without_its_address(caplog):
    """A library's error repeats the address that it asked, and a webhook's path is its key."""

    def deliver(notice: Notice) -> None:
        raise ConnectionError("HTTPSConnectionPool(host='hooks.example', port=443): url: /services/T0/B0/s3cret")

    sender = Sender(deliver)
    sender.send(Notice("gemma: committed", "x"))
    sender.flush(10.0)
    assert "'gemma: committed' was not sent: ConnectionError" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    "path", ["json://127.0.0.1:1/s3cretKEY", "no address: s3cretKEY", "slak://T0/s3cretKEY", "json://:@s3cretKEY:x"]
)
def test_a_service_that_is_away_or_set_up_wrongly_is_told_without_its_key(path, monkeypatch, caplog):

    made = Connection(conn_id=CONN_ID, conn_type="apprise", extra=json.dumps({"config": [{"path": path}]}))
    monkeypatch.setattr(BaseHook, "get_connection", staticmethod(lambda conn_id: made))
    with caplog.at_level("INFO"):
        sender = Sender(_Services().deliver)
        sender.send(Notice("gemma: committed", "x"))
        sender.flush(20.0)
    assert "gemma: committed" in caplog.text
    assert "s3cretKEY" not in caplog.text


@pytest.mark.parametrize("hostile", ["<img src=x onerror=alert(1)>", "<script>alert(1)</script>"])
def test_the_words_of_a_reason_stay_words_in_a_mail_that_is_html(hostile, monkeypatch):
    """A reason may quote a server or a log: its tags would be shown to whoever opens the mail."""
    import apprise
    from airflow.providers.apprise.hooks.apprise import AppriseHook

    sent: list[str] = []

    class Mail(apprise.NotifyBase):
        notify_format = apprise.NotifyFormat.HTML

        def url(self, *args, **kwargs):
            return "mail://"

        def send(self, body, *args, **kwargs):
            sent.append(body)
            return True

    monkeypatch.setattr(BaseHook, "get_connection", staticmethod(lambda conn_id: None))
    monkeypatch.setattr(AppriseHook, "set_config_from_conn", lambda self, conn, apprise_obj: apprise_obj.add(Mail()))
    _Services().deliver(Notice("gemma: gate failed", hostile))
    assert len(sent) == 1
    assert hostile not in sent[0]
    assert "&lt;" in sent[0]


def test_without_a_connection_they_are_off_and_it_is_not_asked_for_each_time(monkeypatch):
    asked = []

    def missing(conn_id):
        asked.append(conn_id)
        raise AirflowNotFoundException("none")

    monkeypatch.setattr(BaseHook, "get_connection", staticmethod(missing))
    services = _Services()
    for _ in range(3):
        services.deliver(Notice("a", "b"))
    assert asked == [CONN_ID]


def test_a_service_that_hangs_holds_nobody_up_and_what_is_too_much_is_dropped(caplog):
    hangs, begun = threading.Event(), threading.Event()

    def hang(notice):
        begun.set()
        hangs.wait(60.0)

    sender = Sender(hang)
    for number in range(150):
        sender.send(Notice(f"n{number}", "x"))
    assert begun.wait(30.0)
    sender.flush(0.0)
    assert "is dropped: 100 wait already" in caplog.text
    hangs.set()


def test_one_that_raises_does_not_end_the_others():
    got: list[str] = []

    def deliver(notice):
        if notice.title == "bad":
            raise RuntimeError("a plug-in of a library")
        got.append(notice.title)

    sender = Sender(deliver)
    sender.send(Notice("bad", ""))
    sender.send(Notice("good", ""))
    sender.flush(20.0)
    assert got == ["good"]


def test_a_text_is_cut_to_what_is_read_on_a_phone():
    assert len(Notice("t", "x" * 5000).short().body) == 600


def test_a_task_whose_worker_died_is_told_by_airflow_and_a_stage_that_failed_is_not_told_twice(monkeypatch):
    told: list[Notice] = []
    monkeypatch.setattr(notices, "tell", told.append)
    monkeypatch.setattr(notices, "flush", lambda: None)
    for name in ("tpu_migration", "gpu_fallback"):
        dag = DagBag("dags").dags[name]
        assert not dag.on_failure_callback
        for task in dag.tasks:
            (callback,) = task.on_failure_callback
            assert isinstance(callback, UntoldNotifier)
    callback.notify({"exception": AirflowFailException("the benchmark gate: FAIL")})
    assert told == []
    callback.notify({})
    callback.notify({"exception": RuntimeError("killed")})
    assert [each.kind for each in told] == ["failure", "failure"]
