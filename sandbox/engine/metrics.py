"""Count what vLLM 0.32 counts, and render it as its /metrics does.

Counters are plain numbers that the step loop adds to; text is made only when somebody asks.
Names, types, labels and buckets are held to recordings/vllm-0.32/metrics.http.
"""

from __future__ import annotations

import time
from bisect import bisect_left

from sandbox.engine.http_metrics import HttpMetrics

_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_FIRST_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_FIRST_S += (160, 640, 2560)
_STEP_TOKENS = tuple(2**n for n in (0, *range(3, 15)))

# Name after "vllm:" → (buckets, help); the attribute of Metrics is the same name.
HISTOGRAMS = {
    "request_prompt_tokens": (_TOKENS, "Prompt tokens of a finished request."),
    "request_generation_tokens": (_TOKENS, "Generated tokens of a finished request."),
    "iteration_tokens_total": (_STEP_TOKENS, "Tokens of an engine step."),
    "request_max_num_generation_tokens": (_TOKENS, "Most tokens generated for a request."),
    "request_params_n": ((1, 2, 5, 10, 20), "The parameter n of a request."),
    "request_params_max_tokens": (_TOKENS, "The parameter max_tokens of a request."),
    "time_to_first_token_seconds": (_FIRST_S, "Time to first token."),
    "inter_token_latency_seconds": (_PER_TOKEN_S, "Time between two tokens of a request."),
    "request_time_per_output_token_seconds": (_PER_TOKEN_S, "Mean time per output token of a request."),
    "e2e_request_latency_seconds": (_REQUEST_S, "Time from arrival to the last token."),
    "request_queue_time_seconds": (_REQUEST_S, "Time spent waiting."),
    "request_inference_time_seconds": (_REQUEST_S, "Time spent running."),
    "request_prefill_time_seconds": (_REQUEST_S, "Time spent in prefill."),
    "request_decode_time_seconds": (_REQUEST_S, "Time spent in decode."),
    "request_num_preemptions": ((1, 2, 3, 4, 5, 10, 20), "Preemptions of a request."),
    "request_prefill_kv_computed_tokens": (_TOKENS, "KV tokens computed in prefill."),
}
_BY_SOURCE = ("local_compute", "local_cache_hit", "external_kv_transfer")
_CACHED_BY = ("device", "host", "p2p", "disk", "external_unspecified")
REASONS = ("stop", "length", "abort", "error", "repetition")


def number(value: float) -> str:
    """Write a number as Prometheus' Python client does: 8.0, 1.7953e+09."""
    text = repr(float(value))
    dot = text.find(".")
    if dot > 6 and "e" not in text:
        mantissa = f"{text[0]}.{text[1:dot]}{text[dot + 1 :]}".rstrip("0.")
        return f"{mantissa}e+{dot - 1:02d}"
    return text


