"""A small server that streams completions as vLLM does, and misbehaves on request; for the bench tests."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

from aiohttp import web


class FakeServer:
    """Streams `max_tokens` chunks; `misbehave(request body, headers)` may name a fault for a request."""

    def __init__(self, misbehave=lambda body, headers: None, token_s=0.0, max_model_len=2048):
        self.misbehave = misbehave
        self.token_s = token_s
        self.max_model_len = max_model_len
        self.bodies = []
        self.headers = []
        self.open_streams = 0
        self.never = asyncio.Event()
        self.url = ""

    async def models(self, _request):
        return web.json_response({"data": [{"id": "m", "max_model_len": self.max_model_len}]})

    async def complete(self, request):
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(request.headers)
        fault = self.misbehave(body, request.headers)
        if fault == "503":
            return web.Response(status=503, text="no healthy upstream")
        if fault == "hang":
            await self.never.wait()
            return web.Response(status=503)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.open_streams += 1
        try:
            await self.stream(request, response, body, fault)
        finally:
            self.open_streams -= 1
        return response

    async def stream(self, request, response, body, fault):
        chat = "messages" in body
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        usage = {"prompt_tokens": len(prompt.split())}
        tokens = body["max_tokens"]
        if chat:
            role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
            await self.send(response, {**role, "usage": {**usage, "completion_tokens": 0}})
        for n in range(1, tokens + 1):
            if fault == "cut" and n == 3:
                request.transport.close()
                return
            if self.token_s:
                await asyncio.sleep(self.token_s)
            finish = "length" if n == tokens else None
            if fault == "abort" and n == 3:
                finish = "abort"
            content = {"delta": {"content": "é"}} if chat else {"text": "é"}
            choice = {"index": 0, **content, "finish_reason": finish}
            await self.send(response, {"choices": [choice], "usage": {**usage, "completion_tokens": n}})
            if finish:
                break
        last = {"choices": [], "usage": {**usage, "completion_tokens": n}, "system_fingerprint": "fake-1"}
        await self.send(response, last)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()

    async def send(self, response, chunk):
        await response.write(b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n")


@asynccontextmanager
async def serving(**options):
    """Run a FakeServer on a free port of 127.0.0.1."""
    fake = FakeServer(**options)
    app = web.Application()
    app.router.add_get("/v1/models", fake.models)
    app.router.add_post("/v1/completions", fake.complete)
    app.router.add_post("/v1/chat/completions", fake.complete)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        fake.never.set()
        await runner.cleanup()


async def until(condition, timeout_s=20.0):
    """Poll until the condition holds; fails the test at the deadline."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
