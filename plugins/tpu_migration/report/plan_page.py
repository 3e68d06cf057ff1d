"""Write an assessment as one page for people, 100 columns wide: the verdict first."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from tpu_migration.domain.assessment import SOURCE, Assessment, Subject
from tpu_migration.domain.cost import CostRow
from tpu_migration.domain.fit import DOES_NOT_FIT, FITS, Fit

WIDTH = 100
_WORDS = {"fits": "FITS", "tight": "TIGHT", "does_not_fit": "DOES NOT FIT", "blocked": "BLOCKED"}


def render(found: Assessment, subject: Subject, origin: str, region: str) -> str:
    """Write the page."""
    parts = [
        _head(found, subject, origin),
        _fit_table(found, subject),
        _cost_table(found, subject, region),
        _gaps(found),
        _list("What would change this", found.would_change),
        _list("Prices", found.warnings),
    ]
    return "\n".join(part for part in parts if part)


def _head(found: Assessment, subject: Subject, origin: str) -> str:
    lines = [*_wrap(f"{_WORDS[found.verdict]}: {found.sentence}.", "  ")]
    if found.target.startswith("tpu-"):
        lines += _wrap(f"Recommended: {found.recommendation}.", "  ")
    shape, serving = subject.shape, subject.serving
    windows = f" ({shape.sliding_layers} with a window of {shape.sliding_window:,})" if shape.sliding_layers else ""
    lines += [
        "",
        *_wrap(
            f"Model: {shape.architecture}, {shape.parameters / 1e9:.2f} B parameters, {shape.layers} layers{windows},"
            f" {shape.heads} heads, {shape.kv_heads} KV heads of {shape.head_dim}; from {origin}.",
            "  ",
        ),
        *_wrap(
            f"Served with context {serving.max_model_len:,}, {serving.max_num_seqs} sequences,"
            f" {serving.max_num_batched_tokens:,} batched tokens, memory utilization {serving.utilization:g}.",
            "  ",
        ),
    ]
    return "\n".join(lines) + "\n"


def _fit_table(found: Assessment, subject: Subject) -> str:
    rows = [["place", "verdict", "weights", "a device", "KV cache", "KV tokens", "context", "at once"]]
    shown = [*([found.source_fit] if found.source_fit else []), *found.fits]
    if not any(each.place.name == found.target_fit.place.name for each in found.fits):
        shown.append(found.target_fit)
    for each in shown:
        name = f"{SOURCE}: {each.place.name}" if each is found.source_fit else each.place.name
        mark = "*" if each.place.name == found.target_fit.place.name else ""
        rows.append([f"{name}{mark}", each.verdict.replace("_", " "), *_figures(each)])
    lines = ["Will it fit?  (GiB; context: longest request alone; at once: requests of full length; * target)"]
    lines += [f"  {line}" for line in _columns(rows, left=2)]
    for each in shown:
        if each.verdict != FITS and each.place.kind == "tpu":
            lines += _wrap(f"  {each.place.name}: {'; '.join(each.reasons)}", "    ")
    if subject.shape.sliding_layers and found.target_fit.place.kind == "tpu":
        freed = found.target_fit.kv_tokens_freed
        lines += _wrap(
            "  KV tokens on TPU count every layer's whole history. vLLM's cache manager may free what left the sliding"
            f" windows ({freed:,} tokens on {found.target_fit.place.name} then): do not count on it before the gate"
            " has shown it.",
            "  ",
        )
    for note in found.target_fit.notes:
        lines += _wrap(f"  {note}.", "  ")
    return "\n".join(lines) + "\n"


def _figures(found: Fit) -> list[str]:
    weights = [f"{found.weights_gib:.1f}", f"{found.weights_gib_per_device:.2f}"]
    if found.verdict == DOES_NOT_FIT and found.tensor_parallel not in found.legal_tensor_parallel:
        return [*weights, "-", "-", "-", "-"]
    return [
        *weights,
        f"{found.kv_gib:.1f}",
        f"{found.kv_tokens:,}",
        f"{found.largest_context:,}",
        f"{found.concurrency:,}",
    ]


def _cost_table(found: Assessment, subject: Subject, region: str) -> str:
    rows = [["machine", "replicas", "on-demand/h", "spot/h", "a month", "saving", "$/1M tok", "tok/s"]]
    notes: list[str] = []
    for row in found.costs:
        rows.append(_cost_row(row))
        notes += [f"{row.label or row.name}: {note}" for note in row.notes]
        if row.throughput and row.throughput.provenance != "given":
            notes.append(f"{row.name}: throughput {row.throughput.provenance} ({row.throughput.source})")
    head = f"What does it cost?  (US dollars, {region}; month of 730 h and saving at the {subject.kind} price)"
    lines = [head, *[f"  {line}" for line in _columns(rows, left=1)]]
    if found.source_is_assumed:
        why = "the source's GPU is not named or not in the price list" if subject.source else "no source was given (-f)"
        notes.insert(0, f"{why}: H100s stand for it")
    for note in notes:
        lines += _wrap(f"  {note}.", "    ")
    if any(row.throughput is None for row in found.costs):
        text = "tok/s -: nobody has measured it for this model here; a million tokens then has no price."
        lines += _wrap(f"  {text} The gate measures it; --throughput NAME=TOK_S takes yours.", "    ")
    if subject.peak_rps == 0 or not any(row.throughput for row in found.costs):
        lines += _wrap(
            "  Replicas: one slice is taken to replace one source pod until the gate has measured it.", "    "
        )
    if found.overlap is not None:
        total = "-" if found.overlap.usd is None else f"${found.overlap.usd:,.0f}"
        parts = ", ".join(f"{name} {hours:.2g} h" for name, hours in found.overlap.parts.items())
        lines += _wrap(f"  While both run: {found.overlap.hours:.1f} h ({parts}): {total}.", "    ")
    return "\n".join(lines) + "\n"


def _cost_row(row: CostRow) -> list[str]:
    def money(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    rate = f"{row.throughput.tokens_per_s:,.0f}" if row.throughput else "-"
    saving = "-" if row.saving_percent is None else f"{row.saving_percent:.0f}%"
    return [
        row.label or row.name,
        str(row.replicas),
        money(row.usd_per_hour["on-demand"]),
        money(row.usd_per_hour["spot"]),
        money(row.usd_per_month, 0),
        saving,
        money(row.usd_per_million),
        rate,
    ]


def _gaps(found: Assessment) -> str:
    if not found.gaps and not found.translation_blockers:
        return ""
    lines = [f"What is lost or changes?  (vLLM {found.gaps[0].version})" if found.gaps else "What blocks it?"]
    for finding in found.translation_blockers:
        lines += _item("blocker", "Translation", f"{finding.path}: {finding.message}", finding.remedy)
    for gap in found.gaps:
        lines += _item(gap.severity, f"{gap.title} ({gap.evidence})", gap.effect, gap.remedy)
    return "\n".join(lines) + "\n"


def _item(severity: str, title: str, effect: str, remedy: str) -> list[str]:
    indent = " " * 11
    lines = textwrap.wrap(f"  {severity:<8} {title}", WIDTH, subsequent_indent=indent, drop_whitespace=True)
    lines += textwrap.wrap(f"{effect}.", WIDTH, initial_indent=indent, subsequent_indent=indent)
    if remedy:
        lines += textwrap.wrap(f"→ {remedy}", WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")
    return lines


def _list(title: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    lines = [title]
    for item in items:
        lines += _wrap(f"  - {item}", "    ")
    return "\n".join(lines) + "\n"


def _wrap(text: str, indent: str) -> list[str]:
    first = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(text.strip(), WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)


def _columns(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Set rows in columns: the first `left` to the left, figures to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(widths[at]) if at < left else cell.rjust(widths[at]) for at, cell in enumerate(row)
        ).rstrip()
        for row in rows
    ]
