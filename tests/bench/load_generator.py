"""Hold the load generator to a server that knows its true times, and starve either of the two.

Measure on an idle machine: client and server share its cores.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from tests.bench.figure import Figure
from tests.bench.known_server import CHUNK_S, FIRST_S
from tpu_migration.bench.results import BenchRun, parse

STREAMS, TOKENS, SECONDS = 300, 128, 20.0
MEAN_CHUNK = 1.6  # tokens
RATE = STREAMS / (FIRST_S + CHUNK_S * TOKENS / MEAN_CHUNK)
ERROR_LIMIT_MS = 2.0
# A starved process stands still every so often, for so long: (every, still) seconds. The server as one
# that compiles, the client as one on a machine that is too small.
STARVED = {"server": (5.0, 0.5), "client": (0.1, 0.04)}


def load_ttft_error() -> Figure:
    """Compare TTFT with when the first chunk was written, from the scheduled arrival: p99 at 300 streams."""
    return Figure("load_ttft_error_p99", _error_ms("ttft_s", 0), "ms", ERROR_LIMIT_MS)


def load_e2e_error() -> Figure:
    """Compare E2E with when the last chunk was written: p99 at 300 streams."""
    return Figure("load_e2e_error_p99", _error_ms("e2e_s", -1), "ms", ERROR_LIMIT_MS)


def load_miscounts() -> Figure:
    """Count tokens too many or too few, and requests that failed or were never made."""
    run, truth = _measured()
    wrong = int(run.summary["planned"]) - len(run.results)
    for each in run.results:
        wrong += abs(each.output_tokens - sum(step for _, step in truth[each.id][1])) if each.ok else TOKENS
    print(f"  {len(run.results)} requests, at most {run.summary['peak_streams']} streams at once")
    return Figure("load_miscounts", wrong, "tokens", 1)


def load_void_rule() -> Figure:
    """Count wrong declarations: void with a starved server or nobody starved, valid with a starved client."""
    said = {
        "nobody starved": (_measured()[0].summary, False),
        "the server starved": (_run(starve="server")[0].summary, False),
        "the client starved": (_run(starve="client")[0].summary, True),
    }
    for case, (summary, void) in said.items():
        found = "; ".join(summary["void_reasons"]) or "valid"
        print(f"  {case}: {found}{'' if summary['void'] == void else '  WRONG'}")
    return Figure("load_void_rule_errors", sum(s["void"] != void for s, void in said.values()), "of 3", 1)


def _error_ms(field: str, chunk: int) -> float:
    run, truth = _measured()
    start = run.summary["monotonic_start_s"]
    errors = [getattr(r, field) - (truth[r.id][1][chunk][0] - start - r.scheduled_s) for r in run.results if r.ok]
    return round(1000 * float(np.quantile(np.abs(errors), 0.99)), 3)


Truth = dict[str, tuple[float, list[tuple[float, int]]]]


@cache
def _measured() -> tuple[BenchRun, Truth]:
    return _run()


def _run(starve: str = "") -> tuple[BenchRun, Truth]:
    with tempfile.TemporaryDirectory() as tmp:
        out, log = Path(tmp) / "run.jsonl", Path(tmp) / "truth.jsonl"
        with _process("tests.bench.known_server", str(log)) as server:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            shape = [f"--rate={RATE:g}", f"--requests={int(RATE * SECONDS)}", f"--output-tokens={TOKENS}"]
            options = [f"--url={url}", "--model=m", "--prompt-tokens=32", "--ignore-eos", f"--out={out}"]
            with _process("tpu_migration.cli", "bench", *shape, *options) as client:
                if starve:
                    _starve(server if starve == "server" else client, client, *STARVED[starve])
                client.wait()
        truth = {name: (received, written) for name, received, written in map(json.loads, log.read_text().splitlines())}
        return parse(out.read_text()), truth


@contextmanager
def _process(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _starve(victim: subprocess.Popen[str], until: subprocess.Popen[str], every_s: float, still_s: float) -> None:
    """Let a process stand still again and again until another one ends."""
    while until.poll() is None:
        time.sleep(every_s - still_s)
        os.kill(victim.pid, signal.SIGSTOP)
        time.sleep(still_s)
        os.kill(victim.pid, signal.SIGCONT)
