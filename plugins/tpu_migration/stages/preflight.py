"""Look at everything before anything is made; refuse with one message that names each thing and its remedy."""

from __future__ import annotations

from collections.abc import Sequence

from tpu_migration.domain import routing
from tpu_migration.domain.masking import masked
from tpu_migration.domain.phases import AFTER_COMMIT, Phase
from tpu_migration.domain.preflight import Cluster, Report
from tpu_migration.errors import NotHolderError, PermanentError
from tpu_migration.record import Record
from tpu_migration.report.preflight_page import render
from tpu_migration.snapshot import Snapshots
from tpu_migration.stages.base import Context, Done, Outcome
from tpu_migration.stages.heartbeat import guard_heartbeat
from tpu_migration.stages.left_behind import end_what_was_left_behind, send_home, take_lease
from tpu_migration.stages.survey import Seen, Survey

_PAGE_BYTES = 8192  # of the task's result; the log has it whole


def step(ctx: Context) -> Outcome:
    """Check the plan against the live cluster, then write the record and the snapshot."""
    existing = ctx.records.read()
    if existing is not None and existing.run_id == ctx.run_id:
        return _over(ctx, existing)
    if existing is not None and existing.active:
        if existing.phase is not Phase.FALLING_BACK:
            _refuse_a_second_run(ctx, existing)
        return end_what_was_left_behind(ctx, existing)
    survey = Survey(ctx)
    cluster = survey.attempt("cluster", f"cluster {ctx.plan.cluster}", ctx.pools.cluster)
    if (waiting := survey.attempt("guard", "guard", lambda: guard_heartbeat(ctx, early_look=True))) is not None:
        return waiting
    report, seen = survey.look_around(existing, cluster)
    page = masked(render(report, ctx.plan))
    if ctx.memory.get("page") != page:  # a step that waits for a dead lease comes here again
        ctx.log("%s", page)
        ctx.memory["page"] = page
    if seen is None:
        raise PermanentError(f"{ctx.plan.workload} cannot be migrated: " + " | ".join(map(str, report.blockers)))
    if existing is not None and existing.stands_unjudged:
        return send_home(ctx, existing, f"run {ctx.run_id}", "a migration begins, and makes a target of its own")
    above = max(existing.epoch if existing else 0, routing.epoch_of(seen.route, ctx.plan.workload))
    epoch = Snapshots(ctx.kube, ctx.plan.namespace, ctx.plan.workload).next_epoch(ctx.run_id, above)
    return _begin(ctx, report, seen, epoch, page)


def look_only(ctx: Context, cluster: Cluster | None, unchecked: Sequence[str] = ()) -> Report:
    """Make every check of this stage, and no step of it: for a person who wants to know beforehand."""
    existing = ctx.records.read()
    survey = Survey(ctx, unchecked)
    if existing is not None and existing.active:
        survey.attempt("lock", f"record of {ctx.plan.workload}", lambda: _refuse_a_second_run(ctx, existing))
    if waiting := survey.attempt("guard", "guard", lambda: guard_heartbeat(ctx, early_look=True)):
        survey.leave_out(f"guard: {waiting.why}")
    return survey.look_around(existing, cluster)[0]


def _begin(ctx: Context, report: Report, seen: Seen, epoch: int, page: str) -> Outcome:
    plan, source, snapshot = ctx.plan, seen.source, seen.snapshot
    if (waiting := take_lease(ctx)) is not None:
        return waiting
    Snapshots(ctx.kube, plan.namespace, plan.workload).take(epoch, ctx.run_id, snapshot, source)
    ctx.records.begin(
        Record(
            workload=plan.workload,
            namespace=plan.namespace,
            run_id=ctx.run_id,
            epoch=epoch,
            phase=Phase.PLANNED,
            plan=plan.to_dict(),
            plan_hash=plan.hash,
            source=source,
            source_capacity=source.replicas,
            target=ctx.names.target,
            pool=plan.tpu_pool or ctx.names.pool(),
            notes={"peak": seen.peak.note(), "gaps": list(seen.gaps)},
        )
    )
    ctx.epoch = epoch
    ctx.log(
        "%s: %d replica(s) of %s on %s, to %s",
        plan.workload,
        source.replicas,
        source.model,
        source.accelerator,
        plan.target,
    )
    codes = [each.code for each in report.findings]
    return Done(
        {
            "source": source.accelerator,
            "replicas": source.replicas,
            "model": source.model,
            "epoch": epoch,
            "findings": codes,
            "page": page[:_PAGE_BYTES],
        }
    )


def _over(ctx: Context, record: Record) -> Outcome:
    """Say that this run has begun; note it, unless a later task of the run is at work on the record already."""
    ctx.expect(Phase.PLANNED)
    try:
        ctx.lease.acquire(begins_the_run=True)
    except NotHolderError as error:
        ctx.log("%s", error)
        ctx.epoch = None
    return Done({"source": record.source.accelerator})


def _refuse_a_second_run(ctx: Context, existing: Record) -> None:
    if existing.phase in AFTER_COMMIT:
        raise PermanentError(
            f"{ctx.plan.workload} is {existing.phase} by run {existing.run_id}: users are on TPU and the GPUs are "
            "being given up; clear the task `decommission` of that run to go on; nothing was changed by this run"
        )
    raise PermanentError(
        f"{ctx.plan.workload} is being migrated by run {existing.run_id} (phase {existing.phase}): wait for its "
        f"end, or send users home with `tpu-migration restore {ctx.plan.workload}` and start again; nothing was "
        "changed by this run"
    )
