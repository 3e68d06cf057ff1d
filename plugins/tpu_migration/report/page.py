"""Write the report: one self-contained HTML page, the verdict first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tpu_migration.clock import iso
from tpu_migration.record import Record

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--good:#188038;--bad:#c5221f;--warn:#b06000}
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.pass,.done,.migrated{color:var(--good)}.fail,.failed,.fallen_back{color:var(--bad)}
.inconclusive,.void,.held{color:var(--warn)}b.big{font-size:1.2rem}footer{margin-top:3rem;opacity:.7}
svg{width:100%;height:auto}svg text{fill:currentColor;font-size:11px}
"""
_ARMS = (("baseline", "#9334e6", "GPU (baseline)"), ("candidate", "#1a73e8", "TPU (candidate)"))
_METRICS = (("ttft_ms", "TTFT"), ("tpot_ms", "TPOT"), ("e2e_ms", "E2E"))


def render_report(record: Record, summary: Mapping[str, Any]) -> str:
    """Return the page. Everything that came from outside is escaped."""
    parts = [_headline(record, summary), _checks(record.verdict), _distributions(record.notes.get("arms") or {})]
    parts += [_stages(summary["stages"]), _users(summary), _facts(record)]
    body = "\n".join(part for part in parts if part)
    title = f"{record.workload}: {record.phase}"
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
    if record.verdict:
        outcome = escape(str(record.verdict["outcome"]))
        sentence = str(record.verdict["sentence"]).partition(": ")[2]
        text += f'<p><b class="big {outcome}">Gate: {outcome}.</b> {escape(sentence)}</p>'
    if record.fallback:
        text += f"<p><b>Why it went back:</b> {escape(record.fallback.reason)} (by {escape(record.fallback.actor)})</p>"
    if summary["engine"] == "simulated":
        text += "<p><b>Simulated engines</b>: the figures show how the pipeline works, not how fast a TPU is.</p>"
    return text


def _checks(verdict: Mapping[str, Any] | None) -> str:
    if not verdict:
        return ""
    rows = "".join(
        f'<tr><td class="{escape(c["outcome"])}">{escape(c["outcome"])}</td><td>{escape(c["name"])}</td>'
        f'<td class="n">{_number(c["value"])}</td><td class="n">{_number(c["limit"])}</td><td>{escape(c["unit"])}</td>'
        f"<td>{escape(c['sentence'])}</td></tr>"
        for c in verdict["checks"]
    )
    head = (
        '<tr><th>outcome</th><th>check</th><th class="n">value</th><th class="n">limit</th><th>unit</th><th></th></tr>'
    )
    return f"<h2>Checks</h2><table>{head}{rows}</table>"


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}"


def _distributions(arms: Mapping[str, Any]) -> str:
    """Draw both arms' cumulative distributions over each other, from the quantiles in the record."""
    charts = [chart for metric, title in _METRICS if (chart := _chart(arms, metric, title))]
    return f"<h2>Latency, both arms</h2>{''.join(charts)}" if charts else ""


def _chart(arms: Mapping[str, Any], metric: str, title: str) -> str:
    curves = {name: arms.get(name, {}).get(metric) for name, _, _ in _ARMS}
    if not any(curves.values()):
        return ""
    top = max(values[-1] for values in curves.values() if values) or 1.0
    lines = []
    for index, (name, colour, label) in enumerate(_ARMS):
        values: Sequence[float] = curves[name] or []
        if values:
            points = " ".join(
                f"{60 + 560 * v / top:.1f},{140 - 120 * i / (len(values) - 1):.1f}" for i, v in enumerate(values)
            )
            lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
            lines.append(f'<text x="640" y="{40 + 18 * index}" style="fill:{colour}">{escape(label)}</text>')
    axis = '<path d="M60 20V140H620" fill="none" stroke="currentColor" opacity=".4"/>'
    marks = "".join(f'<text x="52" y="{144 - 1.2 * p:.0f}" text-anchor="end">p{p}</text>' for p in (0, 50, 95))
    scale = f'<text x="60" y="156">0</text><text x="620" y="156" text-anchor="end">{top:.0f} ms</text>'
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 760 165" role="img" '
        f'aria-label="{escape(title)}: share of requests by latency">{axis}{marks}{scale}{"".join(lines)}</svg>'
        "</figure>"
    )


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f'<tr><td>{escape(s["stage"])}</td><td class="{escape(s["state"])}">{escape(s["state"])}</td>'
        f'<td class="n">{s["seconds"]:.1f} s</td></tr>'
        for s in stages
    )
    return f"<h2>Stages</h2><table>{rows}</table>"


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
        "warm-up": record.notes.get("warm_up", "–"),
    }
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    return f"<h2>Facts</h2><table>{rows}</table>"
