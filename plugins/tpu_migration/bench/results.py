"""Write and read result files: one JSON line a request, then one line with the summary and a checksum."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tpu_migration.bench.sealed import ResultCorrupt, encode, read_object, seal, unseal
from tpu_migration.domain.gate import ClientHealth, RequestResult

_FIELDS = tuple(RequestResult.__dataclass_fields__)
_NUMBERS = ("scheduled_s", "sent_s")
_OPTIONAL_NUMBERS = ("ttft_s", "tpot_s", "e2e_s")
_OPTIONAL_TEXTS = ("error", "finish_reason")


@dataclass(frozen=True)
class BenchRun:
    """The requests of one run, and what the load generator says about the run and itself."""

    results: tuple[RequestResult, ...]
    summary: Mapping[str, Any]


def line(result: RequestResult) -> str:
    """Write one request; strict JSON, times to the microsecond."""
    record = {name: getattr(result, name) for name in _FIELDS}
    for name in (*_NUMBERS, *_OPTIONAL_NUMBERS):
        if record[name] is not None:
            record[name] = round(record[name], 6)
    return encode(record)


def render(results: Iterable[RequestResult], summary: Mapping[str, Any]) -> str:
    """Write a whole file; the last line holds the count and the sha256 of the lines before it."""
    return seal([line(result) for result in results], summary)


def parse(text: str, *, require_checksum: bool = True) -> BenchRun:
    """Read a result back, also out of a pod's log, where other lines may stand between.

    Raises ResultCorrupt for one that is not whole (see `unseal`), and when an id is there twice.
    `require_checksum=False` takes a file that has none (another tool's, say).
    """
    kept, summary = unseal(text, require_checksum=require_checksum)
    results = tuple(_result(raw) for raw in kept)
    if len({result.id for result in results}) != len(results):
        raise ResultCorrupt("a request id is there twice")
    return BenchRun(results, summary)


def _result(raw: str) -> RequestResult:
    data = read_object(raw)
    problems = [name for name in _FIELDS if name not in data]
    problems += [name for name in data if name not in _FIELDS]
    problems += [name for name in _NUMBERS if not _number(data.get(name))]
    problems += [name for name in _OPTIONAL_NUMBERS if not (data.get(name) is None or _number(data.get(name)))]
    problems += [name for name in _OPTIONAL_TEXTS if not isinstance(data.get(name), str | None)]
    if not isinstance(data.get("ok"), bool):
        problems.append("ok")
    if not _count(data.get("output_tokens")):
        problems.append("output_tokens")
    if not (data.get("prompt_tokens") is None or _count(data["prompt_tokens"])):
        problems.append("prompt_tokens")
    if problems:
        raise ResultCorrupt(f"{', '.join(dict.fromkeys(problems))} missing, unknown or wrong in {raw[:120]!r}")
    return RequestResult(**{**data, "id": str(data["id"])})


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def client_health(run: BenchRun) -> ClientHealth:
    """Take the load generator's health from its summary; what a summary lacks was not measured."""
    summary = run.summary
    reasons = summary.get("void_reasons")
    declared = tuple(str(reason) for reason in reasons) if isinstance(reasons, list) else ()
    if summary.get("void") and not declared:
        declared = ("declared void by the load generator",)
    return ClientHealth(
        loop_lag_p99_ms=_optional(summary.get("loop_lag_p99_ms")),
        schedule_delay_p99_ms=_optional(summary.get("schedule_delay_p99_ms")),
        achieved_rate_ratio=_optional(summary.get("achieved_rate_ratio")),
        void_reasons=declared,
    )


def _optional(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def merge(runs: Sequence[BenchRun]) -> BenchRun:
    """Join the blocks of one arm into one run: times follow each other, the worst health of all counts.

    A block that did not measure something makes it unmeasured for all.
    """
    results: list[RequestResult] = []
    offset = 0.0
    for number, run in enumerate(runs):
        if len(runs) == 1:  # nothing to tell apart, and nothing to shift
            results += run.results
            break
        results += [
            replace(r, id=f"{number}/{r.id}", scheduled_s=r.scheduled_s + offset, sent_s=r.sent_s + offset)
            for r in run.results
        ]
        offset = max((r.scheduled_s + (r.e2e_s or 0.0) for r in results), default=offset)
    healths = [client_health(run) for run in runs]
    summary: dict[str, Any] = {
        "requests": len(results),
        "sent": sum(int(run.summary.get("requests", len(run.results))) for run in runs),
        "blocks": len(runs),
        "loop_lag_p99_ms": _worst([h.loop_lag_p99_ms for h in healths], max),
        "schedule_delay_p99_ms": _worst([h.schedule_delay_p99_ms for h in healths], max),
        "achieved_rate_ratio": _worst([h.achieved_rate_ratio for h in healths], min),
        "void_reasons": [reason for h in healths for reason in h.void_reasons],
    }
    summary["void"] = bool(summary["void_reasons"])
    return BenchRun(tuple(results), summary)


def _worst(values: list[float | None], pick: Any) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return pick(known) if known and len(known) == len(values) else None
