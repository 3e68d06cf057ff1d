"""Write the sandbox's faults, and how a run ends under each, as a page of the reference."""

from __future__ import annotations

import math

from sandbox.fault_table import TABLE
from tests.docs.dataclass_tables import as_json
from tests.docs.markdown import code, page, table
from tests.simulation.fault_matrix import STAGES, foretold


def faults() -> str:
    """The faults of the sandbox, and how a run ends under each by the stage that it strikes."""
    text = page(
        "Faults of the sandbox",
        "sandbox/fault_table.py and tests/simulation/fault_matrix.py",
        """\
`make demo FAULT=NAME` plays a migration under one; `python -m sandbox fault NAME` switches it on in one that is up
([how-to](../how-to/rehearse.md)). *From*: the phase in which the demo switches it on; a dash: before users come.
*Ends*: how the run must end then, and within what time. *Hurts*: requests that fail within so many seconds are the
fault's own work, such as the streams of a machine that dies; ∞: as long as it is on.

""",
    )
    rows = []
    for fault in TABLE:
        hurts = "∞" if math.isinf(fault.hurts_s) else f"{fault.hurts_s:g} s"
        options = ", ".join(code(f"{name}={as_json(value)}") for name, value in fault.options.items())
        within = f"{fault.takes_s / 60:g} min"
        rows.append((code(fault.name), fault.what, options, fault.begins or "–", fault.ends, within, hurts))
    text += table(["fault", "what it does", "options and defaults", "from", "ends", "within", "hurts"], rows)
    text += """
- `machine`: only machines whose type begins so. `zone`, `capacity`: only there, only of that kind; null: all, but
  reservations must be named.
- `workload`: only pods (or routes) whose name begins so; empty: all.
- `user`: only the Kubernetes API's users whose name begins so. `airflow@` is the product,
  `system:serviceaccount:inference:tpu-migration-guard` the guard, `admin` a person, `system:sandbox` the sandbox.
- `seed` decides what is drawn: the same seed takes the same machine, or refuses the same requests in their order.
- `returns_after_s` null: the machine stays dead, even when the fault is switched off.

## By the stage that it strikes

The fault begins with the first call of the stage, in virtual time (`tests/simulation/fault_matrix.py`; `make prove`
plays every cell, `make test` a sample). What is not here is ridden out, or comes too late to strike: the migration ends
well. The reason is a regular expression; [the runbook](../runbook.md) has what to do.

"""
    stages = [stage for stage in STAGES if stage != "restore"]
    rows = []
    for fault in sorted(TABLE, key=lambda each: each.name):
        cells: dict[tuple[str, str], list[str]] = {}
        for stage in stages:
            told = foretold(fault.name, stage)
            cells.setdefault((str(told.ends), told.reason), []).append(stage)
        for (ends, reason), struck in cells.items():
            if reason:
                rows.append((code(fault.name), ", ".join(struck), ends, code(reason)))
        if all(not reason for _, reason in cells):
            rows.append((code(fault.name), "any", "migrated", "–"))
    text += table(["fault", "strikes in", "ends", "reason"], rows)
    return text
