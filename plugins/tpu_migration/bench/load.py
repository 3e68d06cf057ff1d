"""Send planned requests from one event loop, on their schedule, and write down what each one met."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tpu_migration.bench.lengths import Lengths, Planned, prompt_text, schedule
from tpu_migration.bench.stream import PATHS, Endpoint, Exchange, body, exchange, session
from tpu_migration.bench.summary import Limits, LoopLag
from tpu_migration.domain.gate import RequestResult

LEAD_S = 0.05  # between opening the session and the first arrival


@dataclass(frozen=True)
class Load:
    """What to send, to whom, and when the run is void. Exactly one of rate, concurrency and shapes is set."""

    url: str
    model: str
    requests: int
    seed: int
    rate_rps: float = 0.0
    concurrency: int = 0
    shapes: tuple[tuple[int, int], ...] = ()  # (prompt tokens, concurrent requests)
    endpoint: Endpoint = "completions"
    headers: Mapping[str, str] = field(default_factory=dict)
    prompt: Lengths = field(default_factory=lambda: Lengths.parse("512"))
    output: Lengths = field(default_factory=lambda: Lengths.parse("128"))
    ignore_eos: bool = False
    timeout_s: float = 300.0
    limits: Limits = field(default_factory=lambda: Limits(5.0, 20.0, 0.98))
    write_every: int = 1  # write down every so many requests; the summary still counts all

    def plan(self) -> list[Planned]:
        """Return the requests to send, in order."""
        if not self.shapes:
            return schedule(self.requests, self.rate_rps, self.seed, self.prompt, self.output)
        tokens_of = [tokens for tokens, width in self.shapes for _ in range(width)]
        drawn = schedule(len(tokens_of), 0.0, self.seed, self.prompt, self.output)
        return [Planned(p.index, 0.0, tokens, p.output_tokens) for p, tokens in zip(drawn, tokens_of, strict=True)]


@dataclass(frozen=True)
class Part:
    """What one event loop did: results by the request's index; start and end are the monotonic clock's."""

    start: float
    end: float
    results: Mapping[int, RequestResult]
    loop_lag_p99_ms: float | None
    interrupted: bool
    peak_streams: int
    fingerprints: frozenset[str]


async def run_part(
    load: Load, planned: Sequence[Planned], stop: asyncio.Event, *, name: str, start: float | None = None
) -> Part:
    """Send these requests; `start` is when the schedule's time 0 is, `name` begins each request's id."""
    return await _Run(load, planned, start, stop, name).run()


class _Run:
    """One event loop's work in progress."""

    def __init__(
        self, load: Load, planned: Sequence[Planned], start: float | None, stop: asyncio.Event, name: str
    ) -> None:
        self._load = load
        self._planned = planned
        self._start_at = start
        self._stop = stop
        self._clock = asyncio.get_running_loop().time
        self._name = name
        self._results: list[tuple[int, RequestResult]] = []
        self._fingerprints: set[str] = set()
        self._start = 0.0
        self._streams = self._peak_streams = 0

    async def run(self) -> Part:
        load = self._load
        async with session(load.timeout_s) as self._client:
            # What exists now is never garbage: keep the collector's pauses out of the measurement.
            gc.collect()
            gc.freeze()
            lag = LoopLag()
            self._start = self._clock() + LEAD_S if self._start_at is None else self._start_at
            try:
                interrupted = not await self._until_stopped(self._planned)
            finally:
                loop_lag = lag.stop()
                gc.unfreeze()
        return Part(
            self._start, self._clock(), dict(self._results), loop_lag, interrupted, self._peak_streams,
            frozenset(self._fingerprints),
        )  # fmt: skip

    async def _until_stopped(self, planned: Sequence[Planned]) -> bool:
        """Return whether everything was sent and answered before somebody said stop."""
        load = self._load
        if load.rate_rps > 0:
            work = asyncio.create_task(self._open_loop(planned))
        elif load.shapes:
            work = asyncio.create_task(self._shapes(planned))
        else:
            work = asyncio.create_task(self._closed_loop(planned, load.concurrency))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()  # a bug of ours is raised, not counted as the server's failure
                return True
            return False
        finally:
            for task in (work, stopped):
                task.cancel()
            await asyncio.gather(work, stopped, return_exceptions=True)

    async def _open_loop(self, planned: Sequence[Planned]) -> None:
        async with asyncio.TaskGroup() as group:
            for item in planned:
                payload = self._payload(item)  # made before it is due, so that making it delays nothing
                wait = self._start + item.at_s - self._clock()
                if wait > 0:
                    await asyncio.sleep(wait)
                group.create_task(self._send(item, payload, self._start + item.at_s))

    async def _closed_loop(self, planned: Sequence[Planned], width: int) -> None:
        items = iter(planned)

        async def worker() -> None:
            for item in items:
                await self._send(item, self._payload(item), self._clock())

        self._start = self._clock()
        async with asyncio.TaskGroup() as group:
            for _ in range(width):
                group.create_task(worker())

    async def _shapes(self, planned: Sequence[Planned]) -> None:
        self._start = self._clock()
        done = 0
        for _, width in self._load.shapes:
            await self._closed_loop_part(planned[done : done + width])
            done += width

    async def _closed_loop_part(self, items: Sequence[Planned]) -> None:
        now = self._clock()
        async with asyncio.TaskGroup() as group:
            for item in items:
                group.create_task(self._send(item, self._payload(item), now))

    def _payload(self, item: Planned) -> bytes:
        load = self._load
        prompt = prompt_text(load.seed, item.index, item.prompt_tokens)
        return body(load.endpoint, load.model, prompt, item.output_tokens, ignore_eos=load.ignore_eos)

    async def _send(self, item: Planned, payload: bytes, scheduled_at: float) -> None:
        load = self._load
        name = f"bench-{self._name}-{item.index}"
        self._streams += 1
        self._peak_streams = max(self._peak_streams, self._streams)
        try:
            done = await exchange(
                self._client,
                load.url + PATHS[load.endpoint],
                payload,
                {**load.headers, "X-Request-Id": name},
                asked_tokens=item.output_tokens if load.ignore_eos else None,
            )
        finally:
            self._streams -= 1
        if done.answer.fingerprint:
            self._fingerprints.add(done.answer.fingerprint)
        self._results.append((item.index, self._result(name, scheduled_at, done)))

    def _result(self, name: str, scheduled_at: float, done: Exchange) -> RequestResult:
        answer = done.answer
        first, last = answer.first_at, answer.last_at
        return RequestResult(
            id=name,
            scheduled_s=max(0.0, scheduled_at - self._start),
            sent_s=max(0.0, done.sent_at - self._start),
            ttft_s=None if first is None else first - scheduled_at,
            tpot_s=answer.tpot_s(),
            e2e_s=None if last is None else last - scheduled_at,
            prompt_tokens=answer.prompt_tokens,
            output_tokens=answer.output_tokens(),
            ok=done.error is None,
            error=done.error,
            finish_reason=answer.finish_reason,
        )
