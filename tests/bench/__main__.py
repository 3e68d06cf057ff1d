"""Measure every claim and write out/bench.json; exit 1 if one does not hold."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.bench import judge, load_generator, overhead, sandbox_figures, simulation, toolbox, translation
from tests.bench.figure import Figure

# One function a figure: add yours here.
FIGURES: tuple[Callable[[], Figure], ...] = (
    sandbox_figures.start_to_ready,
    sandbox_figures.idle_memory,
    simulation.virtual_migration,
    judge.judge_seconds,
    judge.judge_memory,
    load_generator.load_ttft_error,
    load_generator.load_e2e_error,
    load_generator.load_miscounts,
    load_generator.load_void_rule,
    translation.mixed_documents,
    translation.vllm_workloads,
    toolbox.toolbox_wheels,
    overhead.airflow_overhead,
)


def main(argv: list[str] | None = None) -> int:
    """Measure, one figure after the other; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", help="functions to run (default: all)")
    parser.add_argument("--out", type=Path, default=Path("out/bench.json"))
    options = parser.parse_args(argv)
    known = {measure.__name__: measure for measure in FIGURES}
    if unknown := set(options.names) - known.keys():
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    figures: list[Figure] = []
    for name in options.names or known:
        figure = known[name]()
        figures.append(figure)
        claim = (
            "" if figure.limit is None else f"  (< {figure.limit:g}: {'holds' if figure.holds else 'DOES NOT HOLD'})"
        )
        print(f"{figure.name:32} {figure.value:10g} {figure.unit}{claim}", flush=True)
        _keep(figures, options.out)
    return 0 if all(figure.holds for figure in figures) else 1


def _keep(figures: Sequence[Figure], out: Path) -> None:
    """Write what was measured so far: a figure that cannot be taken loses none of those before it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    written = [{**asdict(figure), "holds": figure.holds} for figure in figures]
    out.write_text(json.dumps({"figures": written}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
