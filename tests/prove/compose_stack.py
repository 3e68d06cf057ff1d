"""Run what docker-compose.yaml says as processes of this machine: no container engine is needed.

Commands, environments and health checks are the file's own. What a container brings is put in its place: host names
become ports on loopback, paths of the image become folders, the images of PostgreSQL and Redis become Debian's
packages, and the Airflow image becomes a virtual environment with the wheel in it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from sandbox.addresses import free_port
from sandbox.supervisor import REST, Supervisor
from tests.compose_file import ROOT, Service, copied_into, services
from tests.wheel import build_wheel

_STEP_S = 0.5
_POSTGRES_BINARIES = "/usr/lib/postgresql/*/bin"
# What must come up by itself before the next may start, and how long that may take.
_READY_S = 180.0
_MOUNTED = ("plugins", "include")


class StackFailed(RuntimeError):
    """A service ended, or did not get healthy; the message carries the end of its log."""


def what_is_missing() -> str:
    """Return why the stack cannot run here; empty if it can."""
    lacking = [name for name in ("redis-server", "redis-cli", "pg_isready", "curl") if not shutil.which(name)]
    if _postgres("initdb") is None:
        lacking.append("initdb")
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        lacking.append("setpriv")
    return f"{', '.join(lacking)} not found: apt-get install redis-server postgresql curl" if lacking else ""


def _postgres(program: str) -> str | None:
    found = sorted(Path("/").glob(f"{_POSTGRES_BINARIES.lstrip('/')}/{program}"))
    return str(found[-1]) if found else shutil.which(program)


def make_environment(directory: Path) -> Path:
    """Return the bin folder of a virtual environment as the Dockerfile's Airflow image has it, made anew."""
    place = directory / "venv"
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    install = [uv, "pip", "install"] if uv else [str(place / "bin" / "python"), "-m", "pip", "install"]
    more = ["--python", str(place / "bin" / "python")] if uv else []
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    pinned = ["--constraint", str(ROOT / "constraints.txt"), "--requirement", str(ROOT / "requirements-celery.txt")]
    subprocess.run([*install, "--quiet", *more, *pinned], check=True)
    subprocess.run([*install, "--quiet", *more, "--no-deps", str(build_wheel(directory / "wheel"))], check=True)
    return place / "bin"


