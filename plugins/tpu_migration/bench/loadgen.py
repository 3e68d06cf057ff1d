"""Send requests on a schedule and write down what each one met: `tpu-migration bench`.

Open loop by default: Poisson arrivals from a seed, sent on time whatever the server does, and timed
from the *scheduled* arrival (no coordinated omission). `--concurrency` and `--shapes` close the loop,
for warming up; such a run is no measurement to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpu_migration.bench import results as result_file
from tpu_migration.bench.lengths import Planned, fingerprint, loops_for
from tpu_migration.bench.load import Load, Part, run_part
from tpu_migration.bench.options import DISTRIBUTION, count, header, lengths, positive, shapes
from tpu_migration.bench.processes import run_in_processes
from tpu_migration.bench.stream import PATHS
from tpu_migration.bench.summary import Limits, quantile, summarize
from tpu_migration.domain.gate import RequestResult

__all__ = ["Load", "add_arguments", "main", "run_load"]

EXIT_VOID = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tpu-migration bench`."""
    parser.add_argument("--url", required=True, help="the server's address, without /v1")
    parser.add_argument("--model", required=True, help="the served model name")
    parser.add_argument("--rate", type=positive, help="requests a second, open loop, Poisson arrivals")
    parser.add_argument("--requests", type=count, help="how many requests to send")
    parser.add_argument("--seed", type=int, default=1, help="arrivals, lengths and prompts follow from it")
    parser.add_argument("--out", required=True, help="result file; - for standard output")
    parser.add_argument(
        "--header", action="append", default=[], type=header, metavar="K=V", help="sent along; may be repeated"
    )
    parser.add_argument("--endpoint", choices=sorted(PATHS), default="completions", help="of the OpenAI API")
    parser.add_argument("--prompt-tokens", type=lengths, default="512", metavar="DIST", help=DISTRIBUTION)
    parser.add_argument("--output-tokens", type=lengths, default="128", metavar="DIST", help=DISTRIBUTION)
    parser.add_argument("--ignore-eos", action="store_true", help="every answer must have its full length")
    parser.add_argument("--concurrency", type=count, help="closed loop: so many requests at a time")
    parser.add_argument(
        "--shapes", type=shapes, metavar="TOKENSxN,…", help="warm-up: N requests at once, each shape once"
    )
    parser.add_argument(
        "--processes", type=count, help="event loops to send from (default: as many as the tokens a second need)"
    )
    parser.add_argument("--write-every", type=count, default=1, help="write every so many requests, sum up all")
    parser.add_argument("--timeout-s", type=positive, default=300.0, help="for one whole answer")
    parser.add_argument(
        "--policy-void-loop-lag-ms", type=positive, default=5.0, help="a larger p99 of its event loop's lag voids"
    )
    parser.add_argument(
        "--policy-void-schedule-delay-ms", type=positive, default=20.0, help="a larger p99 of lateness voids"
    )
    parser.add_argument(
        "--policy-void-achieved-rate", type=positive, default=0.98, help="a smaller share of the rate voids"
    )


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
        write_every=args.write_every,
        limits=Limits(args.policy_void_loop_lag_ms, args.policy_void_schedule_delay_ms, args.policy_void_achieved_rate),
    )
    if args.out != "-" and not Path(args.out).resolve().parent.is_dir():
        print(f"bench: no folder for {args.out}", file=sys.stderr)
        return 2
    planned = load.plan()
    spare = max(1, len(os.sched_getaffinity(0)) - 1)  # one core is for whatever else runs there
    processes = args.processes or min(spare, loops_for(load.rate_rps, load.output))
    if processes > 1 and load.rate_rps > 0:
        run = assemble(load, planned, run_in_processes(load, planned, processes))
    else:
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
    planned = load.plan()
    part = await run_part(load, planned, stop or asyncio.Event(), name=f"bench-{secrets.token_hex(4)}")
    return assemble(load, planned, [part])


def assemble(load: Load, planned: Sequence[Planned], parts: Sequence[Part]) -> result_file.BenchRun:
    """Make one run of what the event loops did; of their healths the worst counts."""
    lags = [part.loop_lag_p99_ms for part in parts]
    known = [lag for lag in lags if lag is not None]
    whole = Part(
        start=min(part.start for part in parts),
        end=max(part.end for part in parts),
        results=dict(sorted((index, result) for part in parts for index, result in part.results.items())),
        loop_lag_p99_ms=max(known) if len(known) == len(lags) else None,
        interrupted=any(part.interrupted for part in parts),
        peak_streams=sum(part.peak_streams for part in parts),
        fingerprints=frozenset().union(*(part.fingerprints for part in parts)),
    )
    summary = summarize(
        list(whole.results.values()),
        open_loop=load.rate_rps > 0,
        loop_lag_p99_ms=whole.loop_lag_p99_ms,
        interrupted=whole.interrupted,
        planned=len(planned),
        limits=load.limits,
    )
    written = tuple(result for index, result in whole.results.items() if index % load.write_every == 0)
    about = {**_about(load, planned, whole), "processes": len(parts), "written": len(written)}
    return result_file.BenchRun(written, {**about, **summary})


def _about(load: Load, planned: Sequence[Planned], part: Part) -> dict[str, Any]:
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
        "system_fingerprints": sorted(part.fingerprints),
        "peak_streams": part.peak_streams,
        "seconds": round(part.end - part.start, 3),
        "monotonic_start_s": part.start,  # of the machine's clock, which its processes share
    }
    if load.shapes:
        about["shapes"] = _shape_figures(load, part.results)
    return about


def _shape_figures(load: Load, by_index: Mapping[int, RequestResult]) -> list[dict[str, Any]]:
    """Sum up each shape, so that the caller sees when two windows no longer differ."""
    figures, done = [], 0
    for tokens, width in load.shapes:
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
