"""Send requests on a schedule and write down what each one met: `tpu-migration bench`.

Open loop by default: Poisson arrivals from a seed, sent on time whatever the server does, and timed
from the *scheduled* arrival (no coordinated omission). `--concurrency` and `--shapes` close the loop,
for warming up; such a run is no measurement to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpu_migration.bench import results as result_file
from tpu_migration.bench.lengths import Lengths, Planned, fingerprint, prompt_text, schedule
from tpu_migration.bench.options import DISTRIBUTION, count, header, lengths, positive, shapes
from tpu_migration.bench.stream import PATHS, Endpoint, Exchange, body, exchange, session
from tpu_migration.bench.summary import Limits, LoopLag, quantile, summarize
from tpu_migration.domain.gate import RequestResult

EXIT_VOID = 3
_LEAD_S = 0.05  # between opening the session and the first arrival


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

    def plan(self) -> list[Planned]:
        """Return the requests to send, in order."""
        if not self.shapes:
            return schedule(self.requests, self.rate_rps, self.seed, self.prompt, self.output)
        tokens_of = [tokens for tokens, width in self.shapes for _ in range(width)]
        drawn = schedule(len(tokens_of), 0.0, self.seed, self.prompt, self.output)
        return [Planned(p.index, 0.0, tokens, p.output_tokens) for p, tokens in zip(drawn, tokens_of, strict=True)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tpu-migration bench`."""
    parser.add_argument("--url", required=True, help="the server's address, without /v1")
    parser.add_argument("--model", required=True, help="the served model name")
    parser.add_argument("--rate", type=positive, help="requests a second, open loop, Poisson arrivals")
    parser.add_argument("--requests", type=count, help="how many requests to send")
    parser.add_argument("--seed", type=int, default=1, help="arrivals, lengths and prompts follow from it")
    parser.add_argument("--out", required=True, help="result file; - for standard output")
    parser.add_argument("--header", action="append", default=[], type=header, metavar="K=V")
    parser.add_argument("--endpoint", choices=sorted(PATHS), default="completions")
    parser.add_argument("--prompt-tokens", type=lengths, default="512", metavar="DIST", help=DISTRIBUTION)
    parser.add_argument("--output-tokens", type=lengths, default="128", metavar="DIST", help=DISTRIBUTION)
    parser.add_argument("--ignore-eos", action="store_true", help="every answer must have its full length")
    parser.add_argument("--concurrency", type=count, help="closed loop: so many requests at a time")
    parser.add_argument(
        "--shapes", type=shapes, metavar="TOKENSxN,…", help="warm-up: N requests at once, each shape once"
    )
    parser.add_argument("--timeout-s", type=positive, default=300.0, help="for one whole answer")
    parser.add_argument("--policy-void-loop-lag-ms", type=positive, default=5.0)
    parser.add_argument("--policy-void-schedule-delay-ms", type=positive, default=20.0)
    parser.add_argument("--policy-void-achieved-rate", type=positive, default=0.98)


def main(args: argparse.Namespace) -> int:
    """Run the load that the options ask for; 0, or 3 if the run is void, or 2 for options that contradict."""
    ways = [name for name in ("rate", "concurrency", "shapes") if getattr(args, name) is not None]
    if len(ways) != 1 or (ways != ["shapes"] and args.requests is None):
        print("bench: give --shapes, or --requests with one of --rate and --concurrency", file=sys.stderr)
        return 2
    load = Load(
        url=args.url.rstrip("/").removesuffix("/v1"),
        model=args.model,
        requests=args.requests or 0,
        seed=args.seed,
        rate_rps=args.rate or 0.0,
        concurrency=args.concurrency or 0,
        shapes=args.shapes or (),
        endpoint=args.endpoint,
        headers=dict(args.header),
        prompt=args.prompt_tokens,
        output=args.output_tokens,
        ignore_eos=args.ignore_eos,
        timeout_s=args.timeout_s,
        limits=Limits(args.policy_void_loop_lag_ms, args.policy_void_schedule_delay_ms, args.policy_void_achieved_rate),
    )
    if args.out != "-" and not Path(args.out).resolve().parent.is_dir():
        print(f"bench: no folder for {args.out}", file=sys.stderr)
        return 2
    run = asyncio.run(_with_signals(load))
    _write(args.out, result_file.render(run.results, run.summary))
    return EXIT_VOID if run.summary["void"] else 0