class Histogram:
    """Bucket counts and a sum; `observe` is one bisect and two additions."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class Metrics:
    """Everything that one engine counts."""

    def __init__(self, model_name: str, cache_config: dict[str, str]) -> None:
        self._labels = f'engine="0",model_name="{model_name}"'
        self._model = f'model_name="{model_name}"'
        self._cache_config = ",".join(f'{key}="{cache_config[key]}"' for key in sorted(cache_config))
        self._created = number(time.time())
        self.running = 0
        self.waiting = 0
        self.kv_usage = 0.0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.preemptions = 0
        self.finished = dict.fromkeys(REASONS, 0)
        self.http = HttpMetrics()
        self.histograms = {name: Histogram(bounds) for name, (bounds, _) in HISTOGRAMS.items()}

    def render(self) -> str:
        """Return the exposition text, in the recording's order."""
        out: list[str] = []
        out.append(self.http.render_process())
        for name, what in (
            ("flops", "operations"),
            ("read_bytes", "bytes read"),
            ("write_bytes", "bytes written"),
        ):
            self._counter(out, f"estimated_{name}_per_gpu", f"Estimated {what} per GPU.", {"": 0})
        self._gauge(out, "num_requests_running", "Requests in the running batch.", {"": self.running})
        self._gauge(out, "num_requests_waiting", "Requests waiting.", {"": self.waiting})
        by_reason = {'reason="capacity"': self.waiting, 'reason="deferred"': 0}
        self._gauge(out, "num_requests_waiting_by_reason", "Requests waiting, by reason.", by_reason)
        sleep = {
            'sleep_state="awake"': 1,
            'sleep_state="weights_offloaded"': 0,
            'sleep_state="discard_all"': 0,
        }
        self._gauge(out, "engine_sleep_state", "Sleep state; awake = 1 serves.", sleep)
        self._gauge(out, "kv_cache_usage_perc", "KV-cache usage; 1 is full.", {"": self.kv_usage})
        for prefix, queries in (("", self.prompt_tokens), ("external_", 0)):
            self._counter(out, f"{prefix}prefix_cache_queries", "Tokens looked up in the prefix cache.", {"": queries})
            self._counter(out, f"{prefix}prefix_cache_hits", "Tokens found in the prefix cache.", {"": 0})
        self._counter(out, "mm_cache_queries", "Items looked up in the multi-modal cache.", {"": 0})
        self._counter(out, "mm_cache_hits", "Items found in the multi-modal cache.", {"": 0})
        self._counter(out, "num_preemptions", "Preemptions.", {"": self.preemptions})
        self._counter(out, "prompt_tokens", "Prefill tokens.", {"": self.prompt_tokens})
        sources = {f'source="{source}"': 0 for source in _BY_SOURCE}
        sources['source="local_compute"'] = self.prompt_tokens
        self._counter(out, "prompt_tokens_by_source", "Prompt tokens by source.", sources)
        self._counter(out, "prompt_tokens_cached", "Cached prompt tokens.", {"": 0})
        cached = {f'source="{source}"': 0 for source in _CACHED_BY}
        self._counter(out, "prompt_tokens_cached_by_source", "Cached prompt tokens by tier.", cached)
        self._counter(out, "generation_tokens", "Generated tokens.", {"": self.generation_tokens})
        finished = {f'finished_reason="{reason}"': count for reason, count in self.finished.items()}
        self._counter(out, "request_success", "Finished requests.", finished)
        self._admission_rejections(out)
        for name, (_, text) in HISTOGRAMS.items():
            self._histogram(out, name, text)
        out.append("# HELP vllm:cache_config_info Cache configuration (simulated).\n")
        out.append(f"# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{{{self._cache_config}}} 1.0\n")
        out.append(self.http.render())
        return "".join(out)

    def _gauge(self, out: list[str], name: str, text: str, values: dict[str, float]) -> None:
        out.append(f"# HELP vllm:{name} {text}\n# TYPE vllm:{name} gauge\n")
        for label, value in values.items():
            out.append(f"vllm:{name}{{{self._with(label)}}} {number(value)}\n")

    def _counter(self, out: list[str], name: str, text: str, values: dict[str, float]) -> None:
        out.append(f"# HELP vllm:{name}_total {text}\n# TYPE vllm:{name}_total counter\n")
        for label, value in values.items():
            out.append(f"vllm:{name}_total{{{self._with(label)}}} {number(value)}\n")
        self._creation(out, name, text, list(values))

    def _creation(self, out: list[str], name: str, text: str, labels: list[str]) -> None:
        out.append(f"# HELP vllm:{name}_created {text}\n# TYPE vllm:{name}_created gauge\n")
        for label in labels:
            out.append(f"vllm:{name}_created{{{self._with(label)}}} {self._created}\n")

    def _with(self, label: str) -> str:
        """Put one more label where the alphabet wants it."""
        if not label:
            return self._labels
        if label < "model_name":
            engine, model = self._labels.split(",", 1)
            return f"{engine},{label},{model}"
        return f"{self._labels},{label}"

    def _admission_rejections(self, out: list[str]) -> None:
        name, text = "admission_rejections", "Admissions refused by a queue limit."
        limits = ("max_num_queued_reqs", "max_num_queued_tokens")
        out.append(f"# HELP vllm:{name}_total {text}\n# TYPE vllm:{name}_total counter\n")
        out.extend(f'vllm:{name}_total{{{self._model},reason="{limit}"}} 0.0\n' for limit in limits)
        out.append(f"# HELP vllm:{name}_created {text}\n# TYPE vllm:{name}_created gauge\n")
        out.extend(f'vllm:{name}_created{{{self._model},reason="{limit}"}} {self._created}\n' for limit in limits)

    def _histogram(self, out: list[str], name: str, text: str) -> None:
        histogram = self.histograms[name]
        out.append(f"# HELP vllm:{name} {text}\n# TYPE vllm:{name} histogram\n")
        total = 0
        engine, model = self._labels.split(",", 1)
        for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
            total += count
            edge = "+Inf" if bound is None else repr(float(bound))
            out.append(f'vllm:{name}_bucket{{{engine},le="{edge}",{model}}} {number(total)}\n')
        out.append(f"vllm:{name}_count{{{self._labels}}} {number(total)}\n")
        out.append(f"vllm:{name}_sum{{{self._labels}}} {number(histogram.sum)}\n")
        self._creation(out, name, text, [""])