class Stack:
    """The services of one profile; an async context manager that leaves no process behind."""

    def __init__(
        self, directory: Path, binaries: Path, values: Mapping[str, str], dags: list[Path], profile: str
    ) -> None:
        """Prepare, without starting anything.

        `values` are the variables of .env; `dags` are DAG files to be had beside those of the repository.
        """
        self.directory = directory.resolve()
        self.home, self.cloud = self.directory / "airflow", self.directory / "sandbox"
        self.values, self.binaries = values, binaries
        self.services = services(values, profile)
        self.supervisor = Supervisor(self.directory / "logs")
        self.ports = {name: free_port() for name in ("postgres", "redis", "api", "health")}
        for place in (self.home / "state", self.home / "logs", self.home / "dags", self.cloud):
            place.mkdir(parents=True)
        for file in [*(ROOT / "dags").glob("*.py"), *dags]:
            shutil.copy(file, self.home / "dags")
        for name in _MOUNTED:
            (self.home / name).symlink_to(ROOT / name)
        self._image = self._sandbox_image()
        # Of a folder that the server's own user may enter: a home directory may be closed to it.
        self._database = Path(tempfile.mkdtemp(prefix="tpu-migration-postgres-"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['api']}"

    async def __aenter__(self) -> Stack:
        await self.supervisor.__aenter__()
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End everything: the database last, by the signal that does not wait for its clients."""
        for name in reversed(list(self.supervisor.children)):
            if name != "postgres":
                await self.supervisor.stop(name, grace_s=10.0)
        if database := self.supervisor.children.get("postgres"):
            await database.stop(10.0, signal.SIGINT)
        await self.supervisor.stop_all()
        shutil.rmtree(self._database, ignore_errors=True)

    # ----------------------------------------------------------------- start

    async def _start(self) -> None:
        """Start the services in the order that their conditions demand."""
        await asyncio.to_thread(self._make_database)
        waiting = dict(self.services)
        while waiting:
            free = [each for each in waiting.values() if not each.after.keys() & waiting.keys()]
            if not free:
                raise StackFailed(f"these wait for each other: {', '.join(waiting)}")
            for service in free:
                await self._meet(service)
                await self.run(service.name)
                del waiting[service.name]

    async def _meet(self, service: Service) -> None:
        """Wait for what a service wants to have before it."""
        for other, condition in service.after.items():
            if condition == "service_healthy":
                await self.healthy(other)
            elif condition == "service_completed_successfully":
                child = self.supervisor.children[other]
                if code := await asyncio.wait_for(child.wait(), _READY_S):
                    raise StackFailed(f"{other} ended with {code}:\n{self.tail(other)}")

    async def healthy(self, name: str, deadline_s: float = _READY_S) -> float:
        """Wait until a service's own health check passes; return the seconds that it took."""
        service, began = self.services[name], time.monotonic()
        while True:
            child = self.supervisor.children[name]
            if not child.running:
                raise StackFailed(f"{name} ended with {await child.wait()}:\n{self.tail(name)}")
            argv, env = self._natively(service, service.health)
            log = self.supervisor.logs / f"{name}.health.log"
            check = await self.supervisor.start(f"{name}-health", argv, env=env, cwd=self.directory, log=log)
            code = await check.wait()
            self.supervisor.forget(check)
            if code == 0:
                return time.monotonic() - began
            if time.monotonic() - began > deadline_s:
                raise StackFailed(f"{name} is not healthy: {self.tail(f'{name}.health')}\n{self.tail(name)}")
            await asyncio.sleep(_STEP_S)

    async def run(self, name: str, *, again: bool = False) -> None:
        """Start a service's process; `again`: a second one beside the first, as NAME-2."""
        service = self.services[name]
        argv, env = self._natively(service, service.command)
        cwd = self._image if name == "sandbox" else self.directory
        await self.supervisor.start(f"{name}-2" if again else name, argv, env=env, cwd=cwd, order=REST)

    def unmount(self) -> None:
        """Take the folders away that the file mounts beside the DAGs."""
        for name in _MOUNTED:
            (self.home / name).unlink()

    def written(self) -> list[Path]:
        """Return every log, of the processes and of Airflow's tasks."""
        return [each for place in (self.supervisor.logs, self.home / "logs") for each in place.rglob("*.log")]

    def dump(self) -> str:
        """Return all that is in the database."""
        asked = self.services["postgres"].environment
        env = {**os.environ, "PGPASSWORD": asked["POSTGRES_PASSWORD"]}
        where = ["--host", "127.0.0.1", "--port", str(self.ports["postgres"]), "--username", asked["POSTGRES_USER"]]
        argv = [str(_postgres("pg_dump")), *where, "--data-only", asked["POSTGRES_DB"]]
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout

    def tail(self, name: str, lines: int = 30) -> str:
        """Return the last lines of a service's output."""
        path = self.supervisor.logs / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    # ------------------------------------------------------- container → process

    def _sandbox_image(self) -> Path:
        """Return a folder with the files that the sandbox's image has of this checkout, and no others."""
        image = self.directory / "image"
        for source, target in copied_into("sandbox"):
            if target.startswith("/opt/"):
                ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(ROOT / source, image / Path(target).name, symlinks=True, ignore=ignored)
        return image

    def _natively(self, service: Service, command: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
        """Return a command of a service, and its whole environment, as they are on this machine."""
        env = {name: self._local(value) for name, value in service.environment.items()}
        # The sandbox's image has the development requirements; all others are the Airflow image.
        binaries = Path(sys.executable).parent if service.name == "sandbox" else self.binaries
        env |= {"PATH": f"{binaries}:{os.environ['PATH']}", "HOME": str(self.directory), "LANG": "C.UTF-8"}
        argv = [self._local(each) for each in command]
        port = str(self.ports.get(service.name, ""))
        if service.name == "redis":
            where = {"redis-cli": ["-h", "127.0.0.1", "-p", port]}
            listen = ["--bind", "127.0.0.1", "--port", port, "--dir", str(self.directory)]
            argv = [argv[0], *where.get(argv[0], []), *argv[1:], *([] if argv[0] in where else listen)]
        elif service.name == "postgres":
            env |= {"PGHOST": "127.0.0.1", "PGPORT": port}
            argv = argv or self._database_argv(port)
        else:
            env |= {"AIRFLOW_HOME": str(self.home)}  # as the image's own environment has it
            env |= {"AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": str(self.ports["health"])}
        return argv, env

    def _local(self, text: str) -> str:
        """Put this machine's addresses and folders in the place of the containers'."""
        api, loopback = self.ports["api"], "127.0.0.1"
        for theirs, ours in {
            "@postgres:5432": f"@{loopback}:{self.ports['postgres']}",
            "@redis:6379": f"@{loopback}:{self.ports['redis']}",
            "airflow-apiserver:8080": f"{loopback}:{api}",
            f"{loopback}:8080": f"{loopback}:{api}",
            f"{loopback}:8974": f"{loopback}:{self.ports['health']}",
            "--port 8080": f"--port {api}",
            "0.0.0.0": loopback,
            "/opt/airflow": str(self.home),
        }.items():
            text = text.replace(theirs, ours)
        return str(self.cloud) + text.removeprefix("/sandbox") if text.startswith("/sandbox") else text

    # -------------------------------------------------------------- database

    def _make_database(self) -> None:
        """Do what the image of PostgreSQL does on its first start."""
        asked = self.services["postgres"].environment
        secret = self._database / "password"
        secret.write_text(asked["POSTGRES_PASSWORD"])
        if self._as_user():
            shutil.chown(self._database, user="postgres")
            shutil.chown(secret, user="postgres")
        data, user = str(self._database / "data"), asked["POSTGRES_USER"]
        options = ["--auth=scram-sha-256", "--no-sync", f"--username={user}", f"--pwfile={secret}"]
        self._database_step("", "initdb", *options, f"--pgdata={data}")
        # Before it listens: who sees it healthy finds the database.
        self._database_step(f"CREATE DATABASE {asked['POSTGRES_DB']}\n", "postgres", "--single", "-D", data, "postgres")

    def _database_step(self, given: str, program: str, *arguments: str) -> None:
        argv = [*self._as_user(), str(_postgres(program)), *arguments]
        done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False, cwd="/")
        if done.returncode:
            raise StackFailed(f"{program}: {done.stdout}{done.stderr}")

    def _database_argv(self, port: str) -> list[str]:
        options = ["-h", "127.0.0.1", "-p", port, "-k", str(self._database / "data"), "-c", "fsync=off"]
        return [*self._as_user(), str(_postgres("postgres")), "-D", str(self._database / "data"), *options]

    @staticmethod
    def _as_user() -> list[str]:
        """PostgreSQL refuses to run as root; Debian's package makes a user for it."""
        root = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        return root if os.geteuid() == 0 else []
