"""Write and read the API's times."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache


def stamp(seconds: float) -> str:
    """Write Unix seconds as metav1.Time does: whole seconds, UTC."""
    return _stamp(int(seconds))


@lru_cache(maxsize=16)  # many things happen in the same second
def _stamp(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(text: str) -> float:
    """Read a time of either kind as Unix seconds."""
    return datetime.fromisoformat(text).timestamp()
