"""Run the exhaustive proofs: `make prove [SEEDS=n]`. Figures go to out/prove.json, where an interrupted run goes on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.prove import fault_scenarios
from tests.prove.ledger import Ledger


def main() -> int:
    """Run what is not proven yet; exit 1 if anything is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.prove", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="drawn migrations (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/prove.json"))
    options = parser.parse_args()
    ledger = Ledger(options.out)
    return 0 if fault_scenarios.prove(ledger, options.seeds) else 1


if __name__ == "__main__":
    sys.exit(main())
