"""Serve the API over TLS, with its streams: watches, pod logs and the pod proxy."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import aiohttp
from aiohttp import web
from yarl import URL

from sandbox.faults import FaultSource, NoFaults

from .core import Api, log_container, proxy_target
from .kubelets import log_url, refusal
from .messages import ApiError, Request, Response, bad_request, unauthorized
from .params import wants_watch
from .routes import Route
from .trouble import Trouble, forgotten

Authenticate = Callable[[str | None], str | None]
BOOKMARK_EVERY_S = 60.0
TROUBLE_EVERY_S = 1.0  # how often an idle watch looks whether a fault cuts it
DEFAULT_WATCH_S = 1800.0
MAX_BODY = 3 * 1024 * 1024
MAX_PROXY_BODY = 64 * 1024 * 1024
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "transfer-encoding",
        "upgrade",
        "te",
        "trailer",
        "host",
        "content-length",
        "authorization",
        "proxy-authorization",
        "proxy-authenticate",
        "accept-encoding",
    }
)


class Server:
    """The running server; `port` is the one it got, `close()` ends it."""

    def __init__(
        self,
        api: Api,
        authenticate: Authenticate,
        superusers: Iterable[str],
        faults: FaultSource,
    ) -> None:
        self._api = api
        self._authenticate = authenticate
        self._trouble = Trouble(faults, time.monotonic)
        self._runner: web.ServerRunner | None = None
        self._proxy: aiohttp.ClientSession | None = None
        self._closing = asyncio.Event()
        self.port = 0
        api.authorizer.superusers.update(superusers)

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        """Bind and begin to serve."""
        # The timeout is the caller's: a proxied completion may stream for minutes.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        connector = aiohttp.TCPConnector(limit=0, force_close=False)
        self._proxy = aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False)
        # A client that goes away cancels its handler, so that a proxied completion is aborted too.
        server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, ssl_context=context)
        await site.start()
        sockets = site._server.sockets  # type: ignore[union-attr]
        self.port = sockets[0].getsockname()[1]

    async def close(self) -> None:
        """End all streams and stop serving."""
        self._closing.set()
        if self._runner:
            await self._runner.cleanup()
        if self._proxy:
            await self._proxy.close()

    async def _handle(self, http: web.BaseRequest) -> web.StreamResponse:
        header = http.headers.get("Authorization", "")
        token = header[7:] if header.startswith("Bearer ") else None
        user = self._authenticate(token)
        if user is None:
            return _plain(unauthorized().response())
        request = Request(
            http.method,
            http.raw_path.partition("?")[0],
            dict(http.query),
            {name.lower(): value for name, value in http.headers.items()},
            user=user,
        )
        if self._trouble.down(user):
            _break_off(http)
            return web.Response()  # nobody is left to get it
        if (refused := self._trouble.refusal(user)) is not None:
            return _plain(refused)
        route = self._api.route(request.path)
        try:
            if route is not None:
                if route.subresource == "proxy":
                    return await self._forward(http, request, route)
                if route.subresource == "log":
                    return await self._log(http, request, route)
                if request.method == "GET" and wants_watch(request) and not route.subresource:
                    return await self._watch(http, request)
            if http.body_exists:
                request.body = await _read(http, MAX_BODY)
        except ApiError as error:
            return _plain(error.response())
        return _plain(self._api.handle(request))

    async def _watch(self, http: web.BaseRequest, request: Request) -> web.StreamResponse:
        woken = asyncio.Event()
        watch = self._api.watch(request, woken.set)
        cut = self._trouble.watch(request)
        if cut is not None and cut.expired:
            watch.pending.clear()
            watch.pending.append(forgotten(request.query["resourceVersion"], self._api.store.oldest))
            watch.expired = True
        try:
            stream = web.StreamResponse(headers={"Content-Type": "application/json"})
            stream.enable_chunked_encoding()
            await stream.prepare(http)
            loop = asyncio.get_running_loop()
            limit = request.query.get("timeoutSeconds", "")
            began = loop.time()
            end = began + (float(limit) if limit.isdigit() and limit != "0" else DEFAULT_WATCH_S)
            bookmark_at = began + BOOKMARK_EVERY_S
            while not self._closing.is_set():
                if watch.pending:
                    batch = b"".join(watch.pending)
                    watch.pending.clear()
                    await stream.write(batch)
                    continue
                if watch.expired:
                    break
                woken.clear()
                now = loop.time()
                if cut is None and (cut := self._trouble.watch(request)) is not None:
                    began = now
                if self._trouble.down(request.user) or (cut is not None and now >= began + cut.after_s):
                    _break_off(http)
                    return stream
                if now >= end:
                    if watch.bookmarks and cut is None:
                        watch.bookmark()
                        await stream.write(watch.pending.popleft())
                    break
                if now >= bookmark_at:
                    bookmark_at = now + BOOKMARK_EVERY_S
                    if watch.bookmarks:
                        watch.bookmark()
                        continue
                await _within(woken, self._closing, min(end - now, bookmark_at - now, TROUBLE_EVERY_S))
            await stream.write_eof()
            return stream
        except (ConnectionResetError, aiohttp.ClientConnectionError):
            return stream  # the client went away: nobody is left to tell
        finally:
            watch.close()

    async def _log(self, http: web.BaseRequest, request: Request, route: Route) -> web.StreamResponse:
        self._api.authorize(request, route)
        entry = self._api.entry(route)
        container = log_container(entry, request.query)
        url = log_url(self._api.store, entry, container, request.query)
        if url is None:
            return web.Response(text="")
        try:
            # As the real server unless it is told of an authority: kubelets sign their own certificates.
            answer = await self._session().get(url, ssl=False)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = f'Get "{url}": dial tcp {URL(url).host}:{URL(url).port}: {_dial_error(error)}'
            raise ApiError(500, "InternalError", f"Internal error occurred: {why}") from None
        if answer.status >= 400:
            raise refusal(answer.status, await answer.text())
        return await _stream(http, answer)

    async def _forward(self, http: web.BaseRequest, request: Request, route: Route) -> web.StreamResponse:
        self._api.authorize(request, route)
        pod, port = proxy_target(self._api, route)
        address = pod.obj.get("status", {}).get("podIP")
        if not address:
            raise bad_request("address not allowed")
        body = await _read(http, MAX_PROXY_BODY) if http.body_exists else None
        query = http.raw_path.partition("?")[2]
        url = f"http://{address}:{port}{route.rest or '/'}" + (f"?{query}" if query else "")
        headers = {k: v for k, v in http.headers.items() if k.lower() not in _HOP_BY_HOP}
        return await self._relay(http, url, headers, body)

    async def _relay(
        self, http: web.BaseRequest, url: str, headers: dict[str, str], body: bytes | None
    ) -> web.StreamResponse:
        target = URL(url, encoded=True)
        try:
            answer = await self._session().request(
                http.method, target, headers=headers, data=body, allow_redirects=False
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = f"dial tcp {target.host}:{target.port}: {_dial_error(error)}"
            raise ApiError(503, "ServiceUnavailable", f"error trying to reach service: {why}") from None
        return await _stream(http, answer)

    def _session(self) -> aiohttp.ClientSession:
        if self._proxy is None:
            raise RuntimeError("the server has not been started")
        return self._proxy


async def _stream(http: web.BaseRequest, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """Hand an answer on as it comes."""
    try:
        out = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_BY_HOP}
        stream = web.StreamResponse(status=answer.status, headers=out)
        if answer.content_length is not None and http.method != "HEAD":
            stream.content_length = answer.content_length
        await stream.prepare(http)
        async for chunk in answer.content.iter_any():
            await stream.write(chunk)
        await stream.write_eof()
        return stream
    except (aiohttp.ClientPayloadError, aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
        # The pod died in the middle: the client must see a cut stream, not a clean end.
        _break_off(http)
        return stream
    finally:
        answer.close()


def _break_off(http: web.BaseRequest) -> None:
    """Cut the client's connection."""
    if http.transport is not None:
        http.transport.abort()


