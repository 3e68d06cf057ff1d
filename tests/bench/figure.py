"""What is measured, and what was claimed of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured figure; `limit` is what it must stay below, None where nothing is claimed."""

    name: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def holds(self) -> bool:
        """Tell whether the claim holds."""
        return self.limit is None or self.value < self.limit
