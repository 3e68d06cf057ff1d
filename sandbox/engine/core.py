"""Run the step loop: the scheduler's plans on the machine's clock, with compiles and faults."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from random import Random
from time import monotonic

from sandbox.engine.compilation import MIN_SEQS, MIN_TOKENS, Compiled, Program, bucket
from sandbox.engine.config import OUT_OF_MEMORY, EngineConfig
from sandbox.engine.faults import Faults
from sandbox.engine.language import LanguageModel
from sandbox.engine.metrics import Metrics
from sandbox.engine.scheduler import Plan, Scheduler, Sequence

# A loop that was kept from running this long gives up catching up: step times start afresh.
CATCH_UP_S = 0.25
FAULT_POLL_S = 1.0


class EngineDead(RuntimeError):
    """Say that the engine core has died; the HTTP server ends with it."""


class EngineCore:
    """One engine: its queue, its clock, its compiled programs and its faults."""

    def __init__(self, config: EngineConfig, faults: Faults, compiled: Compiled, log: Callable[[str], None]) -> None:
        self.config = config
        self.faults = faults
        self.metrics = Metrics(config.flags.served_names[0], config.cache_labels())
        self.model = LanguageModel(config.model.name, config.accelerator.name + config.weights)
        self.dead: str | None = None
        self.draining = False
        self._compiled = compiled
        self._log = log
        self._scheduler = Scheduler(config.timing, config.max_num_seqs, config.max_num_batched_tokens, self.metrics)
        self._wake = asyncio.Event()
        self._warm: set[tuple[int, int, tuple[str, ...]]] = set()
        self._next_recompile = 0.0
        self._random = (None, Random(config.pod))  # the seed it was made of, and what draws

    @property
    def unfinished(self) -> int:
        return self._scheduler.unfinished

    @property
    def hung(self) -> bool:
        """Tell whether a fault holds the step loop; HTTP goes on answering, as on hardware."""
        if self.faults.get("gpu-hung") is not None:
            return True
        return self.faults.get("hang-mid-stream") is not None and self._scheduler.streaming > 0

    def add(self, sequence: Sequence) -> None:
        """Queue a request; while draining it ends at once with "abort", as vLLM's does."""
        if self.dead:
            raise EngineDead(self.dead)
        if self.draining:
            sequence.reason = "abort"
            self.metrics.finished["abort"] += 1
            sequence.notify()
            return
        self._scheduler.add(sequence)
        self._wake.set()

    def abort(self, sequence: Sequence) -> None:
        """Drop a request whose client has gone."""
        self._scheduler.abort(sequence)

    def abort_all(self) -> int:
        return self._scheduler.abort_all()

    def fails_under_load(self) -> bool:
        """Draw whether the fault `errors-under-load` hits this request."""
        options = self.faults.get("errors-under-load")
        if options is None or self.unfinished < int(options.get("at", 8)):
            return False
        seed = options.get("seed", 1)
        if self._random[0] != seed:
            self._random = (seed, Random(f"{seed}/{self.config.pod}"))
        return self._random[1].random() < float(options.get("rate", 0.3))

    def die(self, reason: str) -> None:
        """Kill the engine core: every request ends, the server will follow."""
        self.dead = reason
        self._log(f"ERROR EngineCore encountered a fatal error: {reason}")
        self.abort_all()
        self._wake.set()

    async def watch_faults(self) -> None:
        """Look at the faults file once a second."""
        while True:
            self.apply_faults()
            await asyncio.sleep(FAULT_POLL_S)

    def apply_faults(self) -> None:
        self.faults.refresh()
        slow = self.faults.get("slow-tpu")
        self._scheduler.slowdown = float(slow.get("factor", 4)) if slow is not None else 1.0
        self.model.wrong = self.faults.get("wrong-answers") is not None

    async def run(self) -> None:
        """Step for ever; a step's deadline follows from the one before, so that no delay adds up."""
        deadline = 0.0
        while not self.dead:
            if self.hung:
                await asyncio.sleep(0.2)
                continue
            plan = self._scheduler.plan(monotonic())
            if plan is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._compile(plan)
            now = monotonic()
            if not deadline or now - deadline > CATCH_UP_S or self._idle_since(deadline, now, plan):
                deadline = now
            deadline += plan.seconds
            await asyncio.sleep(max(0.0, deadline - monotonic()))
            if not self.dead:
                self._scheduler.commit(monotonic())

    @staticmethod
    def _idle_since(deadline: float, now: float, plan: Plan) -> bool:
        """Tell whether the loop rested: a first prefill must not catch up on time without work."""
        return plan.decoding == 0 and now > deadline

    async def _compile(self, plan: Plan) -> None:
        """Stall for the programs that this step's shapes still lack (TPU only)."""
        if not self.config.tpu:
            return
        for program in self._missing(plan):
            if self.faults.get("late-oom") is not None:
                self.die(OUT_OF_MEMORY)
                return
            if self.config.check_recompilation:
                self.die(f"RuntimeError: Recompilation detected in a step: {program.log_name}")
                return
            await self.compile(program)
        options = self.faults.get("recompile")
        if options is not None and monotonic() >= self._next_recompile:
            self._next_recompile = monotonic() + float(options.get("every_s", 10))
            stall = float(options.get("stall_s", 3))
            await asyncio.sleep(stall)
            self._log_compile("backbone", stall * self.config.speed)

    def _missing(self, plan: Plan) -> list[Program]:
        tokens = bucket(plan.prefill_tokens + plan.decoding, MIN_TOKENS)
        seqs = bucket(plan.running, MIN_SEQS)
        shape = (tokens, seqs, plan.logprobs)
        if shape in self._warm:
            return []
        names = [f"{kind}-{tokens}" for kind in ("backbone", "select_from_array")]
        names += [f"{kind}-{seqs}" for kind in ("compute_logits", "sample")]
        if "sample" in plan.logprobs:
            names.append(f"gather_logprobs-{seqs}")
        if "prompt" in plan.logprobs:
            names.append(f"prompt_logprobs-{tokens}")
        self._warm.add(shape)
        return self._compiled.missing(*names)

    async def compile(self, program: Program) -> float:
        """Compile one program: sleep for it, log it as JAX does, keep it in the cache; return the seconds it took."""
        seconds, kind = self._compiled.seconds(program), program.name.partition("-")[0]
        if (slow := self.faults.get("slow-compile")) is not None:
            seconds = float(slow.get("each_s", 300.0)) * self.config.speed
        if self.config.log_compiles:
            self._log(f"WARNING jax: Compiling jit({kind}) with global shapes and types [simulated].")
            # JAX 0.11 tells of a miss only with JAX_EXPLAIN_CACHE_MISSES (jax/_src/compiler.py).
            if self._compiled.cache.holds(program.name):
                key = f"jit_{kind}-{zlib.crc32(program.name.encode()):08x}"
                self._log(f"WARNING jax: Persistent compilation cache hit for 'jit_{kind}' with key '{key}'")
        await asyncio.sleep(seconds / self.config.speed)
        self._compiled.add(program)
        self._log_compile(kind, seconds)
        return seconds

    def _log_compile(self, kind: str, seconds: float) -> None:
        if self.config.log_compiles:
            self._log(f"WARNING jax: Finished XLA compilation of jit({kind}) in {seconds:.9f} sec")
