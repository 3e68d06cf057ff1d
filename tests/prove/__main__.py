"""Run the exhaustive proofs: `make prove [SEEDS=n]`. Figures go to out/prove.json, where an interrupted run goes on."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from tests.prove import (
    afterwards,
    breaches,
    celery_stack,
    coverage,
    crash_points,
    deferrals,
    fault_matrix,
    fault_scenarios,
    live,
    operating_characteristics,
)
from tests.prove.ledger import Ledger


def main() -> int:
    """Run what is not proven yet; exit 1 if anything is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.prove", description=__doc__)
    proofs = {
        coverage.NAME: lambda: coverage.prove(ledger),
        operating_characteristics.NAME: lambda: operating_characteristics.prove(ledger, options.migrations),
        crash_points.NAME: lambda: crash_points.prove(ledger),
        breaches.NAME: lambda: breaches.prove(ledger, options.breaches),
        fault_matrix.NAME: lambda: fault_matrix.prove(ledger),
        deferrals.NAME: lambda: deferrals.prove(ledger, options.fleets or deferrals.FLEETS),
        celery_stack.NAME: lambda: celery_stack.prove(ledger),
        fault_scenarios.NAME: lambda: fault_scenarios.prove(ledger, options.seeds),
        afterwards.NAME: lambda: afterwards.prove(ledger),
        live.NAME: lambda: live.prove(ledger, options.streams),
    }
    parser.add_argument("names", nargs="*", help=f"proofs to run, of {', '.join(proofs)} (default: all)")
    parser.add_argument("--seeds", type=int, default=10_000, help="drawn migrations (default: %(default)s)")
    parser.add_argument(
        "--migrations", type=int, default=1_000, help="migrations to judge for each point (default: %(default)s)"
    )
    parser.add_argument("--streams", type=int, default=20_000, help="long streams to carry (default: %(default)s)")
    parser.add_argument("--breaches", type=int, default=1_000, help="breaches to measure (default: %(default)s)")
    parser.add_argument(
        "--fleet",
        action="append",
        type=int,
        nargs=2,
        metavar=("DEFERRED", "SHIFTING"),
        dest="fleets",
        help=f"migrations on one triggerer, and how many of them shift (default: {deferrals.FLEETS})",
    )
    parser.add_argument("--out", type=Path, default=Path("out/prove.json"))
    options = parser.parse_args()
    if unknown := set(options.names) - proofs.keys():
        parser.error(f"no proof {', '.join(sorted(unknown))}; there are {', '.join(proofs)}")
    ledger = Ledger(options.out)
    return 0 if all([_holds(name, proofs[name]) for name in options.names or proofs]) else 1


def _holds(name: str, prove: Callable[[], bool]) -> bool:
    """Run one proof; one that could not be run does not keep the others from theirs."""
    try:
        return prove()
    except Exception:
        logging.getLogger(__name__).exception("%s: BROKEN: it could not be run to its end", name)
        return False


if __name__ == "__main__":
    sys.exit(main())
