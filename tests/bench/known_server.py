"""Stream completions on a known schedule, and write down when each chunk was really written.

A process of its own: `python -m tests.bench.known_server FILE`. It prints its address, and on SIGTERM
writes FILE: one JSON line a request, `[id, received, [[written, tokens], …]]`, in seconds of the
monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from pathlib import Path

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FIRST_S, CHUNK_S = 0.1, 0.04


class _Connection(asyncio.Protocol):
    def __init__(self, log: list[str]) -> None:
        self._log = log
        self._rest = b""
        self._busy: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._busy:
            self._busy.cancel()

    def data_received(self, data: bytes) -> None:
        self._rest += data
        head, end, body = self._rest.partition(b"\r\n\r\n")
        if not end:
            return
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(headers[b"content-length"]):
            return
        self._rest = b""
        self._busy = asyncio.ensure_future(self._answer(headers[b"x-request-id"].decode(), json.loads(body)))

    async def _answer(self, name: str, asked: dict) -> None:  # type: ignore[type-arg]
        """Send what makes counting hard: several tokens a chunk, tokens without text, cut characters."""
        loop = asyncio.get_running_loop()
        received, rng = loop.time(), random.Random(name)
        total, sent, written = asked["max_tokens"], 0, []
        self._transport.write(_HEAD)
        due = received + FIRST_S
        while sent < total:
            await asyncio.sleep(max(0.0, due - loop.time()))
            due += CHUNK_S
            step = min(total - sent, rng.choice((1, 1, 1, 2, 3)))
            sent += step
            text = rng.choice(("", "é", "水", " 42", '\\"completion_tokens\\": 999'))
            finish = '"length"' if sent == total else "null"
            payload = (
                f'data: {{"choices":[{{"index":0,"text":"{text}","finish_reason":{finish}}}],'
                f'"usage":{{"prompt_tokens":7,"completion_tokens":{sent}}}}}\n\n'
            ).encode()
            at = loop.time()
            if "水" in text:  # half a character now, the rest at once after it
                cut = payload.index("水".encode()) + 1
                self._chunk(payload[:cut])
                payload = payload[cut:]
            self._chunk(payload)
            written.append((at, step))
        last = f'data: {{"choices":[],"usage":{{"prompt_tokens":7,"completion_tokens":{sent}}}}}\n\ndata: [DONE]\n\n'
        self._chunk(last.encode())
        self._transport.write(b"0\r\n\r\n")
        self._log.append(json.dumps([name, received, written]))

    def _chunk(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))


async def _serve(out: Path) -> None:
    log: list[str] = []
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await loop.create_server(lambda: _Connection(log), "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await stop.wait()
    server.close()
    out.write_text("\n".join(log))


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
