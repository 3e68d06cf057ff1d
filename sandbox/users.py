"""Be the users: open-loop streaming clients that count every failed or cut-short answer.

Arrivals are Poisson and seeded, on schedule whatever the server does. The counters in
`--out` are rewritten once a second; each failure is a line in `FILE.failures.jsonl`.
Run as `python -m sandbox.users --url URL --model M --rate R --seed S --out FILE`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import sys
import time
from bisect import insort
from collections import Counter, deque
from dataclasses import dataclass, field
from math import ceil, log
from pathlib import Path
from random import Random
from typing import TextIO

import aiohttp

RECENT_S = 10.0
DRAIN_S = 60.0
LONG_S = 10.0
# Enough of a stream's end for its last chunk, the usage chunk and [DONE].
TAIL_BYTES = 2048
_FINISH = re.compile(rb'"finish_reason":"(\w+)"')
_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
_SENTENCE = (
    "please tell me about the river and how its water moves from mountain to sea in early spring when snow "
    "melts while farmers wait for rain that may or may not come this year"
)
_WORDS = tuple(_SENTENCE.split())


@dataclass(frozen=True)
class Ask:
    """One request to make: when, on which endpoint, how long."""

    number: int
    at_s: float
    chat: bool
    prompt_tokens: int
    max_tokens: int
    ignore_eos: bool


@dataclass
class Tally:
    """The counters that `--out` shows. Every request ends as completed, failed or truncated."""

    started: float
    requests: int = 0
    completed: int = 0
    failed: int = 0
    truncated: int = 0
    in_flight: int = 0
    peak_streams: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    long_streams: int = 0  # completed ones of LONG_S and more
    ttfts: list[float] = field(default_factory=list)  # sorted
    recent: deque[tuple[float, float | None]] = field(default_factory=deque)  # (when, TTFT or None: bad)

    def begin(self) -> None:
        self.requests += 1
        self.in_flight += 1
        self.peak_streams = max(self.peak_streams, self.in_flight)

    def good(self, ttft_s: float, lasted_s: float) -> None:
        self.in_flight -= 1
        self.completed += 1
        self.long_streams += lasted_s >= LONG_S
        insort(self.ttfts, ttft_s)
        self.recent.append((time.time(), ttft_s))

    def bad(self, kind: str, truncated: bool) -> None:
        self.in_flight -= 1
        self.errors[kind] += 1
        if truncated:
            self.truncated += 1
        else:
            self.failed += 1
        self.recent.append((time.time(), None))

    def summary(self, now: float) -> dict[str, object]:
        """Return the counters as `--out` holds them; percentiles are over completed requests."""
        while self.recent and self.recent[0][0] < now - RECENT_S:
            self.recent.popleft()
        recent = sorted(ttft for _, ttft in self.recent if ttft is not None)
        return {
            "requests": self.requests,
            "completed": self.completed,
            "failed": self.failed,
            "truncated": self.truncated,
            "in_flight": self.in_flight,
            "peak_streams": self.peak_streams,
            "long_streams": self.long_streams,
            "p50_ttft_s": _percentile(self.ttfts, 0.50),
            "p99_ttft_s": _percentile(self.ttfts, 0.99),
            "recent": {
                "window_s": RECENT_S,
                "rps": round(len(self.recent) / max(1.0, min(RECENT_S, now - self.started)), 3),
                "p99_ttft_s": _percentile(recent, 0.99),
                "failed": sum(1 for _, ttft in self.recent if ttft is None),
            },
            "errors": dict(self.errors),
            "started": self.started,
            "updated": now,
        }


def _percentile(values: list[float], share: float) -> float | None:
    """Return the nearest-rank percentile of sorted values; None if there are none."""
    return round(values[ceil(share * len(values)) - 1], 4) if values else None


class Script:
    """The endless, seeded list of requests."""

    def __init__(
        self,
        rate: float,
        seed: int,
        prompt_tokens: int,
        output_tokens: int,
        natural_share: float,
        spread: float = 0.5,
    ) -> None:
        self._random = Random(seed)
        self._spread = spread
        self._rate = rate
        self._prompt, self._output = prompt_tokens, output_tokens
        self._natural_share = natural_share
        self._at = 0.0
        self._number = 0

    def next(self) -> Ask:
        """Return the next request: half of them chat, lengths lognormal around their means."""
        random = self._random
        self._at += random.expovariate(self._rate)
        self._number += 1
        return Ask(
            self._number,
            self._at,
            random.random() < 0.5,
            self._length(self._prompt),
            self._length(self._output),
            random.random() >= self._natural_share,
        )

    def _length(self, mean: int) -> int:
        sigma = self._spread
        length = self._random.lognormvariate(log(mean) - sigma**2 / 2, sigma)
        return max(4, min(4 * mean, round(length)))


def body_of(ask: Ask, model: str) -> dict[str, object]:
    """Return the JSON body of a request."""
    first = ask.number % len(_WORDS)
    words = (_WORDS[first:] + _WORDS[:first]) * (ask.prompt_tokens // len(_WORDS) + 1)
    text = f"{ask.number} " + " ".join(words[: ask.prompt_tokens - 1])
    body: dict[str, object] = {
        "model": model,
        "max_tokens": ask.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if ask.ignore_eos:
        body["ignore_eos"] = True
    if ask.chat:
        return {**body, "messages": [{"role": "user", "content": text}]}
    return {**body, "prompt": text}


class Users:
    """Make the requests of a script and judge every answer."""

    def __init__(self, url: str, model: str, host: str | None, timeout_s: float, failures: TextIO) -> None:
        self._url = url.rstrip("/")
        self._model = model
        self._headers = {"host": host} if host else {}
        self._timeout_s = timeout_s
        self._failures = failures
        self._tasks: set[asyncio.Task[None]] = set()
        self.tally = Tally(started=time.time())

    async def run(self, script: Script, stop: asyncio.Event, max_seconds: float | None) -> None:
        """Send until `stop` is set or `max_seconds` are over, then let the streams end."""
        timeout = aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=10)
        connector = aiohttp.TCPConnector(limit=0, limit_per_host=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            began = time.monotonic()
            while True:
                ask = script.next()
                ends = ask.at_s if max_seconds is None else min(ask.at_s, max_seconds)
                if await _set_within(stop, began + ends - time.monotonic()):
                    break
                if max_seconds is not None and ask.at_s >= max_seconds:
                    break
                self.tally.begin()
                task = asyncio.create_task(self._one(session, ask))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            if self._tasks:
                _, open_streams = await asyncio.wait(self._tasks, timeout=DRAIN_S)
                for task in open_streams:
                    task.cancel("still open at the end")
                await asyncio.gather(*open_streams, return_exceptions=True)

    async def _one(self, session: aiohttp.ClientSession, ask: Ask) -> None:
        path = "/v1/chat/completions" if ask.chat else "/v1/completions"
        sent = time.monotonic()
        read = _Reader(ask.chat)
        try:
            async with session.post(
                self._url + path, json=body_of(ask, self._model), headers=self._headers
            ) as response:
                if response.status != 200:
                    detail = (await response.content.read(400)).decode(errors="replace")
                    self._bad(ask, f"http-{response.status}", False, detail, sent)
                    return
                async for data in response.content.iter_any():
                    read.feed(data)
        except TimeoutError:
            self._bad(ask, "timeout", False, f"{read.bytes} bytes read", sent)
        except (aiohttp.ClientError, OSError) as error:
            cut = read.bytes > 0
            self._bad(ask, "cut" if cut else "connection", cut, f"{type(error).__name__}: {error}", sent)
        except asyncio.CancelledError:
            self._bad(ask, "still-open", False, f"open {DRAIN_S:.0f} s after the end", sent)
            raise
        else:
            problem = read.problem(ask)
            if problem or read.first is None:
                self._bad(ask, problem or "no-content", True, read.tail[-300:].decode(errors="replace"), sent)
            else:
                self.tally.good(read.first - sent, time.monotonic() - sent)

    def _bad(self, ask: Ask, kind: str, truncated: bool, detail: str, sent: float) -> None:
        self.tally.bad(kind, truncated)
        line = {
            "time": round(time.time(), 3),
            "request": ask.number,
            "kind": kind,
            "outcome": "truncated" if truncated else "failed",
            "after_s": round(time.monotonic() - sent, 3),
            "asked_tokens": ask.max_tokens,
            "detail": detail,
        }
        self._failures.write(json.dumps(line) + "\n")
        self._failures.flush()


class _Reader:
    """What matters of a stream: when content began, and how it ended. Nothing else is parsed."""

    def __init__(self, chat: bool) -> None:
        # A chat's first chunk carries the role and no token: content begins with the next one.
        self._marker = b'"delta":{"content":' if chat else b'"text":'
        self._seen = b""
        self.first: float | None = None
        self.tail = b""
        self.bytes = 0

    def feed(self, data: bytes) -> None:
        self.bytes += len(data)
        if self.first is None:
            self._seen += data
            if self._marker in self._seen:
                self.first = time.monotonic()
                self._seen = b""
        self.tail = data[-TAIL_BYTES:] if len(data) >= TAIL_BYTES else (self.tail + data)[-TAIL_BYTES:]

    def problem(self, ask: Ask) -> str | None:
        """Return why the answer is not whole, or None."""
        if not self.tail.rstrip().endswith(b"data: [DONE]"):
            return "no-done"
        reasons = _FINISH.findall(self.tail)
        if not reasons:
            return "no-finish-reason"
        if reasons[-1] not in (b"stop", b"length"):
            return "finish-" + reasons[-1].decode()
        tokens = _TOKENS.findall(self.tail)
        if not tokens:
            return "no-usage"
        if ask.ignore_eos and int(tokens[-1]) < ask.max_tokens:
            return "too-few-tokens"
        return None


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, `seconds` at most; tell whether it is set."""
    if seconds > 0 and not event.is_set():
        try:
            await asyncio.wait_for(event.wait(), seconds)
        except TimeoutError:
            return False
    return event.is_set()


