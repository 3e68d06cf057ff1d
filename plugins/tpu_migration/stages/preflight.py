"""Look at everything before anything is made; refuse with one message that names thing and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Object
from tpu_migration.clients.vllm import Vllm
from tpu_migration.domain import routing
from tpu_migration.domain.phases import AFTER_COMMIT, Phase
from tpu_migration.domain.preflight import Cluster, Report, examine
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.record import Record, Source
from tpu_migration.report.preflight_page import render
from tpu_migration.resources import policy
from tpu_migration.snapshot import Snapshots
from tpu_migration.stages.base import Context, Done, Outcome, Waiting
from tpu_migration.stages.find_source import find_source
from tpu_migration.stages.heartbeat import guard_heartbeat
from tpu_migration.stages.left_behind import end_what_was_left_behind, wait_for_dead_lease
from tpu_migration.stages.objects import (
    config_maps_of,
    pods_of,
    refuse_foreign_target,
    source_objects,
    translated,
)
from tpu_migration.stages.observe_source import NEVER_CHECKED, observe

_PATIENCE_S = 30.0  # with a pod or an API server that does not answer at once
_PAGE_BYTES = 8192  # of the task's result; the log has it whole
RIGHTS = (
    ("get", k8s.PODS, ""),
    ("get", k8s.PODS, "log"),
    ("get", k8s.PODS, "proxy"),
    ("create", k8s.PODS, "proxy"),
    ("patch", k8s.DEPLOYMENTS, ""),
    ("delete", k8s.DEPLOYMENTS, ""),
    ("patch", k8s.DEPLOYMENTS, "scale"),
    ("patch", k8s.SERVICES, ""),
    ("update", k8s.HTTP_ROUTES, ""),
    ("create", k8s.JOBS, ""),
    ("create", k8s.CONFIG_MAPS, ""),
    ("update", k8s.CONFIG_MAPS, ""),
    ("get", k8s.SECRETS, ""),
    ("create", k8s.SECRETS, ""),
    ("get", k8s.PVCS, ""),
    ("list", k8s.VPAS, ""),
    ("update", k8s.LEASES, ""),
    ("patch", k8s.HPAS, ""),
    ("patch", k8s.PDBS, ""),
)


def step(ctx: Context) -> Outcome:
    """Check the plan against the live cluster, then write the record and the snapshot."""
    existing = ctx.records.read()
    if existing is not None and existing.run_id == ctx.run_id:
        ctx.expect(Phase.PLANNED)
        ctx.lease.acquire()
        return Done({"source": existing.source.accelerator})
    if existing is not None and existing.active:
        if existing.phase is not Phase.FALLING_BACK:
            _refuse_a_second_run(ctx, existing)
        return end_what_was_left_behind(ctx, existing)
    plan = ctx.plan
    _refuse_a_thin_plan(ctx)
    cluster = ctx.pools.cluster()
    if (waiting := guard_heartbeat(ctx, early_look=True)) is not None:
        return waiting
    found = look_around(ctx, existing, cluster)
    page = render(found.report, plan)
    if ctx.memory.get("page") != page:  # a step that waits for a dead lease comes here again
        ctx.log("%s", page)
        ctx.memory["page"] = page
    if blockers := found.report.blockers:
        raise PermanentError(f"{plan.workload} cannot be migrated: " + " | ".join(map(str, blockers)))
    above = max(existing.epoch if existing else 0, routing.epoch_of(found.route, plan.workload))
    epoch = Snapshots(ctx.kube, plan.namespace, plan.workload).next_epoch(ctx.run_id, above)
    return _begin(ctx, found, epoch, page)


@dataclass(frozen=True)
class Look:
    """Hold all that a look at the live workload found."""

    source: Source
    snapshot: list[Object]
    route: Object
    report: Report


def look_only(ctx: Context, cluster: Cluster | None, unchecked: Sequence[str] = ()) -> Look:
    """Make every check of this stage, and no step of it: for a person who wants to know beforehand."""
    existing = ctx.records.read()
    if existing is not None and existing.active:
        _refuse_a_second_run(ctx, existing)
    _refuse_a_thin_plan(ctx)
    unseen = guard_heartbeat(ctx, early_look=True)
    return look_around(ctx, existing, cluster, [*unchecked, *([f"guard: {unseen.why}"] if unseen else [])])


def look_around(ctx: Context, existing: Record | None, cluster: Cluster | None, unchecked: Sequence[str] = ()) -> Look:
    """Look at the workload and all around it; changes nothing.

    Raises PermanentError for the first thing without which the rest cannot be judged.
    """
    plan = ctx.plan
    deployment = _deployment(ctx)
    refuse_foreign_target(ctx)
    objects = source_objects(ctx.kube, plan.namespace, deployment)
    config = config_maps_of(ctx.kube, plan.namespace, deployment)
    source, snapshot, route = find_source(ctx, deployment, objects, config, existing)
    _check_rights(ctx)
    source = replace(source, max_model_len=_check_pods(ctx, deployment, source))
    if blockers := translated(ctx, [deployment, *objects], config, source.max_model_len).blockers:
        told = "; ".join(f"{each.path}: {each.message} {each.remedy}".strip() for each in blockers)
        raise PermanentError(f"{plan.workload} cannot run on {plan.target}: {told}")
    observed = observe(ctx, deployment, objects, config, route, source, cluster)
    return Look(source, snapshot, route, examine(observed, [*unchecked, *NEVER_CHECKED]))


def _begin(ctx: Context, found: Look, epoch: int, page: str) -> Outcome:
    plan, source, snapshot = ctx.plan, found.source, found.snapshot
    if (waiting := _take_lease(ctx)) is not None:
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
            pool=ctx.names.pool,
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
    codes = [each.code for each in found.report.findings]
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


def _take_lease(ctx: Context) -> Waiting | None:
    """Take the lease; one that a run left behind which never wrote a record is taken once it surely is dead."""
    holder = ctx.lease.other_holder()
    if holder is not None and (waiting := wait_for_dead_lease(ctx, holder.run_id)) is not None:
        return waiting
    ctx.lease.acquire(from_the_dead=holder is not None)
    return None


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


def _refuse_a_thin_plan(ctx: Context) -> None:
    plan = ctx.plan
    if plan.peak_rps <= 0:
        raise PermanentError(
            "peak_rps is not given: a migration in a quiet hour proves nothing about the peak; give the workload's "
            "highest rate of the last weeks in requests a second"
        )
    if plan.target_replicas < 2 and not plan.accept_single_replica:
        raise PermanentError(
            "target_replicas=1 leaves one TPU replica, which restarts in tens of minutes; give 2, or set "
            "accept_single_replica"
        )
    policy(plan.policy)


def _deployment(ctx: Context) -> Object:
    plan = ctx.plan
    found = ctx.kube.get(k8s.DEPLOYMENTS, plan.workload, plan.namespace)
    if found is None:
        there = sorted(each["metadata"]["name"] for each in ctx.kube.list(k8s.DEPLOYMENTS, plan.namespace))
        raise PermanentError(
            f"workload={plan.workload!r}: there is no such Deployment in namespace {plan.namespace}; "
            f"there are: {', '.join(there) or 'none'}"
        )
    ready = (found.get("status") or {}).get("readyReplicas", 0)
    wanted = found["spec"].get("replicas", 1)
    if not wanted or ready < wanted:
        raise PermanentError(
            f"Deployment {plan.workload} has {ready} of {wanted} replicas ready: the way back must be sound "
            "before anything moves; wait until it is, or mend it"
        )
    return found


def _check_rights(ctx: Context) -> None:
    missing = [
        f"{verb} {resource.plural}{'/' + sub if sub else ''}"
        for (verb, resource, sub), allowed in zip(
            RIGHTS,
            ctx.together(
                [
                    lambda v=verb, r=resource, s=sub: ctx.kube.may(v, r, ctx.plan.namespace, s)  # type: ignore[misc]
                    for verb, resource, sub in RIGHTS
                ]
            ),
            strict=True,
        )
        if not allowed
    ]
    if missing:
        raise PermanentError(
            f"the service account lacks rights in namespace {ctx.plan.namespace}: {', '.join(missing)}; "
            "apply include/manifests/rbac.yaml"
        )


def _check_pods(ctx: Context, deployment: Object, source: Source) -> int | None:
    """Prove that the pod proxy reaches vLLM and that it serves the names that clients use.

    Returns the context length in tokens that the live servers report.
    """
    longest: int | None = None
    vllm = Vllm(ctx.kube, ctx.plan.namespace, source.port)
    for pod in pods_of(ctx.kube, ctx.plan.namespace, deployment):
        name = pod["metadata"]["name"]
        try:
            served = vllm.models(name)
            vllm.metrics(name)
        except TransientError as error:
            since = ctx.memory.setdefault("unanswered_since", ctx.clock.monotonic())
            if ctx.clock.monotonic() - since < _PATIENCE_S:
                raise
            raise PermanentError(
                f"vLLM on pod {name} port {source.port} does not answer through the API server's pod proxy: {error}; "
                "check the port and that the cluster allows the proxy"
            ) from error
        ctx.memory.pop("unanswered_since", None)
        lost = set(source.served_names) - set(served)
        if lost:
            raise PermanentError(
                f"pod {name} serves {sorted(served)}, but its arguments say {sorted(source.served_names)}: "
                "the Deployment was edited and not rolled out"
            )
        longest = served[source.served_names[0]] or longest
    return longest or source.max_model_len
