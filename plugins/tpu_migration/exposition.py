"""Tell Prometheus what the records say: the guard serves it, for it reads every record and outlives the runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from tpu_migration.domain.warmth import WarmUp
from tpu_migration.record import Record, RecordError

log = logging.getLogger(__name__)

Records = Mapping[str, Record | RecordError]
Sample = tuple[dict[str, str], float]

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_HELP = {
    "phase_info": "1 for the phase that the migration is in.",
    "warm_up_passes": "Passes over every shape until the engines were warm.",
    "warm_up_settled": "1 if the last two passes agree within 5 %.",
    "warm_up_compiled_programs": "Programs compiled or read from the cache, at the engines' start and by requests.",
    "warm_up_compile_seconds": "Seconds of compiling in sum.",
    "warm_up_cache_hits": "Programs that the persistent compilation cache held.",
    "warm_up_stalls": "Tokens that came over a second after the one before.",
    "warm_up_buckets": "Sizes that the engines pad a step to.",
}


def render(records: Records) -> str:
    """Return the page: gauges of each workload's last run; what is not known has no line."""
    found: dict[str, list[Sample]] = {name: [] for name in _HELP}
    for workload, record in sorted(records.items()):
        of = {"workload": workload}
        if isinstance(record, RecordError):
            found["phase_info"].append(({**of, "phase": record.phase or "unreadable", "run": ""}, 1))
            continue
        found["phase_info"].append(({**of, "phase": str(record.phase), "run": record.run_id}, 1))
        for name, labels, value in _warm_up(record):
            found[name].append(({**of, "run": record.run_id, **labels}, value))
    return "".join(_family(name, samples) for name, samples in found.items() if samples)


def _warm_up(record: Record) -> Iterator[tuple[str, dict[str, str], float]]:
    try:
        warm_up = WarmUp.from_dict(record.notes["warm_up"])
    except (KeyError, TypeError):
        return  # not warmed up yet, or by another version
    if not warm_up.passes:
        return
    by_requests = warm_up.compiled_by_requests
    for name, labels, value in (
        ("warm_up_passes", {}, warm_up.passes),
        ("warm_up_settled", {}, warm_up.settled),
        ("warm_up_compiled_programs", {"at": "start"}, warm_up.compiled_at_start),
        ("warm_up_compiled_programs", {"at": "requests"}, by_requests),
        ("warm_up_compile_seconds", {}, warm_up.compile_s),
        ("warm_up_cache_hits", {}, warm_up.cache_hits),
        ("warm_up_stalls", {}, warm_up.stalls),
        ("warm_up_buckets", {"of": "tokens"}, len(warm_up.token_buckets) or None),
        ("warm_up_buckets", {"of": "requests"}, len(warm_up.batch_buckets) or None),
    ):
        if value is not None:
            yield name, labels, float(value)


def _family(name: str, samples: list[Sample]) -> str:
    full = f"tpu_migration_{name}"
    lines = [f"# HELP {full} {_HELP[name]}", f"# TYPE {full} gauge"]
    for labels, value in samples:
        inside = ",".join(f'{key}="{_escaped(each)}"' for key, each in labels.items())
        lines.append(f"{full}{{{inside}}} {value:g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def serve(host: str, port: int, page: Callable[[], str]) -> ThreadingHTTPServer | None:
    """Answer GET /metrics in a thread of its own; None, and a line in the log, where the port cannot be had."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.partition("?")[0] == "/metrics"
            body = page().encode() if found else b"only /metrics is served here\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", _CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            log.debug(format, *args)

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:  # to guard is what matters
        log.error("no metrics: cannot listen on %s:%d: %s", host, port, error)
        return None
    server.daemon_threads = True
    Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
