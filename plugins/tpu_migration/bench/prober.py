"""Stream small and long answers through the Gateway and serve what they met: `tpu-migration prober`.

Load-balancer errors reach no pod: only a client at the Gateway's own address sees them. The main route
is probed as users meet it; with `--arm-header`, each arm too, through the rule that matches this header.
The orchestrator reads /stats through the API server's pod proxy.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import secrets
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from tpu_migration.bench.lengths import prompt_text
from tpu_migration.bench.options import count, header, positive
from tpu_migration.bench.probe_stats import ArmStats, Probe
from tpu_migration.bench.stream import PATHS, Endpoint, body, exchange, session

MAIN = "main"
ARMS = ("source", "target")
_PROMPT_TOKENS = 16
_PROMPT_MARGIN = 64  # what a tokenizer and a chat template may add to the prompt
_RETRY_S = 1.0
_HEALTHY_TICKS = 5


@dataclass(frozen=True)
class Settings:
    """What to probe and how often."""

    url: str
    model: str
    endpoint: Endpoint = "completions"
    headers: Mapping[str, str] = field(default_factory=dict)
    arm_header: str | None = None
    every_s: float = 1.0
    arm_every_s: float = 2.0
    tokens: int = 8
    long_every_s: float = 60.0
    long_seconds: float = 35.0
    long_max_tokens: int = 4096
    timeout_s: float = 15.0
    window_s: float = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tpu-migration prober`."""
    parser.add_argument("--url", required=True, help="the Gateway's address, without /v1")
    parser.add_argument("--model", required=True, help="the served model name")
    parser.add_argument(
        "--header", action="append", default=[], type=header, metavar="K=V", help="sent along; may be repeated"
    )
    parser.add_argument(
        "--arm-header", "--routes-header", dest="arm_header", metavar="NAME",
        help="probe each arm too, with this header set to source or target",
    )  # fmt: skip
    parser.add_argument("--endpoint", choices=sorted(PATHS), default="completions", help="of the OpenAI API")
    parser.add_argument("--every-s", type=positive, default=1.0, help="between small answers")
    parser.add_argument("--arm-every-s", type=positive, default=2.0, help="between those of each arm")
    parser.add_argument("--tokens", type=count, default=8, help="of a small answer")
    parser.add_argument("--long-every-s", type=positive, default=60.0, help="between long answers")
    parser.add_argument("--long-seconds", type=positive, default=35.0, help="what a long answer should take")
    parser.add_argument("--long-max-tokens", type=count, default=4096, help="of a long answer")
    parser.add_argument("--timeout-s", type=positive, default=15.0, help="for a small answer")
    parser.add_argument("--window-s", type=positive, default=60.0, help="what `recent` and the p99 look at")
    parser.add_argument("--host", default=os.environ.get("POD_IP") or "127.0.0.1", help="default: $POD_IP")
    parser.add_argument("--port", type=int, default=8080, help="where its counters are served")


def main(args: argparse.Namespace) -> int:
    """Probe until SIGTERM or SIGINT; then 0."""
    settings = Settings(
        url=args.url.rstrip("/").removesuffix("/v1"),
        model=args.model,
        endpoint=args.endpoint,
        headers=dict(args.header),
        arm_header=args.arm_header,
        every_s=args.every_s,
        arm_every_s=args.arm_every_s,
        tokens=args.tokens,
        long_every_s=args.long_every_s,
        long_seconds=args.long_seconds,
        long_max_tokens=args.long_max_tokens,
        timeout_s=args.timeout_s,
        window_s=args.window_s,
    )
    asyncio.run(_serve(settings, args.host, args.port))
    return 0


