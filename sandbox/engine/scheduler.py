"""Batch requests continuously, as vLLM's scheduler does, on a clock that is given.

Pure: no I/O, no waiting. One call of `plan` and one of `commit` make a step. All running
sequences gain a token a step, so a sequence's progress is a difference of step numbers and
a step touches only the sequences that have something to say: the first token, a chunk that
is due, the last token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sandbox.engine.metrics import Metrics
from sandbox.engine.timing import Timing


class Sequence:
    """One request; `notify` is called when it has news, which `produced` and `reason` tell."""

    __slots__ = (
        "admitted",
        "arrived",
        "base",
        "due",
        "first",
        "interval",
        "max_tokens",
        "natural",
        "notify",
        "preemptions",
        "prefill_left",
        "produced",
        "prompt_tokens",
        "reason",
        "start_step",
        "target",
        "wants_logprobs",
    )

    def __init__(
        self,
        prompt_tokens: int,
        max_tokens: int,
        natural_length: int | None,
        *,
        interval: int | None,
        notify: Callable[[], None],
        arrived: float,
        wants_logprobs: str = "",
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.natural = natural_length is not None and natural_length < max_tokens
        self.target = natural_length if self.natural and natural_length is not None else max_tokens
        self.interval = interval  # tokens a chunk; None: only the end matters
        self.notify = notify
        self.arrived = arrived
        self.wants_logprobs = wants_logprobs
        self.admitted = 0.0
        self.first = 0.0
        self.preemptions = 0
        self.prefill_left = prompt_tokens
        self.base = 0  # tokens produced before `start_step`
        self.produced = 0  # as of the last news
        self.start_step = 0  # the first step of this run that gave a token
        self.due = -1
        self.reason: str | None = None


@dataclass(frozen=True)
class Plan:
    """What one step holds."""

    prefill_tokens: int
    decoding: int
    running: int
    seconds: float
    logprobs: tuple[str, ...]


class Scheduler:
    """The waiting queue, the running batch and the KV cache of one engine."""

    def __init__(self, timing: Timing, max_num_seqs: int, max_num_batched_tokens: int, metrics: Metrics) -> None:
        self._timing = timing
        self._max_seqs = max_num_seqs
        self._budget = max_num_batched_tokens
        self._metrics = metrics
        self._waiting: deque[Sequence] = deque()
        self._prefilling: list[Sequence] = []
        self._decoding: dict[Sequence, None] = {}  # ordered by admission
        self._calendar: dict[int, list[Sequence]] = {}
        self._step = 0
        self._kv = 0
        self._last_commit = 0.0
        self._plan = Plan(0, 0, 0, 0.0, ())
        self.slowdown = 1.0

    @property
    def running(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    @property
    def streaming(self) -> int:
        """Count the sequences that have a token already."""
        return len(self._decoding)

    @property
    def unfinished(self) -> int:
        return self.running + len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a request."""
        self._waiting.append(sequence)
        self._publish()

    def abort(self, sequence: Sequence) -> None:
        """Drop a request whose client has gone, or that the server gives up."""
        if sequence.reason is not None:
            return
        if sequence in self._decoding:
            sequence.produced = self._tokens(sequence)
            del self._decoding[sequence]
            self._kv -= sequence.prompt_tokens + sequence.produced
        elif sequence in self._prefilling:
            self._prefilling.remove(sequence)
            self._kv -= sequence.prompt_tokens + sequence.base
        else:
            self._waiting.remove(sequence)
        sequence.due = -1
        sequence.reason = "abort"
        self._metrics.finished["abort"] += 1
        sequence.notify()
        self._publish()

    def abort_all(self) -> int:
        """End every request with "abort", as vLLM does on SIGTERM; return how many."""
        everything = [*self._decoding, *self._prefilling, *self._waiting]
        for sequence in everything:
            self.abort(sequence)
        return len(everything)

    def plan(self, now: float) -> Plan | None:
        """Admit what fits, preempt what does not, and return the next step; None if idle."""
        self._preempt()
        self._admit(now)
        budget = self._budget - len(self._decoding)
        prefill = 0
        for sequence in self._prefilling:
            chunk = min(sequence.prefill_left, budget - prefill)
            if chunk <= 0:
                break
            prefill += chunk
        decoding = len(self._decoding)
        if not decoding and not prefill:
            return None
        seconds = self._timing.step_s(prefill, decoding, self._kv) * self.slowdown
        logprobs = tuple({s.wants_logprobs for s in (*self._prefilling, *self._decoding) if s.wants_logprobs})
        self._plan = Plan(prefill, decoding, self.running, seconds, logprobs)
        return self._plan

    def commit(self, now: float) -> None:
        """End the planned step at `now`: tokens appear, requests finish."""
        plan, metrics = self._plan, self._metrics
        self._step += 1
        step = self._step
        decoding = len(self._decoding)
        if decoding:
            self._kv += decoding
            metrics.generation_tokens += decoding
            metrics.histograms["inter_token_latency_seconds"].observe(now - self._last_commit, decoding)
        due = self._calendar.pop(step, ())
        first_tokens = self._advance_prefill(plan.prefill_tokens, now)
        metrics.histograms["iteration_tokens_total"].observe(plan.prefill_tokens + decoding)
        self._last_commit = now
        for sequence in due:
            if sequence.due == step:
                self._report(sequence, now)
        for sequence in first_tokens:
            self._report(sequence, now)
        self._publish()

    def _tokens(self, sequence: Sequence) -> int:
        return sequence.base + self._step - sequence.start_step + 1

    def _report(self, sequence: Sequence, now: float) -> None:
        """Tell a sequence how far it is, finish it if it is done, else note when it is due again."""
        sequence.produced = self._tokens(sequence)
        if sequence.produced >= sequence.target:
            self._finish(sequence, now)
        else:
            left = sequence.target - sequence.produced
            ahead = left if sequence.interval is None else min(sequence.interval, left)
            sequence.due = self._step + ahead
            self._calendar.setdefault(sequence.due, []).append(sequence)
            if sequence.interval is None:
                return
        sequence.notify()

    def _advance_prefill(self, tokens: int, now: float) -> list[Sequence]:
        """Spend the step's prefill tokens; return the sequences that got a token from it."""
        complete = []
        for sequence in self._prefilling:
            chunk = min(sequence.prefill_left, tokens)
            sequence.prefill_left -= chunk
            tokens -= chunk
            if sequence.prefill_left:
                break
            complete.append(sequence)
        for sequence in complete:
            self._prefilling.remove(sequence)
            self._decoding[sequence] = None
            sequence.start_step = self._step
            self._kv += 1
            self._metrics.generation_tokens += 1
            if sequence.base == 0:
                sequence.first = now
                self._metrics.prompt_tokens += sequence.prompt_tokens
                self._metrics.histograms["time_to_first_token_seconds"].observe(now - sequence.arrived)
        return complete

    def _admit(self, now: float) -> None:
        room = self._budget - len(self._decoding) - sum(s.prefill_left for s in self._prefilling)
        # One per cent stays free so that the newcomer is not preempted at once.
        limit = self._timing.kv_capacity_tokens * 0.99
        while self._waiting and self.running < self._max_seqs and room > 0:
            sequence = self._waiting[0]
            needed = sequence.prompt_tokens + sequence.base
            if self._kv and self._kv + needed + self.running > limit:
                break
            self._waiting.popleft()
            sequence.admitted = sequence.admitted or now
            sequence.prefill_left = needed
            self._kv += needed
            self._prefilling.append(sequence)
            room -= needed

    def _preempt(self) -> None:
        """Send the youngest sequences back to the queue while the KV cache cannot hold a step more."""
        while len(self._decoding) > 1 and self._kv + len(self._decoding) > self._timing.kv_capacity_tokens:
            sequence = next(reversed(self._decoding))
            sequence.base = sequence.produced = self._tokens(sequence)
            del self._decoding[sequence]
            self._kv -= sequence.prompt_tokens + sequence.base
            sequence.due = -1
            sequence.preemptions += 1
            self._metrics.preemptions += 1
            self._waiting.appendleft(sequence)

    def _finish(self, sequence: Sequence, now: float) -> None:
        del self._decoding[sequence]
        self._kv -= sequence.prompt_tokens + sequence.produced
        sequence.reason = "stop" if sequence.natural else "length"
        self._metrics.finished[sequence.reason] += 1
        observe = self._metrics.histograms
        tokens = sequence.produced
        decode = now - sequence.first
        observe["request_prompt_tokens"].observe(sequence.prompt_tokens)
        observe["request_generation_tokens"].observe(tokens)
        observe["request_max_num_generation_tokens"].observe(tokens)
        observe["request_params_n"].observe(1)
        observe["request_params_max_tokens"].observe(sequence.max_tokens)
        observe["request_time_per_output_token_seconds"].observe(decode / (tokens - 1) if tokens > 1 else 0.0)
        observe["e2e_request_latency_seconds"].observe(now - sequence.arrived)
        observe["request_queue_time_seconds"].observe(sequence.admitted - sequence.arrived)
        observe["request_inference_time_seconds"].observe(now - sequence.admitted)
        observe["request_prefill_time_seconds"].observe(sequence.first - sequence.admitted)
        observe["request_decode_time_seconds"].observe(decode)
        observe["request_num_preemptions"].observe(sequence.preemptions)
        observe["request_prefill_kv_computed_tokens"].observe(sequence.prompt_tokens)

    def _publish(self) -> None:
        self._metrics.running = self.running
        self._metrics.waiting = len(self._waiting)
        self._metrics.kv_usage = self._kv / max(1, self._timing.kv_capacity_tokens)
