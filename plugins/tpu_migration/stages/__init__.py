"""The stages of a migration, in order. Plain Python: Airflow, the command line and the tests drive the same."""

from __future__ import annotations

from collections.abc import Callable

from tpu_migration.domain.plan import Plan
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

_HOUR_S = 3600.0


def _within(seconds: float) -> Callable[[Plan], float]:
    return lambda plan: seconds


def _shift_budget_s(plan: Plan) -> float:
    """The plan's own waits, and an hour for the Gateway to follow each step."""
    return len(plan.steps) * (plan.bake_s + _HOUR_S) + plan.soak_s


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("preflight", preflight.step, _within(0.5 * _HOUR_S), takes_lease=False),
        Stage("provision", provision.step, _within(_HOUR_S)),
        Stage("deploy", deploy.step, _within(_HOUR_S / 6)),
        Stage("warm_up", warm_up.step, _within(2 * _HOUR_S)),
        Stage("gate", gate.step, _within(6 * _HOUR_S)),
        Stage("shift", shift.step, _shift_budget_s, give_up=shift.send_home, watches_users=True),
        Stage("decommission", decommission.step, _within(_HOUR_S)),
        Stage("restore", teardown.step, _within(2 * _HOUR_S), gives_lease_back=True),
    )
}
