"""Put a whole stand together: the sandbox, a real Airflow on it, and users; for the demo and the tests."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from sandbox.airflow import Airflow
from sandbox.airflow_api import RemoteAirflow
from sandbox.airflow_settings import google_environment
from sandbox.supervisor import REST, USERS, Child, Supervisor
from sandbox.workload import ROOT, SERVED_MODEL, WORKLOAD, hostname_of
from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.clients.transport import client_transport
from tpu_migration.record import Record
from tpu_migration.records import Records

DAG_ID = "tpu_migration"
_UP_S = 150.0  # more than the sandbox gives itself, so that its own words are told


class StandFailed(RuntimeError):
    """A part of the stand did not start, or ended; the message carries the end of its log."""


def conf_on(state: Mapping[str, Any], workload: str = WORKLOAD) -> dict[str, Any]:
    """Return the demo's plan for a workload on the sandbox whose state.json is given."""
    plan = json.loads((ROOT / "include" / "plans" / "demo.json").read_text())
    where = {key: state[key] for key in ("location", "cluster", "namespace")}
    return {**plan, **where, "project_id": state["project"], "workload": workload}


def way_back_on(state: Mapping[str, Any], workload: str = WORKLOAD, **changes: Any) -> dict[str, Any]:
    """Return the parameters of `gpu_fallback` for a workload on the sandbox whose state.json is given."""
    where = ("workload", "namespace", "project_id", "location", "cluster")
    return {**{key: value for key, value in conf_on(state, workload).items() if key in where}, **changes}


