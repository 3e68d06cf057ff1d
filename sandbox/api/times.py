"""Write and read the API's times."""

from __future__ import annotations

from datetime import UTC, datetime


def stamp(seconds: float) -> str:
    """Write Unix seconds as metav1.Time does: whole seconds, UTC."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(text: str) -> float:
    """Read a time of either kind as Unix seconds."""
    return datetime.fromisoformat(text).timestamp()
