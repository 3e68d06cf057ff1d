"""Serve the kubelet's endpoint, where an API server gets the logs of containers.

One endpoint stands for the kubelets of all nodes: every node names it as its own. It serves nothing but the
logs of this sandbox's pods, and like a kubelet of a test cluster it lets anybody read them who reaches it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from sandbox.log_files import follow, initial_log, log_file
from sandbox.pki import Issued

# (namespace, pod, container) → whether its process runs.
Running = Callable[[str, str, str], bool]


class Kubelet:
    """The endpoint; `logs` is the directory of the log files (see `log_file`)."""

    def __init__(self, logs: Path, running: Running) -> None:
        self._logs = logs
        self._running = running
        self._runner: web.AppRunner | None = None
        self.address = ""
        self.port = 0

    async def start(self, address: str, tls: Issued) -> None:
        """Listen on a free port of `address`."""
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._container_logs)
        # A client that stops to follow must end its handler.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tls.cert, tls.key)
        await web.TCPSite(self._runner, address, 0, ssl_context=context).start()
        self.address, self.port = self._runner.addresses[0][:2]

    async def close(self) -> None:
        """End all streams and stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()

    def status(self) -> dict[str, object]:
        """Return the part of a node's status that leads an API server here; nothing before `start`.

        No Hostname is among the addresses: an API server would prefer it, and no resolver knows it.
        """
        if self._runner is None:
            return {}
        return {
            "addresses": [{"type": "InternalIP", "address": self.address}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.port}},
        }

    async def _container_logs(self, request: web.Request) -> web.StreamResponse:
        where = (request.match_info["namespace"], request.match_info["pod"], request.match_info["container"])
        _, pod, container = where
        previous = request.query.get("previous") == "true"
        path = log_file(self._logs, *where, previous=previous)
        if not path.exists():
            if previous:
                return _refusal(f'previous terminated container "{container}" in pod "{pod}" not found')
            return _refusal(f'container "{container}" in pod "{pod}" is waiting to start: ContainerCreating')
        stream = web.StreamResponse(headers={"Content-Type": "text/plain"})
        stream.enable_chunked_encoding()
        await stream.prepare(request)
        text, position = initial_log(path, request.query)
        await stream.write(text)
        if request.query.get("follow") == "true" and not previous:
            async for chunk in follow(path, position, lambda: self._running(*where)):
                await stream.write(chunk)
        await stream.write_eof()
        return stream


def _refusal(message: str) -> web.Response:
    return web.Response(status=400, text=message)
