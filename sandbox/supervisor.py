"""Start child processes, log them, stop them in order, and leave none behind.

Every child gets a session of its own, no stdin, and SANDBOX_ID=<supervisor>/<child> in its environment, so
that whatever it starts in turn (setsid or not) can be found and ended. A watchdog process ends all of it if
this process dies without doing so (see `sandbox.watchdog`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sandbox import watchdog

# The order in which `stop_all` ends things: lower first.
USERS, PODS, GATEWAY, REST = 10, 20, 30, 40


def start_time(pid: int) -> int | None:
    """Return when the process started, in clock ticks since boot; None if there is no such process.

    A pid together with its start time names a process for good: pids are used again.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


class Child:
    """One child process; `identity` is the SANDBOX_ID that it and its descendants carry."""

    def __init__(self, name: str, identity: str, order: int, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.identity = identity
        self.order = order
        self.process = process
        self.killed = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    async def wait(self) -> int:
        """Wait until the process has ended; return its exit code as a shell shows it (128 + signal)."""
        code = await self.process.wait()
        return code if code >= 0 else 128 - code

    def send(self, number: int) -> None:
        """Send a signal to the process itself (not to what it started), if it still runs."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def stop(self, grace_s: float, number: int = signal.SIGTERM) -> int:
        """Send `number`, wait up to `grace_s` seconds, then kill the process and all that it started."""
        self.send(number)
        try:
            await asyncio.wait_for(self.process.wait(), timeout=max(0.0, grace_s))
        except TimeoutError:
            self.killed = True
        await self.kill()
        return await self.wait()

    async def freeze(self) -> None:
        """SIGSTOP the process and everything that it started."""
        for pid in await asyncio.to_thread(watchdog.members, self.identity):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    async def kill(self) -> None:
        """SIGKILL the process, if it still runs, and everything that it started."""
        if self.running:
            self.killed = True
            self.send(signal.SIGKILL)
        await asyncio.to_thread(watchdog.sweep, self.identity)


class Supervisor:
    """Owns a set of named child processes and the watchdog over them.

    Use as an async context manager: leaving it ends everything. A supervisor inside another one's child
    nests: its id extends the outer one, so the outer watchdog ends both, the inner one only its own.
    """

    def __init__(self, logs: Path, identity: str | None = None) -> None:
        outer = os.environ.get("SANDBOX_ID")
        own = identity or secrets.token_hex(6)
        self.identity = f"{outer}/{own}" if outer else own
        self.logs = logs
        self.children: dict[str, Child] = {}
        self._pipe: int | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._count = 0

    async def __aenter__(self) -> Supervisor:
        self.logs.mkdir(parents=True, exist_ok=True)
        self._start_watchdog()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop_all()

    @property
    def watchdog_pid(self) -> int | None:
        return self._watchdog.pid if self._watchdog else None

    def _start_watchdog(self) -> None:
        read_end, write_end = os.pipe()
        try:
            # No SANDBOX_ID of ours in its environment: it must outlive those that it ends.
            self._watchdog = subprocess.Popen(
                [sys.executable, "-S", "-I", str(watchdog.__file__), str(read_end), self.identity],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[read_end],
                start_new_session=True,
                env={"LC_ALL": "C.UTF-8"},
            )
        finally:
            os.close(read_end)
        self._pipe = write_end

    async def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: Path | None = None,
        order: int = REST,
    ) -> Child:
        """Start a process whose output is appended to `log` (default LOGS/NAME.log).

        `env` is the whole environment (default: this process's own); SANDBOX_ID is added to it.
        Raises FileNotFoundError or PermissionError if argv[0] cannot be executed, ValueError if a
        process of that name still runs.
        """
        if name in self.children and self.children[name].running:
            raise ValueError(f"process {name!r} still runs (pid {self.children[name].pid}); stop it first")
        self._count += 1
        identity = f"{self.identity}/{self._count}"
        path = log or self.logs / f"{name}.log"
        with path.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                cwd=cwd,
                # SPT_NOENV: setproctitle (Airflow uses it) would overwrite /proc/PID/environ otherwise.
                env={**(os.environ if env is None else env), "SANDBOX_ID": identity, "SPT_NOENV": "1"},
                start_new_session=True,
            )
        child = Child(name, identity, order, process)
        self.children[name] = child
        return child

    async def stop(self, name: str, grace_s: float = 10.0) -> int | None:
        """Stop one process and forget it; return its exit code, None if there is none of that name."""
        child = self.children.pop(name, None)
        return None if child is None else await child.stop(grace_s)

    def forget(self, child: Child) -> None:
        """Drop a process that has ended, so that its name can be used again."""
        if self.children.get(child.name) is child:
            del self.children[child.name]

    async def stop_all(self, grace_s: float = 5.0) -> None:
        """Stop all processes, order by order, then sweep what is left and let the watchdog go."""
        for order in sorted({child.order for child in self.children.values()}):
            batch = [child for child in self.children.values() if child.order == order]
            await asyncio.gather(*(child.stop(grace_s) for child in batch))
        self.children.clear()
        await asyncio.to_thread(watchdog.sweep, self.identity)
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        if self._watchdog is not None:
            await asyncio.to_thread(self._watchdog.wait)
            self._watchdog = None


async def end(identity: str, pid: int, started: int | None, deadline_s: float = 15.0) -> set[int]:
    """End a sandbox from outside: SIGTERM its supervisor, wait, SIGKILL, sweep; return the pids killed.

    `started` (from `start_time`) guards against a pid that has been given to another process since.
    """
    loop = asyncio.get_running_loop()

    def alive() -> bool:
        return started is not None and start_time(pid) == started

    if alive():
        os.kill(pid, signal.SIGTERM)
    until = loop.time() + deadline_s
    while alive() and loop.time() < until:
        await asyncio.sleep(0.05)
    killed = set()
    if alive():
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    return killed | await asyncio.to_thread(watchdog.sweep, identity)