def write_atomically(path: Path, data: dict[str, object]) -> None:
    """Replace a file so that a reader sees the old or the new whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(data) + "\n", encoding="utf-8")
    temporary.replace(path)


async def _report(path: Path, tally: Tally) -> None:
    while True:
        write_atomically(path, tally.summary(time.time()))
        await asyncio.sleep(1.0)


async def _main(args: argparse.Namespace) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    out = Path(args.out)
    with open(f"{out}.failures.jsonl", "w", encoding="utf-8") as failures:
        users = Users(args.url, args.model, args.host_header, args.timeout, failures)
        script = Script(args.rate, args.seed, args.prompt_tokens, args.output_tokens, args.natural_share, args.spread)
        reporter = asyncio.create_task(_report(out, users.tally))
        await users.run(script, stop, args.max_seconds)
        reporter.cancel()
        await asyncio.gather(reporter, return_exceptions=True)
        write_atomically(out, users.tally.summary(time.time()))
    return 0


def main(argv: list[str]) -> int:
    """Return 0 once the final counters are written."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.users", description=__doc__.partition("\n")[0])
    parser.add_argument("--url", required=True, help="the gateway, http://HOST:PORT")
    parser.add_argument("--model", required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="counters, rewritten each second")
    parser.add_argument("--max-seconds", type=float, help="stop arrivals after this long")
    parser.add_argument("--prompt-tokens", type=int, default=200, help="mean length of prompts")
    parser.add_argument("--output-tokens", type=int, default=120, help="mean length asked for")
    parser.add_argument("--natural-share", type=float, default=0.2, help="share without ignore_eos")
    parser.add_argument("--spread", type=float, default=0.5, help="sigma of the lognormal lengths; 0: all alike")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds until a request has failed")
    parser.add_argument("--host-header", help="Host header, if the route has host names")
    args = parser.parse_args(argv)
    if args.rate <= 0:
        parser.error("--rate must be above 0")
    return asyncio.run(_main(args))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
