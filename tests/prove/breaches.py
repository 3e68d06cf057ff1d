"""Measure the time from a breach seen to 100 % source observed over many breaches (tests/simulation/breaches.py)."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict

from tests.prove.fault_scenarios import quiet
from tests.prove.ledger import Ledger
from tests.simulation.breaches import LIMIT_S, Breach, Figures, breach
from tests.simulation.harness import Latency

NAME = "breaches"
BLOCK = 10


def prove(ledger: Ledger, seeds: int) -> bool:
    """Play the seeds that were not played yet; True if the 99th percentile keeps the limit and none is wrong."""
    known = ledger.get(NAME)
    played = [Breach(**each) for each in known.get("played", [])]
    blocks = [range(first, min(first + BLOCK, seeds)) for first in range(len(played), seeds, BLOCK)]
    with ProcessPoolExecutor(os.cpu_count(), initializer=quiet) as pool:
        for told in pool.map(_play, blocks):
            played += told
            ledger.put(NAME, {"played": [asdict(each) for each in played]})
    figures = Figures.of(played)
    ledger.put(
        NAME,
        {
            "played": [asdict(each) for each in played],
            "figures": asdict(figures),
            "limit_s": LIMIT_S,
            "api_latency": asdict(Latency()),
        },
    )
    print(
        f"{figures.breaches} breaches: from the breach seen to 100 % source observed, without the Gateway's delay, "
        f"p50 {figures.observed_p50_s:.2f} s, p99 {figures.observed_p99_s:.2f} s (limit {LIMIT_S:.0f}; "
        f"targets on dead machines apart: {figures.dead_p99_s or 0.0:.2f} s); route written "
        f"p99 {figures.written_p99_s:.2f} s; {figures.early} called observed before the Gateway followed, "
        f"{figures.wrong} of them wrongly, {figures.unobserved} never",
        flush=True,
    )
    return figures.observed_p99_s <= LIMIT_S and not figures.wrong and not figures.unobserved


def _play(block: range) -> list[Breach]:
    return [breach(seed) for seed in block]
