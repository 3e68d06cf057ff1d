"""Compare what serving costs on the source's GPUs, on others and on TPU slices: an hour, a month, a million tokens.

$/1M output tokens = $/h / (tokens/s x 3600) x 1e6, whole machines. Each throughput says where it comes from; without
one there is no figure a token. A price that nobody read is None, and so is everything that follows from it.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tpu_migration.domain.accelerators import Accelerators, Gpu, Slice
from tpu_migration.domain.plan import Plan
from tpu_migration.domain.prices import KINDS, Price

HOURS_A_MONTH = 730.0
MEASURED, GIVEN, ASSUMED = "measured", "given", "assumed"
# A claim that is further off the list price than this is said to contradict it.
_CLAIM_TOLERANCE = 0.10


@dataclass(frozen=True)
class Throughput:
    """Hold output tokens a second of one machine, and where the figure comes from."""

    tokens_per_s: float
    provenance: str
    source: str


@dataclass(frozen=True)
class Machine:
    """Name one priced machine (or share of one) that serves a replica: a slice, or some GPUs."""

    name: str
    accelerator: Slice | Gpu
    chips: int
    label: str = ""

    @property
    def is_tpu(self) -> bool:
        return isinstance(self.accelerator, Slice)

    def price(self, kind: str, region: str) -> Price | None:
        return self.accelerator.price(kind, region)

    def usd_per_hour(self, kind: str, region: str) -> float | None:
        if isinstance(self.accelerator, Slice):
            return self.accelerator.usd_per_hour(kind, region)
        return self.accelerator.usd_per_hour(kind, self.chips, region)


@dataclass(frozen=True)
class CostRow:
    """Hold one line of the comparison. `usd_per_hour` is for all replicas, by kind; the rest is of the asked kind.

    `saving_percent` compares the monthly bill with the source's, `saving_per_token_percent` a token's price.
    `break_even` is the share of the source pod's throughput that one replica must reach to be as cheap a token.
    """

    name: str
    label: str
    replicas: int
    usd_per_hour: dict[str, float | None]
    usd_per_month: float | None
    throughput: Throughput | None
    usd_per_million: float | None
    saving_percent: float | None
    saving_per_token_percent: float | None
    break_even: float | None
    break_even_tokens_per_s: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Overlap:
    """Hold what running source and target side by side costs, for the hours of the migration."""

    hours: float
    parts: dict[str, float]
    usd: float | None


def compare(
    rows: Sequence[tuple[Machine, int]],
    kind: str,
    region: str,
    today: dt.date,
    throughputs: Mapping[str, Throughput] | None = None,
) -> list[CostRow]:
    """Price machines with their replicas; the first row is the source that the others are compared with."""
    known = throughputs or {}
    source, source_replicas = rows[0]
    base_hour = _times(source.usd_per_hour(kind, region), source_replicas)
    base_one = source.usd_per_hour(kind, region)
    base_tokens = known.get(source.name)
    base_million = _per_million(base_one, base_tokens)
    table = []
    for machine, replicas in rows:
        one, tokens = machine.usd_per_hour(kind, region), known.get(machine.name)
        hour, million = _times(one, replicas), _per_million(one, tokens)
        share = one / base_one if machine is not source and one is not None and base_one else None
        table.append(
            CostRow(
                name=machine.name,
                label=machine.label,
                replicas=replicas,
                usd_per_hour={each: _times(machine.usd_per_hour(each, region), replicas) for each in KINDS},
                usd_per_month=_times(hour, HOURS_A_MONTH),
                throughput=tokens,
                usd_per_million=million,
                saving_percent=None if machine is source else _saving(hour, base_hour),
                saving_per_token_percent=None if machine is source else _saving(million, base_million),
                break_even=share,
                break_even_tokens_per_s=share * base_tokens.tokens_per_s if share and base_tokens else None,
                notes=tuple(_price_notes(machine.price(kind, region), kind, region, today)),
            )
        )
    return table


def overlap(
    source: tuple[Machine, int],
    target: tuple[Machine, int],
    kind: str,
    region: str,
    plan: Plan,
    *,
    provision_h: float = 0.5,
    warm_up_h: float = 1.0,
    gate_h: float = 1.0,
) -> Overlap:
    """Price the hours in which both run: provision, warm-up, gate, a bake a step, soak.

    The defaults are the slow end of what has been seen: 35 minutes for a pool that retries, up to 58 for a cold start.
    """
    parts = {
        "provision": provision_h,
        "warm up": warm_up_h,
        "gate": gate_h,
        "steps": len(plan.steps) * plan.bake_s / 3600,
        "soak": plan.soak_s / 3600,
    }
    hours = sum(parts.values())
    each = [_times(machine.usd_per_hour(kind, region), replicas) for machine, replicas in (source, target)]
    total = None if any(usd is None for usd in each) else sum(usd or 0.0 for usd in each) * hours
    return Overlap(hours, parts, total)


def published_throughputs(known: Accelerators, model: str | None) -> dict[str, Throughput]:
    """Find published figures for this very model (by its family and size), marked as assumed; mostly there are none."""
    name = re.sub(r"^meta-", "", (model or "").rstrip("/").rsplit("/", 1)[-1].lower())
    return {
        each.accelerator: Throughput(each.tokens_per_s, ASSUMED, f"{each.source}; another load than yours")
        for each in known.published
        if re.match(rf"{re.escape(each.model)}(?![\d.])", name)
    }


def contradicted_claims(known: Accelerators, region: str) -> list[str]:
    """List published claims that the price list does not bear out."""
    found = []
    for claim in known.claims:
        target = next((each for each in known.slices if each.name == claim.accelerator), None)
        listed = target.usd_per_hour(claim.kind, region) if target else None
        if listed is not None and abs(claim.usd_per_hour - listed) > _CLAIM_TOLERANCE * listed:
            truth = f"the price list says ${listed:.2f} for {claim.accelerator} {claim.kind}"
            found.append(f"{claim.source} says “{claim.text}”: {truth}")
    return found


def old_prices(machines: Iterable[Machine], region: str, today: dt.date) -> list[str]:
    """Name the accelerators with a price that is too old to rely on."""
    prices = [(each, price) for each in machines for kind in KINDS if (price := each.price(kind, region))]
    return sorted({each.accelerator.name for each, price in prices if price.usd_per_chip_hour and price.is_old(today)})


def _price_notes(price: Price | None, kind: str, region: str, today: dt.date) -> list[str]:
    if price is None or price.usd_per_chip_hour is None:
        return [f"no {kind} price for {region} was read: give it with --prices"]
    age = price.age_days(today)
    if price.is_old(today):
        when = f"{age} days ago" if age is not None else "nobody knows when"
        return [f"price read {price.read} ({when}): compare it with the list"]
    return ["price to be compared with the list"] if price.check else []


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _per_million(usd_per_hour: float | None, throughput: Throughput | None) -> float | None:
    if usd_per_hour is None or throughput is None or not throughput.tokens_per_s > 0:
        return None
    return usd_per_hour / (throughput.tokens_per_s * 3600) * 1e6


def _saving(mine: float | None, theirs: float | None) -> float | None:
    return None if mine is None or not theirs else (1 - mine / theirs) * 100
