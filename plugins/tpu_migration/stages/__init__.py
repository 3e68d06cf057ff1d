"""The stages of a migration, in order. Plain Python: Airflow, the command line and the tests drive the same."""

from __future__ import annotations

from collections.abc import Callable

from tpu_migration.domain.plan import Plan
from tpu_migration.names import canary_lease
from tpu_migration.stages import (
    breach,
    canary,
    decommission,
    deploy,
    gate,
    gpu_fallback,
    preflight,
    provision,
    shift,
    teardown,
    warm_up,
)
from tpu_migration.stages.approval import DECOMMISSION, SHIFT
from tpu_migration.stages.base import Stage

_HOUR_S = 3600.0


def _within(seconds: float) -> Callable[[Plan], float]:
    return lambda plan: seconds


def _shift_budget_s(plan: Plan) -> float:
    """The plan's own waits, and an hour for the Gateway to follow each step."""
    return _approval_s(plan, SHIFT) + len(plan.steps) * (plan.bake_s + _HOUR_S) + plan.soak_s


def _decommission_budget_s(plan: Plan) -> float:
    return _approval_s(plan, DECOMMISSION) + _HOUR_S


def _approval_s(plan: Plan, what: str) -> float:
    return plan.approval_timeout_s if what in plan.approvals else 0.0


# A migration's stages, in order; the teardown last.
STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("preflight", preflight.step, _within(0.5 * _HOUR_S), takes_lease=False),
        Stage("provision", provision.step, provision.budget_s),
        Stage("deploy", deploy.step, _within(_HOUR_S / 6)),
        Stage("warm_up", warm_up.step, _within(2 * _HOUR_S)),
        Stage("gate", gate.step, _within(6 * _HOUR_S)),
        Stage("shift", shift.step, _shift_budget_s, give_up=breach.send_home, watches_users=True),
        Stage("decommission", decommission.step, _decommission_budget_s),
        Stage("restore", teardown.step, _within(2 * _HOUR_S), gives_lease_back=True),
    )
}

# What a DAG of its own runs.
GPU_FALLBACK = Stage("gpu_fallback", gpu_fallback.step, _within(6 * _HOUR_S), takes_lease=False)

CANARY = Stage(
    "canary",
    canary.step,
    _within(canary.BUDGET_S),
    gives_lease_back=True,
    watches_users=True,
    lease_name=canary_lease,
)
_APART = {stage.name: stage for stage in (GPU_FALLBACK, CANARY)}


def stage_named(name: str) -> Stage:
    """Return a stage by the name of its task; KeyError if there is none."""
    return _APART[name] if name in _APART else STAGES[name]
