"""Write the report: one self-contained HTML page, the verdict first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tpu_migration.clock import iso
from tpu_migration.record import Record, told
from tpu_migration.report.gate_page import gate_sections
from tpu_migration.status import attempt_state

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--good:#188038;--bad:#c5221f;--warn:#b06000}
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.n{white-space:nowrap}
.pass,.done,.migrated{color:var(--good)}.fail,.failed,.fallen_back{color:var(--bad)}
.inconclusive,.void,.held{color:var(--warn)}b.big{font-size:1.2rem}footer{margin-top:3rem;opacity:.7}
pre{overflow-x:auto;padding:.6rem;border:1px solid var(--line)}
figure{margin:.5rem 0}svg{width:100%;height:auto}svg text{font-family:system-ui,sans-serif!important}
"""


def gate_page(title: str, verdict: Mapping[str, Any], evidence: Mapping[str, Any]) -> str:
    """Return a page of the gate alone, for two files that were judged by hand."""
    head = f"<h1>{escape(title)}</h1>{_verdict(verdict)}"
    return _page(title, [head, *gate_sections(verdict, evidence)])


def report_data(record: Record, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows, as JSON values."""
    return {**summary, "verdict": record.verdict, "evidence": record.notes.get("evidence"), "plan": dict(record.plan)}


def render_report(record: Record, summary: Mapping[str, Any]) -> str:
    """Return the page. Everything that came from outside is escaped."""
    parts = [_headline(record, summary), *gate_sections(record.verdict, record.notes.get("evidence") or {})]
    parts += [_stages(summary["stages"]), _attempts(record), _approvals(record), _users(summary), _way_back(record)]
    parts.append(_facts(record))
    return _page(f"{record.workload}: {record.phase}", parts)


def _page(title: str, parts: Sequence[str]) -> str:
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body>{body}</body></html>\n"
    )


def _headline(record: Record, summary: Mapping[str, Any]) -> str:
    route = ", ".join(f"{name} {share} %" for name, share in summary["route"].items())
    text = f'<h1>{escape(record.workload)}: <span class="{record.phase}">{escape(str(record.phase))}</span></h1>'
    text += f"<p>From {escape(record.source.accelerator)} to {escape(str(record.plan['target']))}. "
    text += f"Users are on: {escape(route)}. Safe route: {escape(summary['safe_route'])}.</p>"
    text += _verdict(record.verdict)
    if record.fallback:
        text += f"<p><b>Why it went back:</b> {escape(record.fallback.reason)} (by {escape(record.fallback.actor)})</p>"
    if summary["engine"] == "simulated":
        text += "<p><b>Simulated engines</b>: the figures show how the pipeline works, not how fast a TPU is.</p>"
    return text


def _verdict(verdict: Mapping[str, Any] | None) -> str:
    if not verdict:
        return ""
    outcome = escape(str(verdict["outcome"]))
    sentence = str(verdict["sentence"]).partition(": ")[2]
    return f'<p><b class="big {outcome}">Gate: {outcome}.</b> {escape(sentence)}</p>'


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f'<tr><td>{escape(s["stage"])}</td><td class="{escape(s["state"])}">{escape(s["state"])}</td>'
        f'<td class="n">{s["seconds"]:.1f} s</td></tr>'
        for s in stages
    )
    return f"<h2>Stages</h2><table>{rows}</table>"


def _attempts(record: Record) -> str:
    rows = "".join(
        f"<tr><td>{escape(each.offer)}</td><td>{escape(each.pool)}</td><td>{escape(attempt_state(each))}</td></tr>"
        for each in record.attempts
    )
    return f"<h2>Where TPUs were asked for</h2><table>{rows}</table>" if rows else ""


def _approvals(record: Record) -> str:
    rows = "".join(f"<tr><td>{escape(each.what)}</td><td>{escape(told(each))}</td></tr>" for each in record.approvals)
    return f"<h2>What people were asked</h2><table>{rows}</table>" if rows else ""


def _way_back(record: Record) -> str:
    if not record.way_back:
        return ""
    commands = escape("\n".join(record.way_back))
    return f"<h2>The way back to GPUs</h2><p>{escape(record.source.scarcity)}.</p><pre>{commands}</pre>"


def _users(summary: Mapping[str, Any]) -> str:
    users = summary["users"]
    rows = "".join(
        f'<tr><td>{escape(key.replace("_", " "))}</td><td class="n">{escape(str(value))}</td></tr>'
        for key, value in users.items()
    )
    return f"<h2>What users met</h2><table>{rows}</table>"


def _facts(record: Record) -> str:
    begun = min((each.started for each in record.stages), default=0.0)
    facts = {
        "run": record.run_id,
        "began": iso(begun),
        "epoch": record.epoch,
        "plan": record.plan_hash,
        "policy": f"{record.plan['policy']} ({(record.verdict or {}).get('policy_hash', '–')})",
        "model": record.source.model,
        "node pool": record.pool,
        "lengths": record.notes.get("lengths", "–"),
        "warm-up": record.notes.get("warm_up", "–"),
    }
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    return f"<h2>Facts</h2><table>{rows}</table>"
