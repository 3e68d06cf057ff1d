"""Watch what TPUs learn and unlearn: compare the published support matrices with those that were seen last.

What could not be read keeps the rows that were seen last: a failed fetch is a warning, never a change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tpu_migration.clients.matrices import Matrices
from tpu_migration.domain.features import FeatureTable
from tpu_migration.domain.matrices import (
    FLAVOURS,
    KINDS,
    STANDS_FOR,
    Change,
    MatrixError,
    Row,
    Workload,
    changes,
    concerns,
    parse_matrix,
)
from tpu_migration.errors import PermanentError, TransientError

SCHEMA_VERSION = 1
_STALE_S = 7 * 86_400.0

Seen = dict[str, dict[str, Row]]  # file kind by file kind, of one published generation


@dataclass(frozen=True)
class Known:
    """All rows that were seen, by published generation and kind, and when each generation was last read whole."""

    rows: Mapping[str, Seen] = field(default_factory=dict)
    read_at: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for where they are kept."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Any) -> Known:
        """Read what was kept, none for nothing; PermanentError for what this version cannot have written."""
        if not data:
            return cls()
        try:
            if data["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {data['schema_version']}, not {SCHEMA_VERSION}")
            rows = {
                generation: {kind: {name: Row(**row) for name, row in each.items()} for kind, each in kinds.items()}
                for generation, kinds in data["rows"].items()
            }
            return cls(rows, {key: float(value) for key, value in data["read_at"].items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PermanentError(f"the matrices that were kept cannot be read ({error}): delete them") from error


@dataclass(frozen=True)
class News:
    """One change, for whom it matters."""

    change: Change
    generation: str
    workloads: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Say it as a person reads it."""
        stands = STANDS_FOR[self.generation]
        seen = "" if stands == self.generation else f" (seen on {stands}; none is published for {self.generation})"
        whom = f"; concerns {', '.join(self.workloads)}" if self.workloads else ""
        return f"{self.generation}: {self.change.sentence}{seen}{whom}"


def read_all(source: Matrices, channel: str, seen: Known, now: float) -> tuple[Known, list[str]]:
    """Read every published matrix; return all that is known now, and a warning for each that could not be read."""
    rows, read_at, warnings = dict(seen.rows), dict(seen.read_at), []
    for generation in sorted(set(STANDS_FOR.values())):
        before = seen.rows.get(generation, {})
        found, trouble = _read_generation(source, f"{channel}/{generation}", before)
        rows[generation] = found
        if not trouble:
            read_at[generation] = now
        warnings += trouble
    return Known(rows, read_at), warnings


def _read_generation(source: Matrices, folder: str, before: Seen) -> tuple[Seen, list[str]]:
    found, warnings = dict(before), []
    for kind in KINDS:
        paths = [f"{folder}/{flavour}/{kind}_support_matrix.csv" for flavour in FLAVOURS]
        try:
            text = next((text for path in paths if (text := source.read(path)) is not None), None)
            if text is not None:
                found[kind] = parse_matrix(text)
            elif kind in before or kind == KINDS[0]:
                warnings.append(f"{source.source}/{folder} has no {kind} matrix any more: was it moved?")
        except (TransientError, MatrixError) as error:
            warnings.append(f"the {kind} matrix of {folder} was not read: {error}")
    return found, warnings


def stale(known: Known, now: float) -> str:
    """Say that nothing could be read for a week, or never; empty while all is well."""
    for generation in sorted(set(STANDS_FOR.values())):
        at = known.read_at.get(generation)
        if at is None:
            return f"the matrices of {generation} were never read whole"
        if now - at > _STALE_S:
            return f"the matrices of {generation} were last read whole {(now - at) / 86_400:.0f} days ago"
    return ""


def news(before: Known, after: Known, workloads: Sequence[Workload], table: FeatureTable) -> list[News]:
    """Tell what has changed for each generation; a kind that was never seen before is a beginning, no change."""
    return [
        News(change, generation, tuple(each.name for each in workloads if _waits(each, generation, change, table)))
        for generation, stands in STANDS_FOR.items()
        for kind in KINDS
        if (old := before.rows.get(stands, {}).get(kind)) is not None
        for change in _sorted(changes(kind, old, after.rows[stands][kind], generation))
    ]


def _waits(workload: Workload, generation: str, change: Change, table: FeatureTable) -> bool:
    return workload.generation == generation and concerns(change, workload, table)


def _sorted(found: Iterable[Change]) -> list[Change]:
    return sorted(found, key=lambda each: (each.gained, each.name))  # what was lost comes first