def _dial_error(error: BaseException) -> str:
    code = getattr(error, "errno", None) or getattr(getattr(error, "os_error", None), "errno", None)
    known = {111: "connect: connection refused", 101: "connect: network is unreachable"}
    return known.get(code or 0, "i/o timeout" if isinstance(error, TimeoutError) else str(error))


async def _within(woken: asyncio.Event, closing: asyncio.Event, seconds: float) -> bool:
    waits = [asyncio.ensure_future(woken.wait()), asyncio.ensure_future(closing.wait())]
    try:
        done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for wait in waits:
            wait.cancel()


async def _read(http: web.BaseRequest, limit: int) -> bytes:
    body = bytearray()
    async for chunk in http.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise ApiError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {limit}")
    return bytes(body)


def _plain(response: Response) -> web.Response:
    return web.Response(status=response.status, headers=response.headers, body=response.body)


async def serve(
    api: Api,
    host: str,
    port: int,
    tls_cert: str | Path | None,
    tls_key: str | Path | None,
    authenticate: Authenticate,
    *,
    superusers: Iterable[str] = (),
    faults: FaultSource | None = None,
) -> Server:
    """Serve `api` on host:port (0 picks one); plain HTTP if no certificate is given.

    `authenticate` maps a bearer token (or None) to a user's name, or to None: 401. Pod logs come from
    the kubelet's endpoint that the pod's node names. `faults` may put the server in trouble.
    """
    context = None
    if tls_cert is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tls_cert, tls_key)
    server = Server(api, authenticate, superusers, faults or NoFaults())
    await server.start(host, port, context)
    return server
