"""Run one pod: its containers in their order, its published status, and its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine

import aiohttp

from sandbox.container_env import ConfigError
from sandbox.container_launch import Settings, prepare
from sandbox.container_types import ImageUnavailable, Object, Prepared, timestamp
from sandbox.containers import Container
from sandbox.kube import KubeError
from sandbox.pod_status import FINAL_PHASES, conditions, event_body, host_ip

PULL_S = 2.0
PERSIST_S = 0.5
DEFAULT_GRACE_S = 30
FAULT_IMAGE_PULL = "image-pull"
SHUT_DOWN = "Pod was terminated in response to imminent node shutdown."
UNREACHABLE = (aiohttp.ClientError, TimeoutError, OSError)


class Pod:
    """One pod on one node, from its binding to its deletion; implements `container_types.Surroundings`."""

    def __init__(
        self,
        settings: Settings,
        manifest: Object,
        node: Object,
        ip: str,
        *,
        pulled: set[str],
        on_end: Callable[[Pod], None],
    ) -> None:
        """Begin to run the pod, unless its object is being deleted; `pulled` are the images of its node."""
        self.settings = settings
        self.supervisor = settings.supervisor
        self.speed = settings.speed
        self.manifest = manifest
        self.node = node
        self.ip = ip
        self.uid: str = manifest["metadata"]["uid"]
        self.namespace: str = manifest["metadata"]["namespace"]
        self.name: str = manifest["metadata"]["name"]
        grace = manifest["spec"].get("terminationGracePeriodSeconds")
        self.grace_s = float(DEFAULT_GRACE_S if grace is None else grace)
        self.phase = "Pending"
        self.initialized = False
        self.gone = False  # the object is not there any more: nothing to publish or delete
        self._pulled = pulled
        self._on_end = on_end
        self._urgent = self._deleting = self._lost = self._shutting_down = False
        self._started_at = timestamp()
        self._published: Object | None = None
        self._dirty = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None
        self._events: set[asyncio.Task[None]] = set()
        policy = manifest["spec"].get("restartPolicy") or "Always"
        self.sidecars: list[Container] = []
        self.inits: list[Container] = []
        for spec in manifest["spec"].get("initContainers") or []:
            sidecar = spec.get("restartPolicy") == "Always"
            init_policy = "Always" if sidecar else ("Never" if policy == "Never" else "OnFailure")
            container = self._container(spec, init_policy)
            self.inits.append(container)
            if sidecar:
                self.sidecars.append(container)
        self.mains = [self._container(spec, policy) for spec in manifest["spec"]["containers"]]
        self._publisher: asyncio.Task[None] = asyncio.create_task(
            self._publish_forever(), name=f"status of {self.name}"
        )
        self._runner = asyncio.create_task(self._run(), name=f"pod {self.namespace}/{self.name}")

    def _container(self, spec: Object, policy: str) -> Container:
        return Container(spec, self, policy, f"pod-{self.uid}-{spec['name']}")

    # Running

    async def _run(self) -> None:
        if "deletionTimestamp" in self.manifest["metadata"]:
            return
        self.changed()
        if not await self._run_inits():
            if self._ending is None:
                self.phase = "Failed"
                self.changed()
            return
        self.initialized = True
        for container in self.mains:
            container.start()
        for container in self.mains:
            await container.finished.wait()
        if self._ending is not None:
            return
        for container in reversed(self.sidecars):
            await container.stop(self.grace_s)
        self.phase = "Succeeded" if all(c.exit_code == 0 for c in self.mains) else "Failed"
        self.changed()

    async def _run_inits(self) -> bool:
        for container in self.inits:
            if self._ending is not None:
                return False
            container.start()
            if container in self.sidecars:
                waits = {asyncio.create_task(e.wait()) for e in (container.up, container.finished)}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for task in waits:
                    task.cancel()
            else:
                await container.finished.wait()
                if container.exit_code != 0:
                    return False
        return self._ending is None

    async def pull(self, container: Object) -> None:
        """Take the time that an image pull takes, once for each image and node; may be made to fail."""
        image = container.get("image", "")
        fault = self.settings.faults.get(FAULT_IMAGE_PULL)
        if fault is not None and fault.get("image", "") in image:
            raise ImageUnavailable(f'failed to pull and unpack image "{image}": not found')
        if image not in self._pulled or container.get("imagePullPolicy") == "Always":
            self.event("Normal", "Pulling", f'Pulling image "{image}"')
            await asyncio.sleep(0 if image in self._pulled else PULL_S / self.speed)
            self._pulled.add(image)
        self.event("Normal", "Pulled", f'Container image "{image}" is present on machine')

    async def prepare(self, container: Object) -> Prepared:
        """Resolve the container's references into a process to start; raises ConfigError."""
        try:
            return await prepare(self.settings, self.manifest, self.node, self.ip, container)
        except (KubeError, *UNREACHABLE) as error:
            raise ConfigError(f"cannot read what {container['name']} refers to: {error}") from error

    # The end

    def lose(self) -> None:
        """Be on a machine that is dead: nothing answers or is reported any more, and the object stays."""
        if not self._lost:
            self._lost = True
            self._ending = asyncio.create_task(self._lose(self._ending), name=f"loss of {self.name}")

    async def _lose(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await cancel(before)
        await cancel(self._publisher, *self._events)
        await asyncio.gather(*(c.freeze() for c in [*self.inits, *self.mains]))

    def shut_down(self, grace_s: float) -> None:
        """End gracefully because the machine is about to go; the object stays, as Failed (graceful node shutdown)."""
        if self._ending is None and self.phase not in FINAL_PHASES:
            self._shutting_down = True
            self.changed()
            self._ending = asyncio.create_task(self._shut_down(min(grace_s, self.grace_s)))

    async def _shut_down(self, grace_s: float) -> None:
        await self._stop_containers(grace_s)
        await cancel(self._runner)
        self.phase = "Failed"
        self.changed()

    def terminate(self, grace_s: float) -> None:
        """Begin the graceful end; asked again without any grace, end at once."""
        if not self._deleting:
            self.event("Normal", "Killing", f"Stopping pod {self.name}")
            self._begin_end(self._terminate(grace_s))
        elif grace_s == 0 and not self._urgent:
            self.remove()

    def remove(self) -> None:
        """End the pod at once and delete its object: its node is gone, or it is deleted by force."""
        self._urgent = True
        self._begin_end(self._remove())

    def drop(self) -> None:
        """End the pod at once; its object is gone already."""
        self.gone = self._urgent = True
        self._begin_end(self._kill())

    def _begin_end(self, end: Coroutine[None, None, None]) -> None:
        """Run an end in the background; it takes the place of one that is under way."""
        self._deleting = True
        self._ending = asyncio.create_task(self._end(self._ending, end), name=f"end of {self.name}")

    async def _end(self, before: asyncio.Task[None] | None, end: Coroutine[None, None, None]) -> None:
        if before is not None:
            await cancel(before)
        await end
        await self.close()
        self._on_end(self)

    async def _terminate(self, grace_s: float) -> None:
        await self._stop_containers(grace_s)
        await self._delete_object()

    async def _stop_containers(self, grace_s: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + grace_s
        first = [c for c in [*self.inits, *self.mains] if c not in self.sidecars]
        await asyncio.gather(*(c.stop(grace_s) for c in first))
        for container in reversed(self.sidecars):
            await container.stop(max(0.0, until - loop.time()))

    async def _remove(self) -> None:
        await self._kill()
        await self._delete_object()

    async def _kill(self) -> None:
        await asyncio.gather(*(c.kill() for c in [*self.inits, *self.mains]))

    async def _delete_object(self) -> None:
        """Publish how the containers ended, then let the API forget the pod."""
        await cancel(self._runner, self._publisher)
        if self.phase not in FINAL_PHASES:
            done = all(c.exit_code == 0 for c in self.mains)
            self.phase = "Succeeded" if done else "Failed"
        await self._persist(self._publish)
        await self._persist(self._delete)

    async def _delete(self) -> None:
        # With the uid: a pod of the same name that was made since is another one's.
        await self.settings.kube.delete("pods", self.namespace, self.name, grace_period_s=0, uid=self.uid)

    async def close(self) -> None:
        """Stop everything that this pod does on this machine; its object stays as it is."""
        await cancel(self._runner, self._publisher, *self._events)
        await self._kill()

    def is_running(self, container: str) -> bool:
        """Tell whether the process of a container runs."""
        return any(c.name == container and "running" in c.status.state for c in [*self.inits, *self.mains])

    # What is published

    def changed(self) -> None:
        """Publish the status soon; many changes make one call."""
        if self.phase == "Pending" and any("running" in c.status.state for c in self.mains):
            self.phase = "Running"
        self._dirty.set()

    async def _publish_forever(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self._persist(self._publish)

    async def _publish(self) -> None:
        status = self.status()
        if status != self._published:
            body = {"metadata": {"uid": self.uid}, "status": status}
            await self.settings.kube.patch("pods", self.namespace, self.name, body, subresource="status")
            self._published = status

    async def _persist(self, call: Callable[[], Awaitable[None]]) -> None:
        """Make a call until the API server takes it, or says that the pod is not there any more."""
        while not self.gone:
            try:
                await call()
                return
            except KubeError as error:
                if error.code in (404, 409):  # 409: the name belongs to another pod by now
                    self.gone = True
                elif error.code < 500:
                    raise
            except UNREACHABLE:
                pass  # said by whoever watches the API server; here only the next try helps
            await asyncio.sleep(PERSIST_S)

    def status(self) -> Object:
        """Return the pod's status as the API shows it."""
        done = self.phase in FINAL_PHASES
        serving = [*self.sidecars, *self.mains]
        ready = not (done or self._shutting_down) and self.initialized and all(c.status.ready for c in serving)
        before = self._published or self.manifest.get("status") or {}
        status: Object = {
            "phase": self.phase,
            "conditions": conditions(
                before.get("conditions") or [], initialized=self.initialized, ready=ready, done=done
            ),
            "hostIP": host_ip(self.node),
            "podIP": self.ip,
            "podIPs": [{"ip": self.ip}],
            "startTime": self._started_at,
            "containerStatuses": [c.published() for c in self.mains],
        }
        if self._shutting_down:
            status |= {"reason": "Terminated", "message": SHUT_DOWN}
        if self.inits:
            status["initContainerStatuses"] = [c.published() for c in self.inits]
        return status

    def event(self, kind: str, reason: str, message: str) -> None:
        """Publish an event about the pod, in the background."""
        body = event_body(self.manifest, self.node["metadata"]["name"], kind, reason, message)
        task = asyncio.create_task(self._send_event(body))
        self._events.add(task)
        task.add_done_callback(self._events.discard)

    async def _send_event(self, body: Object) -> None:
        # Best effort, as everywhere in Kubernetes: no pod waits for its events.
        with contextlib.suppress(KubeError, *UNREACHABLE):
            await self.settings.kube.create("events", self.namespace, body)


async def cancel(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
