"""An Airflow that somebody else started is told the connection, asked for a run, and believed in nothing it refuses."""

from __future__ import annotations

import json

import pytest
from aiohttp import web

from sandbox import airflow_api, demo
from sandbox.addresses import free_port
from sandbox.airflow_api import AirflowFailed, RemoteAirflow

CONNECTION = {"conn_type": "google_cloud_platform", "extra": {"project": "p", "keyfile_dict": {"private_key": "k"}}}
ENV = {
    "AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT": json.dumps(CONNECTION),
    "AIRFLOW_VAR_TPU_MIGRATION_FLEET": "[]",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": "/ca.crt",
}


class Server:
    """The calls of Airflow's REST API that are used, and what was sent to them."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, object]] = []
        self.refuse = ""  # an entity that is refused
        self.statuses: list[int] = []  # of the next answers to a run that is asked for
        self.port = free_port()

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        if request.path == "/auth/token":
            known = body == {"username": "admin", "password": "secret"}
            return web.json_response(
                {"access_token": "t"} if known else {"detail": "wrong"}, status=200 if known else 401
            )
        if request.path != "/api/v2/version" and request.headers.get("Authorization") != "Bearer t":
            return web.json_response({"detail": "who?"}, status=401)
        self.sent.append((request.method, request.path, body))
        if request.path.endswith("/dagRuns") and self.statuses:
            return web.json_response({"detail": "Database error"}, status=self.statuses.pop(0))
        errors = [{"error": "refused"}] if self.refuse and self.refuse in request.path else []
        return web.json_response({"create": {"errors": errors}, "dag_run_id": "r", "state": "running"})


@pytest.fixture
async def server():
    found = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", found.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", found.port).start()
    yield found
    await runner.cleanup()


def remote(server: Server, password: str = "secret") -> RemoteAirflow:
    airflow = RemoteAirflow(f"http://127.0.0.1:{server.port}/", password)
    airflow.env = dict(ENV)
    return airflow


async def test_it_is_told_the_connection_and_the_fleet_whether_it_knew_others_or_none(server):
    await remote(server).start()
    told = {path: body["actions"] for _, path, body in server.sent if body}
    ((connection,), (variable,)) = told["/api/v2/connections"], told["/api/v2/variables"]
    assert connection["action_on_existence"] == variable["action_on_existence"] == "overwrite"
    (given,) = connection["entities"]
    assert (given["connection_id"], given["conn_type"]) == ("google_cloud_default", "google_cloud_platform")
    assert json.loads(given["extra"]) == CONNECTION["extra"]
    assert variable["entities"] == [{"key": "tpu_migration_fleet", "value": "[]"}]


async def test_a_connection_that_it_refuses_ends_the_start(server):
    server.refuse = "connections"
    with pytest.raises(AirflowFailed, match=r"/connections: .*refused"):
        await remote(server).start()


async def test_a_wrong_password_is_told_with_the_servers_words(server):
    with pytest.raises(AirflowFailed, match=r"/auth/token answered 401: .*wrong"):
        await remote(server, "guessed").start()


async def test_one_that_is_not_there_is_told_by_its_address():
    airflow = RemoteAirflow(f"http://127.0.0.1:{free_port()}", "secret")
    with pytest.raises(AirflowFailed, match=r"127\.0\.0\.1:\d+ does not answer"):
        await airflow.start(deadline_s=0.0)
    with pytest.raises(AirflowFailed, match="does not answer"):
        await airflow.state_of("tpu_migration", "r")


async def test_a_run_is_started_once_its_dag_is_parsed_and_followed_by_its_id(server):
    airflow = remote(server)
    assert await airflow.trigger("tpu_migration", {"workload": "vllm"}, "r") == "r"
    assert server.sent[-1] == (
        "POST",
        "/api/v2/dags/tpu_migration/dagRuns",
        {"logical_date": None, "conf": {"workload": "vllm"}, "dag_run_id": "r"},
    )
    assert await airflow.state_of("tpu_migration", "r") == "running"


@pytest.mark.parametrize("statuses", [[500], [503, 500], [500, 409]])
async def test_a_run_whose_answer_was_an_error_of_the_server_is_asked_for_again_under_the_same_id(
    server, monkeypatch, statuses
):
    monkeypatch.setattr(airflow_api, "_POLL_S", 0.0)
    asked, server.statuses = len(statuses) + (statuses[-1] != 409), list(statuses)
    run = await remote(server).trigger("tpu_migration")
    assert [body["dag_run_id"] for _, path, body in server.sent if path.endswith("/dagRuns")] == [run] * asked


@pytest.mark.parametrize(("statuses", "said"), [([409], 409), ([400], 400), ([500, 400], 400), ([500] * 3, 500)])
async def test_a_run_that_is_refused_is_not_asked_for_again_and_again(server, monkeypatch, statuses, said):
    monkeypatch.setattr(airflow_api, "_POLL_S", 0.0)
    server.statuses = list(statuses)
    with pytest.raises(AirflowFailed, match=f"answered {said}: .*Database error"):
        await remote(server).trigger("tpu_migration")


def test_the_demo_takes_the_password_from_the_environment_alone(monkeypatch, capsys):
    monkeypatch.delenv("AIRFLOW_PASSWORD", raising=False)
    with pytest.raises(SystemExit):
        demo.main(["--airflow", "http://127.0.0.1:1"])
    assert "AIRFLOW_PASSWORD" in capsys.readouterr().err
