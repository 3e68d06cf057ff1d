"""Say where TPUs are to be had: an ordered list of offers, each a kind of capacity in a zone; pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = ("on-demand", "spot", "reservation")
MAX_OFFERS = 20
# Kinds that GKE has and this program does not make pools for; asked for, they are refused before anything is made.
NOT_YET = ("autopilot", "compute-class", "flex-start", "dws", "queued-provisioning")

_OFFER = re.compile(
    r"(?P<kind>[a-z-]+)(:(?P<reservation>[a-z0-9][-a-z0-9]{0,61}))?@(?P<zone>[a-z0-9-]+?)(=(?P<seconds>\d+))?"
)
_ZONE = re.compile(r"[a-z]+(-[a-z]+)+[0-9]+-[a-z]")
# What the next offer may mend: stock, quota (one each for a kind and a region), a zone without the machine type.
# Texts: GKE operations and node pool conditions (GCE_STOCKOUT, GCE_QUOTA_EXCEEDED), Compute Engine errors.
_SCARCE = re.compile(
    r"EXHAUSTED|STOCKOUT|quota|does not have enough resources|lack of capacity|out of resources|reservation"
    r"|does not exist in zone",
    re.IGNORECASE,
)
_NEVER = re.compile(r"IP_SPACE_EXHAUSTED", re.IGNORECASE)  # every zone of the subnetwork shares the range


class CapacityError(ValueError):
    """Say what is wrong with an entry of a capacity plan, and how it is written."""


@dataclass(frozen=True)
class Offer:
    """A kind of capacity in a zone, and how long it may take to turn into ready nodes."""

    kind: str  # one of KINDS
    zone: str
    budget_s: float
    reservation: str = ""  # its name, of that kind alone

    def __str__(self) -> str:
        return f"{self.kind}{f' {self.reservation}' if self.reservation else ''} in {self.zone}"


def parse_offers(entries: Sequence[str], budget_s: float) -> tuple[Offer, ...]:
    """Read entries `KIND@ZONE[=SECONDS]`, KIND being on-demand, spot or reservation:NAME.

    An entry without seconds gets an equal share of `budget_s`. Raises CapacityError with every problem.
    """
    problems, offers = [], []
    if len(entries) > MAX_OFFERS:
        problems.append(f"has {len(entries)} entries, more than {MAX_OFFERS}")
    for entry in entries:
        try:
            offers.append(_parse(entry, budget_s / len(entries)))
        except CapacityError as error:
            problems.append(str(error))
    if problems:
        raise CapacityError("; ".join(problems))
    return tuple(offers)


def _parse(entry: str, share_s: float) -> Offer:
    found = _OFFER.fullmatch(entry)
    if found is None or not _ZONE.fullmatch(found["zone"]):
        raise CapacityError(
            f"{entry!r} is not KIND@ZONE[=SECONDS], for example on-demand@us-west4-a or "
            "reservation:my-res@us-west4-a=600"
        )
    kind, reservation = found["kind"], found["reservation"] or ""
    if kind in NOT_YET:
        raise CapacityError(f"{entry!r}: {not_yet(kind)}")
    if kind not in KINDS:
        raise CapacityError(f"{entry!r}: the kind must be one of {', '.join(KINDS)}")
    if (kind == "reservation") != bool(reservation):
        raise CapacityError(f"{entry!r}: a reservation is written reservation:NAME@ZONE, and only that kind has a name")
    return Offer(kind, found["zone"], float(found["seconds"] or share_s), reservation)


def not_yet(kind: str) -> str:
    """Say that capacity of a kind is not supported."""
    return f"{kind} capacity is not supported yet; use one of {', '.join(KINDS)}"


def is_scarcity(error: str) -> bool:
    """Tell whether a refusal is of this kind or zone: another offer may not meet it."""
    return bool(_SCARCE.search(error))


def every_offer_meets(error: str) -> bool:
    """Tell an error that no other kind and no other zone mends."""
    return bool(_NEVER.search(error))
