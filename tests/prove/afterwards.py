"""Play what comes after a migration through the real scheduler (tests/e2e/afterwards.py): too long for `make test`."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.prove.ledger import Ledger

NAME = "afterwards"


def prove(ledger: Ledger) -> bool:
    """Play it unless it was played already; True if all that must come of it did."""
    if ledger.get(NAME).get("holds"):
        print("afterwards: proven already")
        return True
    began = time.monotonic()
    argv = [sys.executable, "-m", "pytest", "tests/e2e/test_afterwards.py", "-v", "-m", "afterwards"]
    holds = subprocess.run(argv, check=False).returncode == 0
    ledger.put(NAME, {"holds": holds, "seconds": round(time.monotonic() - began)})
    return holds
