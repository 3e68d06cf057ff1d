"""Build the run of one stage from what Airflow gives: plain values that survive a restart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tpu_migration.clock import SystemClock
from tpu_migration.domain.plan import Plan, PlanError
from tpu_migration.errors import PermanentError
from tpu_migration.hooks.migration import MigrationHook
from tpu_migration.hooks.notices import tell
from tpu_migration.hooks.pool import side_by_side
from tpu_migration.lease import Holder
from tpu_migration.stages import stage_named
from tpu_migration.stages.base import Context
from tpu_migration.stages.run import StageRun

# Parameters that are no part of the plan: why a run was started, whether people are asked first, and whether GPUs are
# proven before users come back to them.
WHY, ASK, PROVE = "why", "ask", "prove"


def plan_from(params: Mapping[str, Any]) -> Plan:
    """Return the plan; PermanentError with every problem of the parameters."""
    try:
        return Plan.from_params(params)
    except PlanError as error:
        raise PermanentError(str(error)) from error


def stage_run(stage: str, params: Mapping[str, Any], run_id: str, attempt: int) -> StageRun:
    """Return a stage ready to be stepped, its clients made from the plan's connection."""
    found = stage_named(stage)
    plan = plan_from({key: value for key, value in params.items() if key not in (WHY, ASK, PROVE)})
    hook = MigrationHook(plan)
    context = Context.create(
        plan,
        Holder(run_id, stage, attempt),
        hook.kubernetes(),
        hook.node_pools(),
        SystemClock(),
        together=side_by_side,
        monitoring=hook.monitoring(),
        permissions=hook.permissions(),
        tell=tell,
        why=str(params.get(WHY) or ""),
        proves_gpus=bool(params.get(PROVE, True)),
        lease_name=found.lease_name(plan.workload) if found.lease_name else "",
    )
    return StageRun(found, context)
