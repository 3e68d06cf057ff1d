"""Send one streaming completion and follow its answer; shared by the load generator and the prober."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
from aiohttp.client_proto import ResponseHandler

from tpu_migration.bench.chunks import Answer
from tpu_migration.bench.sse import SseError, SseReader

Endpoint = Literal["completions", "chat"]
PATHS: Mapping[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_CONNECT_TIMEOUT_S = 10.0
_READ_BYTES = 32 * 1024


@dataclass(slots=True)
class Exchange:
    """One request and its answer; times are the event loop's clock."""

    sent_at: float
    ended_at: float
    answer: Answer
    error: str | None

    @property
    def cut_short(self) -> bool:
        """Tell whether the answer began and was then cut."""
        return self.error is not None and self.answer.first_at is not None


class _Stamping(ResponseHandler):  # type: ignore[misc]
    """Note when bytes came, before anything is done with them.

    The task that reads them wakes up after the reads of all other streams that came in the same turn of the
    loop: at 300 streams that is milliseconds that the server would be blamed for.
    """

    received_at = 0.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # asyncio allocates this much for each read, 256 KiB by default: so large a block is mapped and unmapped
        # every time, which costs more than all that is done with the 200 bytes of a chunk.
        transport.max_size = _READ_BYTES

    def data_received(self, data: bytes) -> None:
        self.received_at = self._loop.time()
        super().data_received(data)


class _StampingConnector(aiohttp.TCPConnector):  # type: ignore[misc]
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = functools.partial(_Stamping, loop=self._loop)  # aiohttp has no public place for it


def session(timeout_s: float) -> aiohttp.ClientSession:
    """Open a session that never queues a request behind another one.

    Idle connections are dropped after 2 s: uvicorn closes them after 5 s, and a request that meets the
    closing would count as the server's failure.
    """
    connector = _StampingConnector(limit=0, keepalive_timeout=2.0)
    return aiohttp.ClientSession(connector=connector, timeout=_timeout(timeout_s), auto_decompress=False)


def body(endpoint: Endpoint, model: str, prompt: str, max_tokens: int, *, ignore_eos: bool) -> bytes:
    """Write a request's JSON; greedy, streamed, with the token count in every chunk."""
    request: dict[str, object] = {"model": model}
    if endpoint == "chat":
        request["messages"] = [{"role": "user", "content": prompt}]
    else:
        request["prompt"] = prompt
    request |= {
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    if ignore_eos:
        request["ignore_eos"] = True
    return json.dumps(request, separators=(",", ":")).encode()


async def exchange(
    client: aiohttp.ClientSession,
    url: str,
    payload: bytes,
    headers: Mapping[str, str],
    *,
    asked_tokens: int | None,
    timeout_s: float | None = None,
) -> Exchange:
    """Send a request and read its answer to the end; whatever goes wrong is in `error`, never raised.

    Except cancellation: that is the caller's own doing.
    """
    clock = asyncio.get_running_loop().time
    answer = Answer()
    sent_at = clock()
    options = {} if timeout_s is None else {"timeout": _timeout(timeout_s)}
    all_headers = {"Content-Type": "application/json", **headers}
    error: str | None
    try:
        async with client.post(url, data=payload, headers=all_headers, **options) as response:
            if response.status != 200:
                text = (await response.content.read(300)).decode(errors="replace")
                error = f"http {response.status}: {' '.join(text.split())[:200]}"
            else:
                await _read(response, answer)
                error = answer.failure(asked_tokens)
    except TimeoutError:
        waited = f"timeout after {clock() - sent_at:.1f} s"
        error = f"truncated: {waited}" if answer.first_at is not None else waited
    except (aiohttp.ClientError, SseError, OSError) as problem:
        kind = "truncated" if answer.first_at is not None else "connection"
        error = f"{kind}: {type(problem).__name__}: {problem}"[:240]
    return Exchange(sent_at, clock(), answer, error)


def _timeout(total_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s, sock_connect=min(_CONNECT_TIMEOUT_S, total_s))


async def _read(response: aiohttp.ClientResponse, answer: Answer) -> None:
    clock = asyncio.get_running_loop().time
    reader = SseReader()
    protocol = response.connection.protocol if response.connection else None  # None: it all came with the head
    async for data in response.content.iter_any():
        now = protocol.received_at if isinstance(protocol, _Stamping) else clock()
        for payload in reader.feed(data):
            answer.add(payload, now)
