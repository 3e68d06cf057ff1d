"""Write what the gate found: checks, evidence, and what would change the verdict; parts of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tpu_migration.domain.gate.counterfactual import what_would_change
from tpu_migration.report import plots

_SIDES = (("baseline", "GPU (baseline)"), ("candidate", "TPU (candidate)"))


def gate_sections(verdict: Mapping[str, Any] | None, evidence: Mapping[str, Any]) -> list[str]:
    """Return the sections, those left out for which there is nothing to show."""
    if not verdict:
        return []
    return [
        _checks(verdict),
        _change(verdict),
        _section("Latency, both arms", plots.distributions(evidence) + _arms(evidence.get("arms") or {})),
        _section("Latency over time", plots.over_time(evidence)),
        _section("Capacity", plots.capacity(evidence) + _rates(evidence)),
        _section("Cost", _cost(evidence)),
        _section("Quality", _quality(verdict)),
        _section("The load generator's own health", _clients(evidence.get("clients") or ())),
    ]


def number(value: Any) -> str:
    """Write a number short; a dash for none."""
    return f"{value:.4g}" if isinstance(value, int | float) else "–"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: frozenset[int] = frozenset()) -> str:
    """Write a table of cells that are escaped already; the columns of `numbers` are right-aligned."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="n">{cell}</{tag}>' if index in numbers else f"<{tag}>{cell}</{tag}>"
            for index, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<table><tr>{line('th', head)}</tr>{body}</table>" if rows else ""


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}" if body else ""


def _checks(verdict: Mapping[str, Any]) -> str:
    rows = []
    for check in verdict["checks"]:
        outcome = escape(str(check["outcome"]))
        low, high = check.get("interval") or (None, None)
        between = f"{number(low)} … {number(high)}" if (low, high) != (None, None) else "–"
        rows.append(
            (
                f'<span class="{outcome}">{outcome}</span>',
                escape(check["name"]),
                number(check["value"]),
                between,
                number(check["limit"]),
                escape(check["unit"]),
                escape(check["sentence"]),
            )
        )
    head = ("outcome", "check", "value", "bounds", "limit", "unit", "in words")
    return _section("Checks", table(head, rows, frozenset({2, 3, 4})))


def _change(verdict: Mapping[str, Any]) -> str:
    told = what_would_change(verdict)
    items = "".join(f"<li>{escape(each)}</li>" for each in told)
    return _section("What would change the verdict", f"<ul>{items}</ul>" if items else "")


def _arms(arms: Mapping[str, Any]) -> str:
    rows = []
    for name, title in _SIDES:
        arm = arms.get(name) or {}
        if arm:
            cells = [escape(title), number(arm.get("requests")), number(arm.get("failed"))]
            for metric, _ in plots.METRICS:
                values = arm.get(metric) or []
                cells += [number(values[round(q * (len(values) - 1))]) if values else "–" for q in (0.5, 0.95)]
            rows.append(cells)
    head = ["", "requests", "failed", *(f"{title} {q} (ms)" for _, title in plots.METRICS for q in ("p50", "p95"))]
    return table(head, rows, frozenset(range(1, 9)))


def _rates(evidence: Mapping[str, Any]) -> str:
    rows = [
        [number(p["rate_rps"]), number(p["requests"]), number(p["good"]), number(p.get("output_tokens_per_s")),
         number(p.get("ttft_p99_ms"))]
        for p in sorted(evidence.get("sweep") or (), key=lambda point: point["rate_rps"])
    ]  # fmt: skip
    head = ("requests/s", "measured", "met every SLO", "output tokens/s", "TTFT p99 (ms)")
    return table(head, rows, frozenset(range(5)))


def _cost(evidence: Mapping[str, Any]) -> str:
    found = evidence.get("costs") or {}
    rows = [
        [escape(title), number(arm["usd_per_hour"]), number(arm["tokens_per_s"]), number(arm["usd_per_million"])]
        for name, title in _SIDES
        if (arm := found.get(name))
    ]
    head = ("", "$ an hour", "conforming tokens/s", "$ per million output tokens")
    return table(head, rows, frozenset({1, 2, 3}))


def _quality(verdict: Mapping[str, Any]) -> str:
    found = [check for check in verdict["checks"] if str(check["name"]).startswith("quality")]
    if not found:
        return "<p>Not measured: this verdict says nothing about whether both arms give equally good answers.</p>"
    return "".join(f'<p class="{escape(c["outcome"])}">{escape(c["sentence"])}</p>' for c in found)


def _clients(clients: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [escape(str(c["block"])), number(c.get("loop_lag_p99_ms")), number(c.get("schedule_delay_p99_ms")),
         number(c.get("achieved_rate_ratio")), number(c.get("peak_streams")), number(c.get("processes")),
         escape("; ".join(c.get("void_reasons") or []) or "kept its schedule")]
        for c in clients
    ]  # fmt: skip
    head = ("block", "loop lag p99 (ms)", "schedule delay p99 (ms)", "achieved rate", "streams", "processes", "")
    return table(head, rows, frozenset({1, 2, 3, 4, 5}))