async def _with_signals(load: Load) -> result_file.BenchRun:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return await run_load(load, stop)


async def run_load(load: Load, stop: asyncio.Event | None = None) -> result_file.BenchRun:
    """Send the load and return what came of it; setting `stop` ends it early, and void."""
    return await _Run(load, stop or asyncio.Event()).run()


class _Run:
    """One run in progress."""

    def __init__(self, load: Load, stop: asyncio.Event) -> None:
        self._load = load
        self._stop = stop
        self._clock = asyncio.get_running_loop().time
        self._name = secrets.token_hex(4)
        self._results: list[tuple[int, RequestResult]] = []
        self._fingerprints: set[str] = set()
        self._start = 0.0
        self._streams = self._peak_streams = 0

    async def run(self) -> result_file.BenchRun:
        load, planned = self._load, self._load.plan()
        async with session(load.timeout_s) as self._client:
            # What exists now is never garbage: keep the collector's pauses out of the measurement.
            gc.collect()
            gc.freeze()
            lag = LoopLag()
            self._start = self._clock() + _LEAD_S
            try:
                interrupted = not await self._until_stopped(planned)
            finally:
                loop_lag = lag.stop()
                gc.unfreeze()
        results = [result for _, result in sorted(self._results, key=lambda pair: pair[0])]
        summary = summarize(
            results,
            open_loop=load.rate_rps > 0,
            loop_lag_p99_ms=loop_lag,
            interrupted=interrupted,
            planned=len(planned),
            limits=load.limits,
        )
        return result_file.BenchRun(tuple(results), {**self._about(planned), **summary})

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

    def _about(self, planned: Sequence[Planned]) -> dict[str, Any]:
        load = self._load
        mode = "open" if load.rate_rps > 0 else "shapes" if load.shapes else "closed"
        about: dict[str, Any] = {
            "model": load.model,
            "endpoint": load.endpoint,
            "mode": mode,
            "rate_rps": load.rate_rps or None,
            "concurrency": load.concurrency or None,
            "seed": load.seed,
            "schedule": fingerprint(planned),
            "prompt_tokens": load.prompt.text,
            "output_tokens": load.output.text,
            "ignore_eos": load.ignore_eos,
            "system_fingerprints": sorted(self._fingerprints),
            "peak_streams": self._peak_streams,
            "seconds": round(self._clock() - self._start, 3),
        }
        if load.shapes:
            about["shapes"] = self._shape_figures()
        return about

    def _shape_figures(self) -> list[dict[str, Any]]:
        """Sum up each shape, so that the caller sees when two windows no longer differ."""
        by_index = dict(self._results)
        figures, done = [], 0
        for tokens, width in self._load.shapes:
            part = [by_index[i] for i in range(done, done + width) if i in by_index]
            done += width
            good = [r for r in part if r.ok]
            figures.append(
                {
                    "shape": f"{tokens}x{width}",
                    "requests": width,
                    "failed": width - len(good),
                    "error": next((r.error for r in part if not r.ok), None),
                    "ttft_p50_s": quantile([r.ttft_s for r in good if r.ttft_s is not None], 0.5),
                    "tpot_p50_s": quantile([r.tpot_s for r in good if r.tpot_s is not None], 0.5),
                    "e2e_p50_s": quantile([r.e2e_s for r in good if r.e2e_s is not None], 0.5),
                }
            )
        return figures


def _write(out: str, text: str) -> None:
    """Write the result at once: to standard output, or to a file that is either whole or not there."""
    if out == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    part = Path(f"{out}.part-{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(out)
