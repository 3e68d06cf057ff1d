"""Hold dated prices: what a chip costs an hour, when that was read, and from where."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

# A list price moves about every quarter; past this age it is shown as old.
OLD_AFTER_DAYS = 90
KINDS = ("on-demand", "spot")


class PriceError(ValueError):
    """Say what is wrong with a price, and where."""


@dataclass(frozen=True)
class Price:
    """Hold one list price; `usd_per_chip_hour` is None when nobody read it, `read` a day or a month."""

    kind: str
    usd_per_chip_hour: float | None
    read: str
    source: str
    check: bool = False
    region: str = ""

    def age_days(self, today: dt.date) -> int | None:
        """Count the days since it was read, a month from its first day; None for a date that is none."""
        try:
            read = dt.date.fromisoformat(self.read if len(self.read) > 7 else f"{self.read}-01")
        except ValueError:
            return None
        return (today - read).days

    def is_old(self, today: dt.date) -> bool:
        """Tell whether it was read more than 90 days ago, or nobody knows when."""
        age = self.age_days(today)
        return age is None or age > OLD_AFTER_DAYS


@dataclass(frozen=True)
class Claim:
    """Hold what somebody published about a machine's price, to be held against the list."""

    accelerator: str
    kind: str
    usd_per_hour: float
    text: str
    read: str
    source: str


Prices = Mapping[str, tuple[Price, ...]]


def find_price(prices: Iterable[Price], kind: str, region: str | None = None) -> Price | None:
    """Find the price of a kind; without a region in the file's own, which comes first."""
    return next((p for p in prices if p.kind == kind and region in {None, p.region}), None)


def parse_prices(value: Any, region: str, where: str = "prices") -> dict[str, tuple[Price, ...]]:
    """Parse the `prices` of a file; entries without a region are for `region` and come first."""
    if not isinstance(value, Mapping):
        raise PriceError(f"{where}: a mapping is needed, found {type(value).__name__}")
    parsed = {}
    for name, entries in value.items():
        place = f"{where}.{name}"
        if not isinstance(entries, Sequence) or isinstance(entries, str):
            raise PriceError(f"{place}: a list of prices is needed, found {type(entries).__name__}")
        built = [_price(entry, region, place) for entry in entries]
        parsed[str(name)] = tuple(sorted(built, key=lambda price: price.region != region))
    return parsed


def override(prices: Prices, own: Prices) -> dict[str, tuple[Price, ...]]:
    """Put a user's own prices over the file's, per accelerator, kind and region.

    Raises PriceError for an accelerator that has no prices in the file: a typing error would go unseen.
    """
    unknown = sorted(set(own) - set(prices))
    if unknown:
        raise PriceError(f"prices: unknown {', '.join(unknown)}; known: {', '.join(sorted(prices))}")
    merged = {}
    for name, listed in prices.items():
        mine = {(price.kind, price.region): price for price in own.get(name, ())}
        # In their places: the file's own region stays first.
        merged[name] = (*(mine.pop((price.kind, price.region), price) for price in listed), *mine.values())
    return merged


def _price(entry: Any, region: str, where: str) -> Price:
    if not isinstance(entry, Mapping):
        raise PriceError(f"{where}: a mapping is needed, found {type(entry).__name__}")
    unknown = sorted(set(map(str, entry)) - {field.name for field in fields(Price)})
    if unknown:
        raise PriceError(f"{where}: unknown keys {', '.join(unknown)}")
    try:
        price = Price(**{"region": region, **entry, "read": str(entry.get("read", ""))})
    except TypeError as error:
        raise PriceError(f"{where}: {error}") from error
    amount = price.usd_per_chip_hour
    if amount is not None and (isinstance(amount, bool) or not isinstance(amount, int | float) or not amount > 0):
        raise PriceError(f"{where}: a price of {amount} is no price")
    if price.kind not in KINDS:
        raise PriceError(f"{where}: kind {price.kind!r} must be one of {', '.join(KINDS)}")
    return price
