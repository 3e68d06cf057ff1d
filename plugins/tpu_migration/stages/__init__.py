"""The stages of a migration, in order. Plain Python: Airflow, the command line and the tests drive the same."""

from __future__ import annotations

from tpu_migration.stages import (
    decommission,
    deploy,
    gate,
    preflight,
    provision,
    shift,
    teardown,
    warm_up,
)
from tpu_migration.stages.base import Stage

_DAY_S = 86_400.0

# The budget of each stage; the plan's own waits (bake, soak) come on top of the shift's.
STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("preflight", preflight.step, 300.0, takes_lease=False),
        Stage("provision", provision.step, 3600.0),
        Stage("deploy", deploy.step, 600.0),
        Stage("warm_up", warm_up.step, 2 * 3600.0),
        Stage("gate", gate.step, 6 * 3600.0),
        Stage("shift", shift.step, 15 * _DAY_S, backoff_max_s=1.0),
        Stage("decommission", decommission.step, 3600.0),
        Stage("restore", teardown.step, 2 * 3600.0, gives_lease_back=True),
    )
}
