"""Count HTTP requests and show the process, as vLLM 0.32 does by its instrumentator and Prometheus' client."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    Summary,
    generate_latest,
)

# What vLLM leaves out of its HTTP metrics: these are asked too often, by probes and scrapers.
EXCLUDED = frozenset({"/metrics", "/health", "/load", "/ping", "/version", "/server_info"})
_FINE_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60)
_COARSE_S = (0.1, 0.5, 1)


class HttpMetrics:
    """The series of the requests that one server has answered, and of its process."""

    def __init__(self) -> None:
        self._process = CollectorRegistry()
        GCCollector(registry=self._process)
        PlatformCollector(registry=self._process)
        ProcessCollector(registry=self._process)
        self._http = CollectorRegistry()
        by_handler = ("handler",)
        self._requests = Counter(
            "http_requests",
            "Requests by method, status and handler.",
            (*by_handler, "method", "status"),
            registry=self._http,
        )
        self._request_size = Summary(
            "http_request_size_bytes", "Content length of requests by handler.", by_handler, registry=self._http
        )
        self._response_size = Summary(
            "http_response_size_bytes", "Content length of answers by handler.", by_handler, registry=self._http
        )
        self._fine = Histogram(
            "http_request_duration_highr_seconds", "Latency of all requests.", buckets=_FINE_S, registry=self._http
        )
        self._coarse = Histogram(
            "http_request_duration_seconds",
            "Latency by handler.",
            (*by_handler, "method"),
            buckets=_COARSE_S,
            registry=self._http,
        )

    def count(self, handler: str, method: str, status: int, sizes: tuple[int, int], seconds: float) -> None:
        """Count one request; `sizes` are the content lengths of request and answer, 0 where none is given."""
        self._requests.labels(handler, method, f"{status // 100}xx").inc()
        self._request_size.labels(handler).observe(sizes[0])
        self._response_size.labels(handler).observe(sizes[1])
        self._fine.observe(seconds)
        self._coarse.labels(handler, method).observe(seconds)

    def render_process(self) -> str:
        """Return the series of the process: garbage collector, platform, memory, files."""
        return generate_latest(self._process).decode()

    def render(self) -> str:
        """Return the series of the requests."""
        return generate_latest(self._http).decode()
