"""Serve vLLM's HTTP API over the engine core."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from email.utils import formatdate

from aiohttp import web

from sandbox.engine.answers import DONE, Answer, natural_length
from sandbox.engine.config import VERSION
from sandbox.engine.core import EngineCore, EngineDead
from sandbox.engine.http_metrics import EXCLUDED
from sandbox.engine.protocol import (
    ApiError,
    Generation,
    check_model,
    parse_generation,
    parse_json,
    tokens_of,
)
from sandbox.engine.scheduler import Sequence

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ApiServer:
    """Routes, handlers and the count of answers in flight."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self.in_flight = 0
        self._created = int(time.time())
        # path → (method, handler)
        self._routes: dict[str, tuple[str, Handler]] = {
            "/health": ("GET", self._health),
            "/ping": ("GET", self._health),
            "/load": ("GET", self._load),
            "/version": ("GET", self._version),
            "/metrics": ("GET", self._metrics),
            "/v1/models": ("GET", self._models),
            "/tokenize": ("POST", self._tokenize),
            "/v1/completions": ("POST", self._completion),
            "/v1/chat/completions": ("POST", self._completion),
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request."""
        began = time.monotonic()
        route = self._routes.get(request.path)
        handler = request.path
        if route is None:
            handler, response = "none", _json(404, {"detail": "Not Found"})
        elif request.method != route[0] and not (request.path == "/ping" and request.method == "POST"):
            response = _json(405, {"detail": "Method Not Allowed"}, {"allow": route[0]})
        elif not self._authorized(request):
            response = _json(401, {"error": "Unauthorized"})
        else:
            response = await self._answer(request, route[1])
        if request.path not in EXCLUDED:
            sizes = request.content_length or 0, response.content_length or 0
            seconds = time.monotonic() - began
            self._core.metrics.http.count(handler, request.method, response.status, sizes, seconds)
        return response

    async def _answer(self, request: web.BaseRequest, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ApiError as error:
            return _json(error.status, error.body)
        except EngineDead as error:
            return _json(500, _internal(f"EngineCore encountered an issue. {error}"))

    def _authorized(self, request: web.BaseRequest) -> bool:
        keys = self._core.config.flags.api_keys
        if not keys or not request.path.startswith("/v1"):
            return True
        return request.headers.get("authorization", "").removeprefix("Bearer ") in keys

    async def _health(self, request: web.BaseRequest) -> web.Response:
        return web.Response(status=503 if self._core.dead else 200, headers=_headers())

    async def _load(self, request: web.BaseRequest) -> web.Response:
        return _json(200, {"server_load": self.in_flight if self._core.config.flags.track_load else 0})

    async def _version(self, request: web.BaseRequest) -> web.Response:
        return _json(200, {"version": VERSION})

    async def _metrics(self, request: web.BaseRequest) -> web.Response:
        headers = {**_headers(), "content-type": "text/plain; version=1.0.0; charset=utf-8"}
        return web.Response(body=self._core.metrics.render().encode(), headers=headers)

    async def _models(self, request: web.BaseRequest) -> web.Response:
        config = self._core.config
        permission = {
            "id": f"modelperm-{uuid.uuid4().hex[:16]}",
            "object": "model_permission",
            "created": self._created,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        cards = [
            {
                "id": name,
                "object": "model",
                "created": self._created,
                "owned_by": "vllm",
                "root": config.flags.model,
                "parent": None,
                "max_model_len": config.max_model_len,
                "permission": [permission],
            }
            for name in config.flags.served_names
        ]
        return _json(200, {"object": "list", "data": cards})

    async def _tokenize(self, request: web.BaseRequest) -> web.Response:
        data = parse_json(await request.read())
        check_model(data.get("model"), self._core.config)
        tokens = tokens_of(data)
        limit = self._core.config.max_model_len
        body = {"count": len(tokens), "max_model_len": limit, "tokens": tokens, "token_strs": None}
        return _json(200, body)

    async def _completion(self, request: web.BaseRequest) -> web.StreamResponse:
        arrived = time.monotonic()
        core = self._core
        chat = request.path == "/v1/chat/completions"
        generation = parse_generation(parse_json(await request.read()), chat, core.config)
        if core.fails_under_load():
            return _json(500, _internal("Internal server error (simulated fault)"))
        if generation.prompt_logprobs is not None and core.config.prompt_logprobs_fatal:
            core.die("prompt_logprobs in the model runner of a multimodal model (simulated)")
            raise EngineDead("See stack trace (above) for the root cause.")
        name = request.headers.get("x-request-id") or uuid.uuid4().hex[:16]
        answer_id = f"{'chatcmpl' if chat else 'cmpl'}-{name}"
        answer = Answer(generation, answer_id, int(time.time()), core.model)
        wake = asyncio.Event()
        sequence = Sequence(
            len(generation.prompt),
            generation.max_tokens,
            natural_length(generation, core.model),
            interval=core.config.flags.stream_interval if generation.stream else None,
            notify=wake.set,
            arrived=arrived,
            wants_logprobs=_logprobs_kind(generation),
        )
        core.add(sequence)
        self.in_flight += 1
        try:
            if generation.stream:
                return await self._stream(request, generation, answer, sequence, wake)
            await wake.wait()
            if core.dead:
                raise EngineDead(core.dead)
            answer.grow(sequence.produced)
            return _json(200, answer.body(sequence.reason or "abort"))
        finally:
            self.in_flight -= 1
            core.abort(sequence)  # no effect on one that has ended

    async def _stream(
        self,
        request: web.BaseRequest,
        generation: Generation,
        answer: Answer,
        sequence: Sequence,
        wake: asyncio.Event,
    ) -> web.StreamResponse:
        headers = {**_headers(), "content-type": "text/event-stream; charset=utf-8"}
        response = web.StreamResponse(headers=headers)
        response.enable_chunked_encoding()
        await response.prepare(request)
        opening = answer.role_chunk() if generation.chat else ""
        while True:
            await wake.wait()
            wake.clear()
            reason = sequence.reason
            if self._core.dead:
                error = _internal(f"EngineCore encountered an issue. {self._core.dead}")
                await response.write(f"data: {json.dumps(error)}\n\n".encode() + DONE)
                break
            text = opening + answer.chunk(sequence.produced, reason)
            opening = ""
            if reason is None:
                await response.write(text.encode())
                continue
            if generation.include_usage:
                text += answer.usage_chunk()
            await response.write(text.encode() + DONE)
            break
        await response.write_eof()
        return response


def _logprobs_kind(generation: Generation) -> str:
    if generation.prompt_logprobs is not None:
        return "prompt"
    return "sample" if generation.logprobs is not None else ""


def _headers() -> dict[str, str]:
    return {"date": formatdate(usegmt=True), "server": "uvicorn", "vary": "Origin"}


def _json(status: int, body: object, extra: dict[str, str] | None = None) -> web.Response:
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    headers = {**_headers(), "content-type": "application/json", **(extra or {})}
    return web.Response(status=status, body=text.encode(), headers=headers)


def _internal(message: str) -> dict[str, object]:
    return {"error": {"message": message, "type": "InternalServerError", "param": None, "code": 500}}
