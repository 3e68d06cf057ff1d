"""Know which XLA programs a TPU engine needs, how long each compiles, and which are there.

A program is one subgraph at one padded shape. The boot compiles all of them but a few, as
vLLM does; what is missing compiles inside the step that first needs it, and stalls it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

MIN_TOKENS = 16
MIN_SEQS = 8
# Shapes that the boot leaves out, so that the first warm-up pass still meets compiles:
# one prefill bucket and two batch sizes of the sampler.
LATE = frozenset({"backbone-512", "sample-8", "sample-32"})


@dataclass(frozen=True)
class Program:
    """One subgraph at one shape; `seconds` is its compile time without a cache."""

    name: str
    log_name: str
    seconds: float


def bucket(value: int, least: int) -> int:
    """Return the padded size: the next power of two, at least `least`."""
    return max(least, 1 << max(0, value - 1).bit_length())


def programs(layers: int, max_num_seqs: int, max_num_batched_tokens: int) -> list[Program]:
    """Return every program of an engine, in the order in which vLLM compiles them.

    A backbone takes about 0.8 s a layer: 62 layers, the eight buckets of 2,048 batched
    tokens and the small programs come to some nine minutes, the lower end of what v5e
    to v6e boots are seen to take (10 to 58 minutes).
    """
    found = []
    for tokens in _buckets(MIN_TOKENS, max_num_batched_tokens):
        seconds = layers * 0.8 * (1 + tokens / 16384)
        found.append(_program("backbone", tokens, "num_tokens", seconds))
    found += [
        _program("select_from_array", tokens, "num_tokens", 1.5)
        for tokens in _buckets(MIN_TOKENS, max_num_batched_tokens)
    ]
    for kind, seconds in (("compute_logits", 6.0), ("sample", 9.0), ("gather_logprobs", 4.0)):
        found += [_program(kind, seqs, "num_reqs", seconds) for seqs in _buckets(MIN_SEQS, max_num_seqs)]
    found += [_program("prompt_logprobs", tokens, "num_tokens", 5.0) for tokens in _buckets(MIN_TOKENS, 1024)]
    return found


def _buckets(least: int, most: int) -> Iterator[int]:
    size = least
    while True:
        yield size
        if size >= most:
            return
        size *= 2


def _program(kind: str, size: int, dimension: str, seconds: float) -> Program:
    name = f"{kind}-{size}"
    spread = Random(zlib.crc32(name.encode())).uniform(0.9, 1.1)
    return Program(name, f"worker0 {kind} --> {{'{dimension}': {size}}}", seconds * spread)


class Cache:
    """XLA's persistent cache: one marker file a program, in a directory that must be there.

    The directory is made only inside one that exists, never at the root: a container's path
    without its volume is no reason to write on the host. `gs://` paths always miss
    (tpu-inference#606).
    """

    def __init__(self, path: str | None, key: str) -> None:
        self._key = f"{zlib.crc32(key.encode()):08x}"
        self._path = None
        if path and "://" not in path:
            parent = os.path.dirname(os.path.abspath(path))
            if os.path.isdir(path) or (parent != "/" and os.path.isdir(parent)):
                os.makedirs(path, exist_ok=True)
                self._path = path if os.access(path, os.W_OK) else None

    @property
    def usable(self) -> bool:
        return self._path is not None

    def holds(self, program: str) -> bool:
        return self._path is not None and os.path.exists(self._file(program))

    def keep(self, program: str) -> None:
        if self._path is not None:
            with open(self._file(program), "w", encoding="ascii") as file:
                file.write("simulated\n")

    def _file(self, program: str) -> str:
        return os.path.join(self._path or "", f"jit_{program}-{self._key}")


class Compiled:
    """The programs that an engine has at hand."""

    def __init__(self, all_programs: list[Program], cache: Cache) -> None:
        self._programs = {program.name: program for program in all_programs}
        self.cache = cache
        self.ready: set[str] = set()

    def boot_list(self, skip: bool) -> list[Program]:
        """Return what the boot compiles; with SKIP_JAX_PRECOMPILE or enforce-eager, nothing."""
        return [] if skip else [p for p in self._programs.values() if p.name not in LATE]

    def buckets(self, kind: str) -> list[int]:
        """Return the sizes at which a kind of program exists."""
        names = [name.rpartition("-") for name in self._programs]
        return sorted(int(size) for found, _, size in names if found == kind)

    def seconds(self, program: Program) -> float:
        """Return how long this one takes now: a hit in the cache is three times as fast."""
        return program.seconds / 3 if self.cache.holds(program.name) else program.seconds

    def add(self, program: Program) -> None:
        self.ready.add(program.name)
        self.cache.keep(program.name)

    def missing(self, *names: str) -> list[Program]:
        """Return those of `names` that have to be compiled first."""
        return [
            self._programs.get(name) or Program(name, f"worker0 {name}", 8.0)
            for name in names
            if name not in self.ready
        ]
