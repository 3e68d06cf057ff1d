"""Run one container of a pod: its process, probes, restarts with back-off, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

from sandbox import probes
from sandbox.container_env import ConfigError
from sandbox.container_types import (
    ImageUnavailable,
    Object,
    Prepared,
    Status,
    Surroundings,
    run_beside,
    timestamp,
)
from sandbox.supervisor import PODS, Child

FIRST_BACKOFF_S, MAX_BACKOFF_S = 10.0, 300.0
BACKOFF_RESET_S = 600.0
PULL_ERROR_S = 5.0  # how long the error itself is shown, before the back-off
RETRY_CONFIG_S = 1.0
MIN_GRACE_S = 2.0  # what the kubelet leaves for SIGTERM when a preStop hook has used up the grace period
OOM_EXIT = 137
START_ERROR_EXIT = 128


class Container:
    """One container; `policy` is Always, OnFailure or Never."""

    def __init__(self, spec: Object, pod: Surroundings, policy: str, key: str) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.policy = policy
        self.status = Status()
        self.finished = asyncio.Event()
        self.up = asyncio.Event()  # started, in the sense of the startup probe
        self._pod = pod
        self._key = key
        self._child: Child | None = None
        self._prepared: Prepared | None = None
        self._stopping = False
        self._killed_by_us = False
        self._runner: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def exit_code(self) -> int | None:
        """Return the code with which the container has ended for good, else None."""
        return self.status.state.get("terminated", {}).get("exitCode") if self.finished.is_set() else None

    def start(self) -> None:
        """Begin to run the container in a task of its own, unless it was stopped before."""
        if self._stopping:
            return
        self._runner = asyncio.create_task(self._run(), name=f"container {self._key}")

    async def _run(self) -> None:
        try:
            backoff = 0.0
            while True:
                code, ran_s = await self._once()
                restart = self.policy == "Always" or (self.policy == "OnFailure" and code != 0)
                if self._stopping or not restart:
                    return
                backoff = 0.0 if ran_s > BACKOFF_RESET_S / self._pod.speed else backoff
                await self._wait_backoff(backoff)
                backoff = min(max(backoff * 2, FIRST_BACKOFF_S), MAX_BACKOFF_S)
        finally:
            self.finished.set()
            self._pod.changed()

    async def _wait_backoff(self, seconds: float) -> None:
        self.status.last = self.status.state
        if seconds:
            message = f"back-off {seconds:.0f}s restarting failed container={self.name}"
            self._pod.event("Warning", "BackOff", message)
            self._waiting("CrashLoopBackOff", message)
            await asyncio.sleep(seconds / self._pod.speed)
        self.status.restarts += 1

    async def _once(self) -> tuple[int, float]:
        """Pull, prepare, run to the end; return the exit code and how many seconds it ran."""
        await self._pull()
        prepared = await self._prepare()
        loop = asyncio.get_running_loop()
        began, began_at = loop.time(), timestamp()
        code, reason, message = await self._run_process(prepared, began_at)
        self.status.started = self.status.ready = False
        self.status.state = {
            "terminated": {
                "exitCode": code,
                "reason": reason,
                "startedAt": began_at,
                "finishedAt": timestamp(),
                "containerID": self.status.container_id,
                **({"message": message} if message else {}),
            }
        }
        self._pod.changed()
        return code, loop.time() - began

    async def _pull(self) -> None:
        delay = FIRST_BACKOFF_S
        while True:
            try:
                await self._pod.pull(self.spec)
                return
            except ImageUnavailable as error:
                self._pod.event("Warning", "Failed", f"Error: ErrImagePull: {error}")
                self._waiting("ErrImagePull", str(error))
                await asyncio.sleep(PULL_ERROR_S / self._pod.speed)
                message = f'Back-off pulling image "{self.spec["image"]}": ErrImagePull: {error}'
                self._waiting("ImagePullBackOff", message)
                await asyncio.sleep((delay - PULL_ERROR_S) / self._pod.speed)
                delay = min(delay * 2, MAX_BACKOFF_S)

    async def _prepare(self) -> Prepared:
        while True:
            try:
                return await self._pod.prepare(self.spec)
            except ConfigError as error:
                if self.status.state.get("waiting", {}).get("message") != str(error):
                    self._pod.event("Warning", "Failed", f"Error: {error}")
                self._waiting("CreateContainerConfigError", str(error))
                await asyncio.sleep(RETRY_CONFIG_S)

    def _waiting(self, reason: str, message: str) -> None:
        self.status.state = {"waiting": {"reason": reason, "message": message}}
        self._pod.changed()

    async def _run_process(self, prepared: Prepared, began_at: str) -> tuple[int, str, str]:
        """Run the process and its probes; return exit code, reason and message."""
        self._killed_by_us = False
        if prepared.log.exists():
            # As `kubectl logs`: this run's output only; the one before is kept beside it.
            prepared.log.replace(prepared.log.with_suffix(".previous.log"))
        try:
            child = await self._pod.supervisor.start(
                self._key,
                prepared.argv,
                env=prepared.env,
                cwd=prepared.cwd,
                log=prepared.log,
                order=PODS,
            )
        except OSError as error:
            message = f"failed to start container {self.name}: {error}"
            self._pod.event("Warning", "Failed", message)
            return START_ERROR_EXIT, "StartError", message
        self._child, self._prepared = child, prepared
        self.status.container_id = f"sandbox://{child.identity.replace('/', '-')}"
        self.status.state = {"running": {"startedAt": began_at}}
        self._pod.changed()
        self._pod.event("Normal", "Started", f"Container started: {self.name} (pid {child.pid})")
        watchers = asyncio.create_task(self._probe())
        watchers.add_done_callback(self._on_probes_ended)
        try:
            code = await child.wait()
        finally:
            watchers.cancel()
            await asyncio.gather(watchers, return_exceptions=True)
            # A container ends with its first process: nothing of it may stay.
            await child.kill()
            self._pod.supervisor.forget(child)
            self._child = None
        if code == OOM_EXIT and not (self._killed_by_us or child.killed):
            return code, "OOMKilled", ""
        return code, "Completed" if code == 0 else "Error", ""

    # Probes

    async def _probe(self) -> None:
        cap = probes.MAX_FAST_PERIOD_S if self._pod.speed > 1 else None
        target = self._target()
        if spec := self.spec.get("startupProbe"):
            timing = probes.Timing.of(spec, cap_s=cap)
            on_change = self._killer("Startup", timing)
            await probes.watch(spec, timing, target, on_change, until_first_success=True)
        self.status.started = True
        self.up.set()
        readiness, liveness = self.spec.get("readinessProbe"), self.spec.get("livenessProbe")
        self.status.ready = readiness is None
        self._pod.changed()
        watching = []
        if readiness:
            timing = probes.Timing.of(readiness, cap_s=cap)
            watching.append(probes.watch(readiness, timing, target, self._on_readiness))
        if liveness:
            timing = probes.Timing.of(liveness)
            watching.append(probes.watch(liveness, timing, target, self._killer("Liveness", timing)))
        await asyncio.gather(*watching)

    def _target(self) -> probes.Target:
        ports = {p["name"]: int(p["containerPort"]) for p in self.spec.get("ports") or [] if "name" in p}
        return probes.Target(self._pod.ip, ports, self.execute)

    def _on_probes_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._pod.event("Warning", "ProbeError", f"probes of {self.name} ended: {error!r}")

    def _on_readiness(self, good: bool, message: str) -> None:
        if not good:
            self._pod.event("Warning", "Unhealthy", f"Readiness probe failed: {message}")
        if self.status.ready != good:
            self.status.ready = good
            self._pod.changed()

    def _killer(self, what: str, timing: probes.Timing) -> Callable[[bool, str], None]:
        def on_change(good: bool, message: str) -> None:
            if good or self._stopping:
                return
            self._pod.event("Warning", "Unhealthy", f"{what} probe failed: {message}")
            why = f"Container {self.name} failed {what.lower()} probe, will be restarted"
            self._pod.event("Normal", "Killing", why)
            self._ending = asyncio.create_task(self._end_process(self._pod.grace_s))

        return on_change

    # The end

    async def execute(self, command: list[str]) -> int:
        """Run a command beside the container's process, in its environment; return its exit code."""
        if self._prepared is None:
            raise probes.ProbeFailed("the container does not run")
        return await run_beside(self._pod.supervisor, f"{self._key}-exec", command, self._prepared)

    async def _end_process(self, grace_s: float) -> None:
        """Run preStop, then SIGTERM, then SIGKILL when the grace period (seconds) is over."""
        child = self._child
        if child is None:
            return
        self._killed_by_us = True
        loop = asyncio.get_running_loop()
        until = loop.time() + grace_s
        hook = ((self.spec.get("lifecycle") or {}).get("preStop")) or {}
        if hook and grace_s > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pre_stop(hook, child), grace_s)
        left = until - loop.time()
        await child.stop(max(left, MIN_GRACE_S) if grace_s > 0 else 0.0, signal.SIGTERM)

    async def _pre_stop(self, hook: Object, child: Child) -> None:
        """Run the hook; it is cut short when the process ends by itself."""
        running = asyncio.create_task(self._hook(hook))
        ended = asyncio.create_task(child.wait())
        try:
            await asyncio.wait({running, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (running, ended):
                task.cancel()
            results = await asyncio.gather(running, ended, return_exceptions=True)
        if isinstance(results[0], Exception):
            self._pod.event("Warning", "FailedPreStopHook", f"preStop of {self.name}: {results[0]}")

    async def _hook(self, hook: Object) -> None:
        if "sleep" in hook:
            await asyncio.sleep(float(hook["sleep"]["seconds"]))
        elif "httpGet" in hook:
            await probes.http_get(hook["httpGet"], self._target())
        elif "exec" in hook:
            code = await self.execute(list(hook["exec"]["command"]))
            if code != 0:
                raise probes.ProbeFailed(f"command exited with {code}")

    async def stop(self, grace_s: float) -> None:
        """End the container for good: gracefully if its process runs, at once if it waits for anything."""
        self._stopping = True
        if self._child is not None:
            await self._end_process(grace_s)
            await self.finished.wait()
        elif self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        self.finished.set()

    async def kill(self) -> None:
        """End the container at once."""
        self._stopping = True
        if self._child is not None:
            self._killed_by_us = True
            await self._child.kill()
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)

    async def freeze(self) -> None:
        """Be on a machine that is dead: open connections hang, and nobody is told."""
        self._stopping = True
        if self._child is not None:
            await self._child.freeze()
        elif self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)

    def published(self) -> Object:
        """Return the container's entry in the pod's containerStatuses."""
        return {
            "name": self.name,
            "image": self.spec.get("image", ""),
            "imageID": f"sandbox://{self.spec.get('image', '')}" if self.status.container_id else "",
            "containerID": self.status.container_id,
            "state": self.status.state,
            "lastState": self.status.last,
            "ready": self.status.ready,
            "started": self.status.started,
            "restartCount": self.status.restarts,
        }
