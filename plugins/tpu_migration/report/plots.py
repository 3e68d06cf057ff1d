"""Draw the gate's evidence with Matplotlib, as SVG to be put into the page: no file, no network, no script."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

ARMS = (("baseline", "#9334e6", "baseline (GPU)"), ("candidate", "#1a73e8", "candidate (TPU)"))
METRICS = (("ttft_ms", "TTFT"), ("tpot_ms", "TPOT"), ("e2e_ms", "E2E"))
_INK = "#010203"  # stands for the page's own colour, light or dark
_BAD, _WARN = "#d93025", "#b06000"
_SETTINGS = {
    "svg.fonttype": "none", "font.size": 9, "text.color": _INK, "axes.edgecolor": _INK, "axes.labelcolor": _INK,
    "xtick.color": _INK, "ytick.color": _INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.18, "grid.color": _INK, "legend.frameon": False, "axes.titlesize": 10, "axes.titlelocation": "left",
}  # fmt: skip
_NOTHING = {"Creator": None, "Date": None, "Format": None, "Type": None}


def distributions(evidence: Mapping[str, Any]) -> str:
    """Draw the cumulative distributions of TTFT, TPOT and E2E, both arms over each other."""
    arms, limits = evidence.get("arms") or {}, evidence.get("limits") or {}
    if not any((arms.get(name) or {}).get(metric) for name, _, _ in ARMS for metric, _ in METRICS):
        return ""

    def draw(figure: Any) -> None:
        for axes, (metric, title) in zip(figure.subplots(1, 3, sharey=True), METRICS, strict=True):
            _curves(axes, arms, metric)
            limit = limits.get(metric)
            shown = axes.get_xlim()[1]
            if limit is not None and limit <= 1.5 * shown:
                axes.axvline(limit, color=_BAD, linestyle="--", linewidth=1)
                axes.annotate(
                    f" limit {limit:g}", (limit, 0.02), color=_BAD, fontsize=8, xycoords=("data", "axes fraction"),
                    ha="right" if limit > 0.6 * shown else "left",
                )  # fmt: skip
            axes.set(title=f"{title} (ms)" + ("" if limit is None or limit <= 1.5 * shown else f", limit {limit:g}"))
            axes.set_ylim(0, 1.01)
            axes.set_xlim(left=0)
        figure.axes[0].set_yticks([0, 0.25, 0.5, 0.75, 0.95], ["0", "p25", "p50", "p75", "p95"])
        figure.axes[0].legend(loc="lower right", fontsize=8)

    return _svg("distributions", "Share of requests by latency, both arms", (9, 2.7), draw)


def _curves(axes: Any, arms: Mapping[str, Any], metric: str) -> None:
    for name, colour, label in ARMS:
        values: Sequence[float] = (arms.get(name) or {}).get(metric) or []
        if len(values) > 1:
            # A failed request is never answered: its curve ends below 1.
            whole = arms[name].get("requests") or 1
            answered = (whole - (arms[name].get("failed") or 0)) / whole
            shares = [answered * i / (len(values) - 1) for i in range(len(values))]
            axes.plot(values, shares, color=colour, linewidth=1.8, label=label)


def over_time(evidence: Mapping[str, Any]) -> str:
    """Draw TTFT over the looks, one after the other, with void looks and engine events marked."""
    looks = [look for look in evidence.get("looks") or () if look.get("baseline") or look.get("candidate")]
    if not looks:
        return ""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        begin, top = 0.0, 0.0
        for look in looks:
            for name, colour, label in ARMS:
                rows = look.get(name) or []
                at = [begin + row[0] for row in rows]
                for column, width, quantile in ((1, 1.0, "p50"), (2, 1.8, "p95")):
                    top = max([top, *(row[column] for row in rows if row[column] is not None)])
                    values = [float("nan") if row[column] is None else row[column] for row in rows]
                    alpha = 1.0 if column == 2 else 0.45
                    title = f"{label} {quantile}" if begin == 0 else None
                    axes.plot(at, values, color=colour, linewidth=width, alpha=alpha, label=title)
                lost = [t for t, row in zip(at, rows, strict=True) if row[3]]
                axes.plot(lost, [0] * len(lost), "x", color=_BAD, markersize=6, clip_on=False)
            end = begin + max(look["seconds"], 0.1)
            _mark(axes, look, begin, end)
            begin = end
        axes.set(xlabel="seconds of measurement (× a failed request)", title="TTFT (ms)")
        axes.set_ylim(0, 1.35 * top if top else 1)
        axes.set_xlim(0, begin)
        axes.legend(loc="upper right", fontsize=8, ncols=2)

    return _svg("time", "TTFT over time, both arms", (9, 2.9), draw)


def _mark(axes: Any, look: Mapping[str, Any], begin: float, end: float) -> None:
    """Name a look, shade a void one, and say what happened to the engines in it."""
    void = look.get("outcome") == "void"
    if void:
        axes.axvspan(begin, end, color=_WARN, alpha=0.15, linewidth=0)
    if begin:
        axes.axvline(begin, color=_INK, linewidth=0.8, alpha=0.5)
    told = [f"look {look.get('look', '')}{': void' if void else ''}"]
    told += [f"{'?' if n is None else n} {what}" for what, n in (look.get("events") or {}).items()]
    axes.annotate(
        "\n".join(told), (begin, 0.97), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points",
        va="top", fontsize=8, color=_WARN if void or len(told) > 1 else _INK,
    )  # fmt: skip


def capacity(evidence: Mapping[str, Any]) -> str:
    """Draw throughput and goodput against the offered rate, with the SLO line and the rate that is needed."""
    points = sorted(evidence.get("sweep") or (), key=lambda point: point["rate_rps"])
    if not points:
        return ""
    limits = evidence.get("limits") or {}

    def draw(figure: Any) -> None:
        rates = [p["rate_rps"] for p in points]
        shares = [p["good"] / p["requests"] if p["requests"] else 0.0 for p in points]
        tokens = [float("nan") if p.get("output_tokens_per_s") is None else p["output_tokens_per_s"] for p in points]
        measured = any(p.get("output_tokens_per_s") is not None for p in points)
        every = list(figure.subplots(1, 1 + measured, squeeze=False)[0])
        right = every[-1]
        if measured:
            every[0].plot(rates, tokens, "o-", color=ARMS[1][1])
            every[0].set(title="output tokens a second", xlabel="requests a second", ylim=(0, None))
        right.plot(rates, shares, "o-", color=ARMS[1][1])
        right.set(title="goodput: share that met every SLO", xlabel="requests a second", ylim=(0, 1.05))
        if limits.get("goodput") is not None:
            right.axhline(limits["goodput"], color=_BAD, linestyle="--", linewidth=1, label="SLO")
        for axes in every:
            axes.set_xlim(0, 1.1 * max([*rates, limits.get("need_rps") or 0]))
            if limits.get("need_rps") is not None:
                axes.axvline(limits["need_rps"], color=_INK, linestyle=":", label="peak with head-room")
        right.legend(loc="lower left", fontsize=8)

    return _svg("capacity", "Throughput and goodput against the rate of requests", (9, 2.7), draw)


def _svg(salt: str, title: str, size: tuple[float, float], draw: Any) -> str:
    """Return a figure as an SVG element; its ids begin with nothing that another figure's do."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": salt}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata=_NOTHING)
    text = out.getvalue()
    text = re.sub(r'\s+xmlns(:xlink)?="[^"]*"|<metadata>.*?</metadata>\s*|<!--.*?-->', "", text, flags=re.DOTALL)
    text = re.sub(
        r'\bid="((?:figure|axes|patch|line2d|text|matplotlib|xtick|ytick|legend|QuadMesh|FillBetween)[^"]*)"', "", text
    )
    text = text.replace(_INK, "currentColor")
    label = f'<svg role="img" aria-label="{escape(title)}"'
    return f"<figure>{text[text.index('<svg') :].replace('<svg', label, 1)}</figure>"
