"""Speak with an Airflow over its REST API, and use one that runs elsewhere, as that of docker-compose.yaml."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import aiohttp

from sandbox.airflow_settings import USER

_POLL_S = 0.5
_TRIES = 3
_PATIENCE_S = 60.0  # more than the API server itself waits for its database
_CONNECTION, _VARIABLE = "AIRFLOW_CONN_", "AIRFLOW_VAR_"


class AirflowFailed(RuntimeError):
    """Airflow did not start, or refused what was asked; the message carries what it said.

    `status` is that of the HTTP answer, 0 where there was none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


async def _answer(session: aiohttp.ClientSession, method: str, url: str, body: object) -> Any:
    async with session.request(method, url, json=body) as answer:
        text = await answer.text()
    if answer.status // 100 != 2:
        raise AirflowFailed(f"{method} {url} answered {answer.status}: {text[:2000]}", answer.status)
    return json.loads(text) if text else None


class AirflowApi:
    """Airflow's REST API, as its admin; whoever uses it gives `url`, `user` and `password`."""

    url: str
    user: str
    password: str

    async def api(self, method: str, path: str, body: object = None) -> Any:
        """Call the REST API (`path` below /api/v2) as the admin user; return the parsed answer.

        Raises AirflowFailed with the answer's text if its status is not 2xx, or if there is no answer.
        """
        login = {"username": self.user, "password": self.password}
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_PATIENCE_S)) as session:
                token = (await _answer(session, "POST", f"{self.url}/auth/token", login))["access_token"]
                session.headers["Authorization"] = f"Bearer {token}"
                return await _answer(session, method, f"{self.url}/api/v2{path}", body)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise AirflowFailed(f"{self.url} does not answer: {error or type(error).__name__}") from error

    async def start_run(self, dag_id: str, conf: Mapping[str, Any] | None, run_id: str | None) -> str:
        """Start a run as the UI does; return its id, drawn here if none is given.

        An answer 5xx leaves open whether there is a run now: it is asked for again under the same id, which
        makes two runs impossible, and a refusal as "already exists" says that the first time did it.
        """
        run = run_id or f"manual-{secrets.token_hex(4)}"
        body = {"logical_date": None, "conf": dict(conf or {}), "dag_run_id": run}
        for left in reversed(range(_TRIES)):
            try:
                await self.api("POST", f"/dags/{dag_id}/dagRuns", body)
                break
            except AirflowFailed as error:
                if error.status == HTTPStatus.CONFLICT and left < _TRIES - 1:
                    break
                if error.status < HTTPStatus.INTERNAL_SERVER_ERROR or not left:
                    raise
                await asyncio.sleep(_POLL_S)
        return run

    async def answers(self) -> bool:
        """Tell whether the API server answers at all."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
                session.get(f"{self.url}/api/v2/version") as answer,
            ):
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


class RemoteAirflow(AirflowApi):
    """An Airflow that somebody else started, and whose database and logs are not at hand."""

    def __init__(self, url: str, password: str, user: str = USER) -> None:
        self.url, self.user, self.password = url.rstrip("/"), user, password
        self.env: dict[str, str] = {}  # AIRFLOW_CONN_… and AIRFLOW_VAR_… in it are told on start()

    async def start(self, deadline_s: float = 300.0) -> None:
        """Wait until it answers, and tell it the connections and variables of `env`.

        Raises AirflowFailed if it does not answer within `deadline_s` seconds, or refuses them.
        """
        until = time.monotonic() + deadline_s
        while not await self.answers():
            if time.monotonic() > until:
                raise AirflowFailed(f"{self.url} does not answer within {deadline_s:.0f} s")
            await asyncio.sleep(_POLL_S)
        for path, entities in (("/connections", self._connections()), ("/variables", self._variables())):
            create = {"action": "create", "action_on_existence": "overwrite", "entities": entities}
            said = await self.api("PATCH", path, {"actions": [create]})
            if errors := (said.get("create") or {}).get("errors"):
                raise AirflowFailed(f"PATCH {path}: {errors}")

    def _connections(self) -> list[dict[str, Any]]:
        found = {
            name.removeprefix(_CONNECTION).lower(): json.loads(self.env[name]) for name in self._named(_CONNECTION)
        }
        return [
            {"connection_id": name, "conn_type": each["conn_type"], "extra": json.dumps(each["extra"])}
            for name, each in found.items()
        ]

    def _variables(self) -> list[dict[str, Any]]:
        return [{"key": n.removeprefix(_VARIABLE).lower(), "value": self.env[n]} for n in self._named(_VARIABLE)]

    def _named(self, prefix: str) -> list[str]:
        return [name for name in self.env if name.startswith(prefix)]

    async def stop(self, grace_s: float = 0.0) -> None:
        """Leave it running: it is not ours."""

    async def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None, run_id: str | None = None) -> str:
        """Start a run as the UI does, once the DAG has been parsed; return the run id."""
        await self.wait_for_dag(dag_id)
        return await self.start_run(dag_id, conf, run_id)

    async def wait_for_dag(self, dag_id: str, deadline_s: float = 120.0) -> None:
        """Wait until the DAG has been parsed; raise AirflowFailed with the import errors if it is not."""
        until = time.monotonic() + deadline_s
        while True:
            try:
                await self.api("GET", f"/dags/{dag_id}")
                return
            except AirflowFailed as error:
                if time.monotonic() > until:
                    errors = await self.api("GET", "/importErrors")
                    raise AirflowFailed(f"DAG {dag_id!r} not parsed: {error}; {errors}") from error
            await asyncio.sleep(_POLL_S)

    async def state_of(self, dag_id: str, run_id: str) -> str:
        """Return queued, running, success or failed."""
        return str((await self.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}"))["state"])

    async def tasks(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """Return each task of a run as the API shows it (state, queue, start_date, …), mapped ones as "id[index]"."""
        found = (await self.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances"))["task_instances"]
        return {t["task_id"] if t["map_index"] < 0 else f"{t['task_id']}[{t['map_index']}]": t for t in found}

    async def log_of(self, dag_id: str, run_id: str, task_id: str) -> str:
        """Return the log of a task's first try."""
        said = await self.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/1")
        lines = said["content"] if isinstance(said["content"], list) else [said["content"]]
        return "\n".join(str(each.get("event", each)) if isinstance(each, dict) else str(each) for each in lines)
