"""Seal the lines of a result with their count and checksum, so that a log that was cut is not taken for the whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

# One encoder for all lines: json.dumps makes a new one at each call that asks for other separators.
encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class ResultCorrupt(ValueError):
    """Report a result that is not what was written: cut, mixed up or altered. Run it again."""


def seal(lines: Sequence[str], summary: Mapping[str, Any]) -> str:
    """Write JSON lines, then one with the summary, the count and the sha256 of the lines before it."""
    text = "".join(f"{line}\n" for line in lines)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text}{encode({'summary': dict(summary), 'lines': len(lines), 'sha256': digest})}\n"


def unseal(text: str, *, require_checksum: bool = True) -> tuple[list[str], dict[str, Any]]:
    """Return the lines and the summary, also out of a pod's log, where other lines may stand between.

    Raises ResultCorrupt when a line is cut, the count or the checksum does not match, or the summary is
    missing. `require_checksum=False` takes a file that has none; one that is there is always checked.
    """
    kept, last = _split(text)
    summary = last.get("summary")
    if not isinstance(summary, dict):
        raise ResultCorrupt("the summary is no object")
    if require_checksum or "lines" in last or "sha256" in last:
        digest = hashlib.sha256("".join(f"{raw}\n" for raw in kept).encode()).hexdigest()
        if last.get("lines") != len(kept):
            raise ResultCorrupt(f"{len(kept)} lines of {last.get('lines')}: the log was cut")
        if last.get("sha256") != digest:
            raise ResultCorrupt(f"sha256 {digest[:12]}… is not the {str(last.get('sha256'))[:12]}… written")
    return kept, summary


def read_object(raw: str) -> dict[str, Any]:
    """Read one line; raises ResultCorrupt if it is no JSON object."""
    try:
        data = msgspec.json.decode(raw)
    except ValueError as error:
        raise ResultCorrupt(f"a line is no JSON: {raw[:80]!r}") from error
    if not isinstance(data, dict):
        raise ResultCorrupt(f"a line is no object: {raw[:80]!r}")
    return data


def _split(text: str) -> tuple[list[str], dict[str, Any]]:
    kept: list[str] = []
    for raw in text.split("\n"):
        if raw.startswith('{"summary"'):
            return kept, read_object(raw)
        if raw.startswith("{"):
            kept.append(raw.removesuffix("\r"))
    raise ResultCorrupt(f"no summary line after {len(kept)} results: the run did not end")
