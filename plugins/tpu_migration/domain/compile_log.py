"""Read from a TPU engine's log what it compiled. JAX 0.11 and tpu-inference 0.32 write these lines.

With JAX_LOG_COMPILES=1 JAX logs one line for each program, from the cache or not
(jax/_src/interpreters/pxla.py wraps the look-up, too), and one more for a hit. A miss has a line
only with JAX_EXPLAIN_CACHE_MISSES: it is told by the hit that is not there. tpu-inference's own
"Compilation of … finished" is about the same programs and comes at the start only, so that it
proves nothing about requests. Neither server exports a metric of compiles.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FINISHED = re.compile(r"Finished XLA compilation of \S+ in ([0-9.]+) sec")
_HIT = "Persistent compilation cache hit for"
_BUCKETS = re.compile(r"Prepared (token|request) paddings: \[([0-9, ]+)\]")
_BEGUN = re.compile(r"Precompile .+ --> \{.*|Compiling \S+ with global shapes")
_ENDED = re.compile(r"Compilation of .+ finished in .*|Finished XLA compilation of .*")
# What vLLM repeats while it waits for something, a hanging engine included (vllm#27313), and what probes leave.
_CHATTER = re.compile(r"No available shared memory broadcast block|Waiting for \d+ .*core engine proc|\"GET /")
_LONGEST_LINE = 200


@dataclass(frozen=True)
class CompileLog:
    """What an engine's log says: programs, their seconds in sum, cache hits, and the sizes that it pads to.

    `token_buckets` are tokens of a step, `batch_buckets` requests of a step; empty where not told.
    """

    programs: int
    seconds: float
    cache_hits: int
    token_buckets: tuple[int, ...] = ()
    batch_buckets: tuple[int, ...] = ()


def programs_in(log: str) -> int:
    """Count the programs that a log says were compiled, or taken from the cache."""
    return len(_FINISHED.findall(log))


def read_compile_log(log: str) -> CompileLog:
    """Read a whole log; what is not in it is zero or empty."""
    seconds = [float(each) for each in _FINISHED.findall(log)]
    buckets = {kind: tuple(sorted({int(n) for n in sizes.split(",")})) for kind, sizes in _BUCKETS.findall(log)}
    return CompileLog(len(seconds), sum(seconds), log.count(_HIT), buckets.get("token", ()), buckets.get("request", ()))


def begun_compile(log: str) -> str:
    """Return the line of a compile that was begun and has not ended; empty if there is none."""
    begun = ""
    for line in log.splitlines():
        if _ENDED.search(line):
            begun = ""
        elif found := _BEGUN.search(line):
            begun = begun or found.group(0)
    return begun[:_LONGEST_LINE]


def telling_lines(log: str, count: int) -> tuple[str, ...]:
    """Return a log's last lines, without what a waiting server repeats, each cut to a readable length."""
    told = [line.strip() for line in log.splitlines() if line.strip() and not _CHATTER.search(line)]
    return tuple(line[:_LONGEST_LINE] for line in told[-count:])
