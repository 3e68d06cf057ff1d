"""Read tpu-inference's published support matrices, and tell what has changed between two of them. Pure.

github.com/vllm-project/tpu-inference, support_matrices/{release,nightly}/{v6e,v7x}/{default,vllm,flax_nnx}/*.csv: a row
a feature, a quantization, a kernel or a model; "✅ Passing", "❌ Failing", "❓ Untested" in the columns of its tests.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tpu_migration.domain.features import FeatureTable

KINDS = ("feature", "quantization", "kernel", "model")
FLAVOURS = ("default", "vllm", "flax_nnx")  # the first that has a file is taken
CHANNELS = ("release", "nightly")
# None is published for v5e: what is tested on v6e is the nearest that can be known.
STANDS_FOR = {"v5e": "v6e", "v6e": "v6e"}
PASSING, FAILING, UNTESTED = "passing", "failing", "untested"
_MARKS = (("✅", PASSING), ("passing", PASSING), ("❌", FAILING), ("failing", FAILING))


class MatrixError(ValueError):
    """Say why a text is no support matrix."""


@dataclass(frozen=True)
class Row:
    """How a thing does: its tests' states, and for which generations it is recommended (empty: not told)."""

    correctness: str
    performance: str
    generations: str = ""

    def serves(self, generation: str) -> bool:
        """Tell whether it can be had on a generation such as v5e."""
        return self.correctness == PASSING and (not self.generations or generation[:2] in self.generations)


Matrix = Mapping[str, Row]


@dataclass(frozen=True)
class Change:
    """What became of one row: `gained` or lost."""

    kind: str
    name: str
    gained: bool
    sentence: str


@dataclass(frozen=True)
class Workload:
    """What a migrated workload waits for: the features that it gave up, None where nobody wrote them down."""

    name: str
    generation: str
    model: str
    gaps: tuple[str, ...] | None


def parse_matrix(text: str) -> dict[str, Row]:
    """Read one file. Raises MatrixError for anything that is none: a page of a proxy must not look like a change."""
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if len(rows) < 2:
        raise MatrixError("no header with rows below it")
    header = [name.strip().lower() for name in rows[0]]
    columns = {what: _column(header, words) for what, words in _COLUMNS.items()}
    correctness, performance, generations = (columns[what] for what in _COLUMNS)
    if correctness is None:
        raise MatrixError(f"no column of correctness in {rows[0]}")
    if wrong := next((row for row in rows[1:] if len(row) != len(header)), None):
        raise MatrixError(f"{wrong} has {len(wrong)} fields, the header {len(header)}")
    return {
        row[0].strip(): Row(
            _state(row[correctness]),
            UNTESTED if performance is None else _state(row[performance]),
            "" if generations is None else row[generations].strip(),
        )
        for row in rows[1:]
    }


_COLUMNS = {
    "correctness": ("correctness",),
    "performance": ("performance", "benchmark"),
    "generations": ("generations",),
}


def _column(header: Sequence[str], words: Sequence[str]) -> int | None:
    return next((i for i, name in enumerate(header) if any(word in name for word in words)), None)


def _state(text: str) -> str:
    """Return a state; whatever is neither a pass nor a failure ("unverified", "not enough HBM") was not tested."""
    return next((state for mark, state in _MARKS if mark in text.lower()), UNTESTED)


def changes(kind: str, before: Matrix, after: Matrix, generation: str) -> Iterator[Change]:
    """Tell what can be had now on a generation and could not before, and the other way round."""
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        had, has = bool(old and old.serves(generation)), bool(new and new.serves(generation))
        if had == has:
            continue
        if has and new:
            tested = "" if new.performance == PASSING else f", its performance is {new.performance}"
            yield Change(kind, name, True, f"{name} can be had: its correctness passes{tested}")
        else:
            now = new.correctness if new and new.correctness != PASSING else "not for this generation any more"
            yield Change(
                kind, name, False, f"{name} is lost: it passed, and is {now if new else 'not listed any more'}"
            )


def concerns(change: Change, workload: Workload, table: FeatureTable) -> bool:
    """Tell whether a workload gave this up, or is this model."""
    if change.kind == "model":
        return change.name == workload.model
    return any(
        change.name.lower().startswith(start.lower())
        for feature in table.features
        if workload.gaps is None or feature.key in workload.gaps
        for start in feature.matrix
    )