async def _serve(settings: Settings, host: str, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Prober(settings).run(host, port, stop)


class Prober:
    """Send probes on a fixed beat, whatever became of the ones before, and count what they met."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clock = asyncio.get_running_loop().time
        self._born = self._clock()
        self._name = secrets.token_hex(4)
        names = (MAIN, *ARMS) if settings.arm_header else (MAIN,)
        self._arms = {name: ArmStats(self._clock, settings.window_s) for name in names}
        self._beats: dict[str, tuple[float, float]] = {}  # loop → (last beat, interval)
        self._sent = 0

    async def run(self, host: str, port: int, stop: asyncio.Event) -> None:
        """Serve and probe until `stop` is set; a probe loop that breaks ends everything, loudly."""
        app = web.Application()
        app.router.add_get("/stats", self._stats)
        app.router.add_get("/health", self._health)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            await self.probe(stop)
        finally:
            await runner.cleanup()

    async def probe(self, stop: asyncio.Event) -> None:
        """Probe until `stop` is set."""
        settings = self._settings
        async with session(settings.timeout_s) as self._client, asyncio.TaskGroup() as loops:
            tasks = [loops.create_task(self._beat(loops, MAIN, settings.every_s))]
            if settings.arm_header:
                tasks += [loops.create_task(self._beat(loops, arm, settings.arm_every_s)) for arm in ARMS]
            tasks.append(loops.create_task(self._long_loop(loops)))
            await stop.wait()
            for task in (*tasks, *self._in_flight()):
                task.cancel()

    def snapshot(self) -> dict[str, Any]:
        """Return what /stats serves."""
        return {
            "schema": 1,
            "instance": self._name,
            "started_s_ago": round(self._clock() - self._born, 3),
            "arms": {name: stats.snapshot() for name, stats in self._arms.items()},
        }

    def _in_flight(self) -> list[asyncio.Task[Any]]:
        return [task for task in asyncio.all_tasks() if task.get_name().startswith(f"probe-{self._name}-")]

    async def _beat(self, loops: asyncio.TaskGroup, arm: str, every_s: float) -> None:
        """Send a small probe on every beat; a beat that was missed is skipped, not made up for."""
        due = self._clock()
        while True:
            self._beats[arm] = (self._clock(), every_s)
            self._launch(loops, arm, self._settings.tokens, long=False)
            due = max(due + every_s, self._clock())
            await asyncio.sleep(due - self._clock())

    async def _long_loop(self, loops: asyncio.TaskGroup) -> None:
        """Keep sending answers long enough to outlive a load balancer's timeout (30 s by default on GKE)."""
        longest = await self._longest_answer()
        while True:
            tpot_s = self._arms[MAIN].tpot_s()
            if tpot_s is None:  # nothing is known of the server's speed yet
                await asyncio.sleep(min(_RETRY_S, self._settings.every_s))
                continue
            tokens = math.ceil(self._settings.long_seconds / tpot_s)
            self._launch(loops, MAIN, max(self._settings.tokens, min(tokens, longest)), long=True)
            await asyncio.sleep(self._settings.long_every_s)

    async def _longest_answer(self) -> int:
        """Ask the server how long an answer may be; a refusal of ours must not look like its failure."""
        settings = self._settings
        while True:
            try:
                async with self._client.get(f"{settings.url}/v1/models", headers=settings.headers) as response:
                    models = await response.json(content_type=None) if response.status == 200 else None
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                models = None  # the small probes report an unreachable server; here it only means: later
            if isinstance(models, dict) and isinstance(models.get("data"), list):
                lengths = [
                    model["max_model_len"]
                    for model in models["data"]
                    if isinstance(model, dict) and isinstance(model.get("max_model_len"), int)
                ]
                room = min(lengths, default=settings.long_max_tokens) - _PROMPT_TOKENS - _PROMPT_MARGIN
                return max(1, min(room, settings.long_max_tokens))
            await asyncio.sleep(min(_RETRY_S, settings.every_s))

    def _launch(self, loops: asyncio.TaskGroup, arm: str, tokens: int, *, long: bool) -> None:
        self._sent += 1
        name = f"probe-{self._name}-{self._sent}"
        loops.create_task(self._probe(arm, tokens, name, self._sent, long=long), name=name)

    async def _probe(self, arm: str, tokens: int, name: str, index: int, *, long: bool) -> None:
        settings, stats = self._settings, self._arms[arm]
        headers = {**settings.headers, "X-Request-Id": name}
        if settings.arm_header and arm != MAIN:
            headers[settings.arm_header] = arm
        prompt = prompt_text(index, 0, _PROMPT_TOKENS)
        payload = body(settings.endpoint, settings.model, prompt, tokens, ignore_eos=True)
        number = stats.begin(long=long)
        done = await exchange(
            self._client,
            settings.url + PATHS[settings.endpoint],
            payload,
            headers,
            asked_tokens=tokens,
            timeout_s=4 * settings.long_seconds + settings.timeout_s if long else None,
        )
        first = done.answer.first_at
        stats.finish(
            number,
            Probe(
                ok=done.error is None,
                truncated=done.cut_short,
                error=done.error,
                ttft_s=None if first is None else first - done.sent_at,
                tpot_s=done.answer.tpot_s(),
                seconds=round(done.ended_at - done.sent_at, 3),
                long=long,
            ),
        )

    async def _stats(self, _request: web.Request) -> web.Response:
        return web.json_response(self.snapshot())

    async def _health(self, _request: web.Request) -> web.Response:
        """Answer 503 when a probe loop has stopped; never because of what the probes met."""
        now = self._clock()
        late = [name for name, (at, every_s) in self._beats.items() if now - at > _HEALTHY_TICKS * (every_s + 1)]
        healthy = bool(self._beats) and not late
        return web.json_response({"ok": healthy, "stopped": late}, status=200 if healthy else 503)