class Stand:
    """One sandbox with one Airflow; an async context manager that leaves no process behind."""

    def __init__(
        self,
        directory: Path,
        *,
        speed: float = 30.0,
        workloads: int = 1,
        replicas: int = 2,
        dags: Path = ROOT / "dags",
        airflow: RemoteAirflow | None = None,
    ) -> None:
        """Prepare, without starting anything; `airflow` is used in place of one of its own that reads `dags`."""
        self.directory = directory.resolve()
        self.dags = dags
        self.speed = speed
        self.workloads, self.replicas = workloads, replicas
        self.state: dict[str, Any] = {}
        self.supervisor = Supervisor(self.directory / "logs")
        self._elsewhere = airflow
        self._airflow: Airflow | RemoteAirflow | None = None
        self._kube: Kubernetes | None = None
        self._users: dict[str, Child] = {}

    async def __aenter__(self) -> Stand:
        self.directory.mkdir(parents=True, exist_ok=True)
        await self.supervisor.__aenter__()
        try:
            await self._start_sandbox()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End everything."""
        if self._airflow is not None:
            await self._airflow.stop(grace_s=3.0)
        await self.supervisor.stop_all()

    async def _start_sandbox(self) -> None:
        where = self.directory / "sandbox"
        arguments = ["up", "--dir", str(where), "--speed", f"{self.speed:g}"]
        arguments += ["--workloads", str(self.workloads), "--replicas", str(self.replicas)]
        child = await self.supervisor.start(
            "sandbox", [sys.executable, "-m", "sandbox", *arguments], cwd=ROOT, order=REST
        )
        file, until = where / "state.json", time.monotonic() + _UP_S
        while not (file.exists() and json.loads(file.read_text()).get("ready")):
            if not child.running or time.monotonic() > until:
                raise StandFailed(f"the sandbox did not come up:\n{self.tail('sandbox')}")
            await asyncio.sleep(0.1)
        self.state = json.loads(file.read_text())

    def tail(self, name: str, lines: int = 25) -> str:
        """Return the last lines of a process's output."""
        path = self.supervisor.logs / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    # --------------------------------------------------------------- airflow

    @property
    def airflow(self) -> Any:
        """The stand's Airflow; not started before its `start`. A `RemoteAirflow` if the stand was given one."""
        if self._airflow is None and self._elsewhere is not None:
            self._elsewhere.env = google_environment(self.state)
            self._airflow = self._elsewhere
        if self._airflow is None:
            self._airflow = Airflow(
                self.directory / "airflow",
                dags=self.dags,
                plugins=ROOT / "plugins",
                env=google_environment(self.state),
                supervisor=self.supervisor,
            )
        return self._airflow

    def conf(self, workload: str = WORKLOAD, **changes: Any) -> dict[str, Any]:
        """Return the demo's plan for a workload on this sandbox."""
        return {**conf_on(self.state, workload), **changes}

    # --------------------------------------------------------------- cluster

    @property
    def kube(self) -> Kubernetes:
        """A client with a person's rights."""
        if self._kube is None:
            from kubernetes import client, config

            configuration = client.Configuration()
            config.load_kube_config(self.state["kubeconfig"], client_configuration=configuration)
            self._kube = Kubernetes(client_transport(client.ApiClient(configuration)))
        return self._kube

    async def record(self, workload: str = WORKLOAD) -> Record | None:
        """Return a workload's record as it is now."""
        return await asyncio.to_thread(Records(self.kube, self.state["namespace"], workload).read)

    async def until(self, what: str, condition: Any, deadline_s: float) -> Any:
        """Poll an async condition until it gives something true; raises StandFailed at the deadline."""
        until = time.monotonic() + deadline_s
        while True:
            found = await condition()
            if found:
                return found
            if time.monotonic() > until:
                raise StandFailed(f"{what}: not within {deadline_s:.0f} s")
            await asyncio.sleep(0.25)

    async def fault(self, name: str, options: Mapping[str, Any] | None = None) -> None:
        """Switch a fault on."""
        arguments = ["fault", "--dir", str(self.directory / "sandbox"), name, json.dumps(dict(options or {}))]
        log = self.supervisor.logs / "fault.log"
        child = await self.supervisor.start("fault", [sys.executable, "-m", "sandbox", *arguments], cwd=ROOT, log=log)
        if await child.wait() != 0:
            raise StandFailed(f"fault {name}: {self.tail('fault')}")
        self.supervisor.forget(child)

    # ----------------------------------------------------------------- users

    async def start_users(
        self, workload: str = WORKLOAD, *, rate: float = 10.0, output_tokens: int = 300, more: Sequence[str] = ()
    ) -> None:
        """Let users stream answers from a workload through the Gateway; `more` are options of sandbox.users."""
        arguments = [
            "--url", self.state["gateway_url"], "--model", SERVED_MODEL, "--rate", f"{rate:g}",
            "--seed", "7", "--out", str(self.users_file(workload)), "--output-tokens", str(output_tokens), *more,
        ]  # fmt: skip
        if host := hostname_of(workload):
            arguments += ["--host-header", host]
        self._users[workload] = await self.supervisor.start(
            f"users-{workload}", [sys.executable, "-m", "sandbox.users", *arguments], cwd=ROOT, order=USERS
        )

    def users_file(self, workload: str = WORKLOAD) -> Path:
        """Return where the users of a workload write what they have counted."""
        return self.directory / f"users-{workload}.json"

    def users(self, workload: str = WORKLOAD) -> dict[str, Any]:
        """Return what the users have counted so far."""
        file = self.users_file(workload)
        return json.loads(file.read_text()) if file.exists() else {}

    async def stop_users(self, workload: str = WORKLOAD) -> dict[str, Any]:
        """Let the users finish their last answers; return the final count, and each failure in `failures`."""
        child = self._users.pop(workload)
        if not child.running:
            raise StandFailed(f"the users of {workload} ended by themselves:\n{self.tail(f'users-{workload}')}")
        await child.stop(grace_s=90.0)
        self.supervisor.forget(child)
        failures = Path(f"{self.users_file(workload)}.failures.jsonl").read_text().splitlines()
        return {**self.users(workload), "failures": [json.loads(line) for line in failures]}
