"""Plan a measurement: which blocks of load, on which arm, how fast, how long, in which order. Pure.

The first share of the live peak is what is compared with the baseline; the other shares, and the
rates that a search adds, find the capacity at the SLO.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tpu_migration.domain.gate.model import RatePoint
from tpu_migration.domain.gate.policy import Policy

Side = Literal["baseline", "candidate"]

# Fewer blocks of time than ten make the bootstrap's bounds so wide that nothing is decided. A rate of the
# search is judged by counts alone, and only must last until a queue that grows is long.
_COMPARED_BLOCKS, _SEARCHED_BLOCKS = 10, 3
_STEP_UP = 1.25  # of the search, from the highest rate that holds


@dataclass(frozen=True)
class Block:
    """One block of load, which is one Job. One in `write_every` requests is written down."""

    name: str
    side: Side
    rate_rps: float
    requests: int
    write_every: int
    seed: int


Group = tuple[Block, ...]  # runs side by side


def compared(policy: Policy, peak_rps: float, look: str) -> tuple[Group, ...]:
    """Return the groups of blocks that compare the arms, one group after the other.

    `probe`: a few per cent of extra requests through the live source, while the candidate carries
    the peak itself. `active`: both arms get the same lists at the peak, in the order A B B A, so
    that a drift of the machines or the hour falls on both. `recorded`, or no ratio: the candidate alone.
    """
    load, wanted = policy.load, policy.requests
    rate, seed = load.shares[0] * peak_rps, _seed(look)
    if policy.ratio and load.baseline == "active":
        order: tuple[tuple[str, Side, int], ...] = (
            ("a1", "baseline", 0), ("b1", "candidate", 0), ("b2", "candidate", 1), ("a2", "baseline", 1),
        )  # fmt: skip
        half = math.ceil(max(wanted.candidate, wanted.baseline) / 2)
        return tuple(
            (_block(policy, f"{name}-{look}", side, rate, half, seed + part, _COMPARED_BLOCKS // 2),)
            for name, side, part in order
        )
    candidate = _block(policy, f"load-{look}-0", "candidate", rate, wanted.candidate, seed)
    if policy.ratio and load.baseline == "probe":
        probe = _block(policy, f"baseline-{look}", "baseline", probe_rate(peak_rps), wanted.baseline, seed)
        return ((probe, candidate),)
    return ((candidate,),)


def next_rate(policy: Policy, peak_rps: float, look: str, points: Sequence[RatePoint]) -> Block | None:
    """Return the next block of the capacity search, or None when it is over; `points` are this look's so far.

    First the policy's own shares; then up from the highest rate that holds, or into the gap between
    it and the lowest that does not, until the policy's number of rates is measured.
    """
    measured = len(points)  # the first is the compared block's
    if measured < len(policy.load.shares):
        rate = policy.load.shares[measured] * peak_rps
    elif policy.capacity and policy.goodput and measured < policy.capacity.min_rates:
        least = policy.goodput.minimum
        bad = min((p.rate_rps for p in points if not p.scheduled or p.good / p.scheduled < least), default=math.inf)
        good = max((p.rate_rps for p in points if p.rate_rps < bad), default=0.0)
        rate = (good + bad) / 2 if math.isfinite(bad) else good * _STEP_UP
    else:
        return None
    seed = _seed(look) + 10 + measured  # other prompts than before: a prefix cache would answer for those
    wanted = policy.requests.candidate_min
    return _block(policy, f"load-{look}-{measured}", "candidate", rate, wanted, seed, _SEARCHED_BLOCKS)


def canary_block(policy: Policy, peak_rps: float, name: str, seed: int) -> Block:
    """Return one block through what serves users, as small as a probe of the live source."""
    return _block(policy, name, "candidate", probe_rate(peak_rps), policy.requests.candidate_min, seed)


def probe_rate(peak_rps: float) -> float:
    """Return how many extra requests a second the live source is probed with: a few per cent, at least some."""
    return max(0.05 * peak_rps, min(2.0, 0.2 * peak_rps))


def _seed(look: str) -> int:
    """Return a seed of its own for each look and each try at it; `1a` is the first try at the first look."""
    return (int(look[:-1]) * 100 + ord(look[-1])) * 100


def _block(
    policy: Policy, name: str, side: Side, rate: float, wanted: int, seed: int, blocks: int = _COMPARED_BLOCKS
) -> Block:
    """Make a block that lasts long enough, and write down no more than twice the wanted requests.

    Every k-th request of a Poisson stream, chosen before it is sent, is a fair sample of it.
    """
    sent = max(wanted, math.ceil(rate * blocks * policy.bootstrap.block_s))
    return Block(name, side, rate, sent, sent // wanted, seed)
