"""Start a real Airflow on the sandbox, trigger runs, read their state, kill it and start it again.

Four processes (api-server, scheduler, dag-processor, triggerer), each supervised by itself: `airflow
standalone` leaves the api-server orphaned on SIGTERM and serves logs on all interfaces. Task logs are read
from the shared log folder, so no log server is started at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import UUID

from sandbox.addresses import free_port
from sandbox.airflow_api import AirflowApi, AirflowFailed
from sandbox.airflow_records import AirflowRecords
from sandbox.airflow_settings import USER, Layout, Secrets, environment
from sandbox.supervisor import REST, Child, Supervisor

COMPONENTS: dict[str, list[str]] = {
    "api-server": ["api-server"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
}
# The row that a component writes into the job table once it works.
JOB_TYPES = {"scheduler": "SchedulerJob", "dag-processor": "DagProcessorJob", "triggerer": "TriggererJob"}
FINAL_STATES = {"success", "failed"}
POLL_S = 0.2


class Airflow(AirflowRecords, AirflowApi):
    """One Airflow of its own directory; use as an async context manager, or call start() and close()."""

    def __init__(
        self,
        directory: Path,
        *,
        dags: Path,
        plugins: Path | None = None,
        env: Mapping[str, str] | None = None,
        parallelism: int = 4,
        supervisor: Supervisor | None = None,
    ) -> None:
        """Prepare, without starting anything.

        `env` is added to the processes' environment (`airflow_settings.google_environment(state)`
        points it at a sandbox). Without `supervisor` it makes one, with a watchdog, and ends it in close().
        """
        home = directory.resolve()
        home.mkdir(parents=True, exist_ok=True)
        empty = home / "no-plugins"
        empty.mkdir(exist_ok=True)
        self.layout = Layout(home, dags.resolve(), (plugins or empty).resolve(), free_port())
        super().__init__(self.layout.database, home / "logs")
        self.keys = Secrets()
        # People log in with these, and so do the calls of the REST API.
        self.url, self.user, self.password = self.layout.url, USER, self.keys.password
        self.env = environment(self.layout, self.keys, parallelism=parallelism, base=os.environ, extra=env or {})
        self._own_supervisor = supervisor is None
        self.supervisor = supervisor or Supervisor(self.logs)
        self._entered = False
        self._migrated = False
        self._calls = 0

    async def __aenter__(self) -> Airflow:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _name(self, component: str) -> str:
        return f"airflow-{component}"

    def log_file(self, component: str) -> Path:
        """Return where the output of a component goes."""
        return self.logs / f"{component}.log"

    def child(self, component: str) -> Child | None:
        return self.supervisor.children.get(self._name(component))

    def running(self) -> set[str]:
        """Return the components whose process runs."""
        return {c for c in COMPONENTS if (child := self.child(c)) is not None and child.running}

    async def start(self, deadline_s: float = 120.0) -> None:
        """Migrate the database (once), start the components that do not run, wait until all are healthy.

        Raises AirflowFailed with the end of the log of the component that died or is not healthy.
        """
        (self.logs).mkdir(parents=True, exist_ok=True)
        if self._own_supervisor and not self._entered:
            await self.supervisor.__aenter__()
            self._entered = True
        if not self._migrated:
            self.layout.passwords.write_text(json.dumps({USER: self.password}))
            self.layout.passwords.chmod(0o600)
            await self.cli("db", "migrate")
            self._migrated = True
        newest = self._newest_job()
        starting = COMPONENTS.keys() - self.running()
        for component in starting:
            await self.supervisor.start(
                self._name(component),
                [sys.executable, "-m", "airflow", *COMPONENTS[component]],
                env=self.env,
                cwd=self.layout.home,
                log=self.log_file(component),
                order=REST,
            )
        await self._ready(starting, newest, deadline_s)

    async def _ready(self, starting: set[str], newest: int, deadline_s: float) -> None:
        """Wait for the API and for a *new* job of each component: after a kill the old ones look alive."""
        until = time.monotonic() + deadline_s
        while True:
            missing = {c for c in starting & JOB_TYPES.keys() if not self._has_job(c, newest)}
            if not await self.answers():
                missing.add("api-server")
            if not missing:
                return
            if ended := COMPONENTS.keys() - self.running():
                raise AirflowFailed(self._report(f"ended while starting: {sorted(ended)}", ended))
            if time.monotonic() > until:
                raise AirflowFailed(self._report(f"not ready after {deadline_s:.0f} s", missing))
            await asyncio.sleep(POLL_S)

    def _newest_job(self) -> int:
        return int(self.rows("SELECT coalesce(max(id), 0) FROM job")[0][0])

    def _has_job(self, component: str, newer_than: int) -> bool:
        query = "SELECT 1 FROM job WHERE job_type = ? AND id > ? AND state = 'running'"
        return bool(self.rows(query, (JOB_TYPES[component], newer_than)))

    def _report(self, what: str, components: set[str]) -> str:
        tails = [f"--- {c}, end of {self.log_file(c)}\n{self.tail(c)}" for c in sorted(components)]
        return "\n".join([f"airflow: {what}", *tails])

    def tail(self, component: str, lines: int = 25) -> str:
        """Return the last lines of a component's output."""
        path = self.log_file(component)
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    async def stop(self, grace_s: float = 15.0) -> None:
        """Stop all components (SIGTERM, `grace_s` seconds, SIGKILL); start() brings them up again."""
        await asyncio.gather(*(self.supervisor.stop(self._name(c), grace_s) for c in COMPONENTS))

    async def kill(self, *components: str) -> None:
        """SIGKILL the given components (default all four) at once, with every task and trigger they run."""
        children = [child for c in components or COMPONENTS if (child := self.child(c)) is not None]
        for child in children:
            child.send(signal.SIGKILL)
        await asyncio.gather(*(child.kill() for child in children))
        for child in children:
            self.supervisor.forget(child)

    async def kill_worker(self, dag_id: str, run_id: str, task_id: str, deadline_s: float = 30.0) -> bool:
        """SIGKILL the worker process of a task while one has it; False if none had by the run's end or the deadline."""
        query = "SELECT id FROM task_instance WHERE dag_id = ? AND run_id = ? AND task_id = ? AND state = 'running'"
        until = time.monotonic() + deadline_s
        while time.monotonic() < until and self.run_state(dag_id, run_id) not in FINAL_STATES:
            for (identity,) in self.rows(query, (dag_id, run_id, task_id)):
                if pid := _process_of(str(UUID(str(identity)))):
                    os.kill(pid, signal.SIGKILL)
                    return True
            await asyncio.sleep(0.05)
        return False

    async def forget_everything(self) -> None:
        """Kill all components and reset the database, as whoever loses it; start() begins anew."""
        await self.kill()
        await self.cli("db", "reset", "--yes")

    async def close(self) -> None:
        """Stop everything, and the own supervisor; nothing is left running."""
        await self.stop(grace_s=3.0)
        if self._entered:
            await self.supervisor.stop_all()
            self._entered = False

    async def cli(self, *arguments: str, deadline_s: float = 120.0) -> str:
        """Run `airflow ARGUMENTS` as a person would; return its output.

        Raises AirflowFailed if it exits with another code than 0 or takes longer than `deadline_s` seconds.
        """
        self._calls += 1
        name = f"airflow-cli-{self._calls}"
        log = self.logs / f"{name}.log"
        argv = [sys.executable, "-m", "airflow", *arguments]
        child = await self.supervisor.start(name, argv, env=self.env, cwd=self.layout.home, log=log)
        try:
            code = await asyncio.wait_for(child.wait(), deadline_s)
        except TimeoutError:
            raise AirflowFailed(f"`airflow {shlex.join(arguments)}` still ran after {deadline_s:.0f} s") from None
        finally:
            await child.kill()
            self.supervisor.forget(child)
        output = log.read_text(errors="replace")
        if code != 0:
            raise AirflowFailed(f"`airflow {shlex.join(arguments)}` exited with {code}:\n{output[-4000:]}")
        return output

    async def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None, run_id: str | None = None) -> str:
        """Start a run with `airflow dags trigger`, waiting for the DAG to be parsed; return the run id."""
        await self.wait_for_dag(dag_id)
        run = run_id or f"manual-{secrets.token_hex(4)}"
        await self.cli("dags", "trigger", dag_id, "--run-id", run, "--conf", json.dumps(dict(conf or {})))
        return run

    async def trigger_by_api(
        self, dag_id: str, conf: Mapping[str, Any] | None = None, run_id: str | None = None
    ) -> str:
        """Start a run as the UI does, without the seconds that the command line takes to import Airflow."""
        await self.wait_for_dag(dag_id)
        return await self.start_run(dag_id, conf, run_id)

    async def state_of(self, dag_id: str, run_id: str) -> str | None:
        """Return queued, running, success or failed; None if there is no such run."""
        return await asyncio.to_thread(self.run_state, dag_id, run_id)

    async def log_of(self, dag_id: str, run_id: str, task_id: str) -> str:
        """Return the log of a task, all its tries."""
        return await asyncio.to_thread(self.task_log, dag_id, run_id, task_id)

    async def wait_for_dag(self, dag_id: str, deadline_s: float = 120.0) -> None:
        """Wait until the DAG has been parsed; raise AirflowFailed with the import errors if it is not."""
        query = "SELECT 1 FROM dag d JOIN serialized_dag s USING (dag_id) WHERE d.dag_id = ? AND NOT d.is_stale"
        until = time.monotonic() + deadline_s
        while not self.rows(query, (dag_id,)):
            if time.monotonic() > until:
                errors = "\n".join(f"{f}: {t}" for f, t in self.import_errors().items()) or "no import error"
                raise AirflowFailed(f"DAG {dag_id!r} not parsed after {deadline_s:.0f} s; {errors}")
            await asyncio.sleep(POLL_S)

    async def wait_for_run(self, dag_id: str, run_id: str, deadline_s: float) -> str:
        """Wait until the run has ended; return "success" or "failed".

        Raises TimeoutError, with the states of the tasks, if it has not after `deadline_s` seconds.
        """
        until = time.monotonic() + deadline_s
        while (state := self.run_state(dag_id, run_id)) not in FINAL_STATES:
            if time.monotonic() > until:
                raise TimeoutError(
                    f"run {run_id} is {state} after {deadline_s:.0f} s: {self.task_states(dag_id, run_id)}"
                )
            await asyncio.sleep(POLL_S)
        return str(state)


def _process_of(task_instance: str) -> int | None:
    """Return the process that runs a task, as LocalExecutor's supervisor names it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cmdline").read_bytes().startswith(f"airflow worker -- {task_instance}".encode()):
                    return int(entry.name)
    return None
