"""Get TPU nodes: try the plan's offers in order, and clear away what came of each that failed."""

from __future__ import annotations

from dataclasses import replace

from tpu_migration.domain.accelerators import TPU_ACCELERATOR_LABEL, TPU_TOPOLOGY_LABEL
from tpu_migration.domain.capacity import Offer, every_offer_meets
from tpu_migration.domain.node_pools import PoolSpec
from tpu_migration.domain.phases import Phase
from tpu_migration.domain.plan import Plan
from tpu_migration.errors import NoCapacityError, PermanentError
from tpu_migration.names import POOL_EXPIRES_LABEL, POOL_NAMESPACE_LABEL, POOL_RUN_LABEL, POOL_WORKLOAD_LABEL, run_hash
from tpu_migration.record import Attempt, Record
from tpu_migration.stages.base import Context, Done, Outcome, Waiting
from tpu_migration.stages.objects import target_slice
from tpu_migration.stages.pool import Request, follow, not_running, ready_nodes
from tpu_migration.stages.pool_removal import CREATE_INTENT, removed

_CLEARING_S = 900.0  # what the last attempt's removal, and Airflow, may take beyond the plan's budget
_GRACE_S = 86_400.0  # beyond what a run may take by its plan, before a pool counts as forgotten
_REMEDY = "name more zones or kinds in `capacity_plan`, try later, or ask for a reservation"


def budget_s(plan: Plan) -> float:
    """Return what the stage may take in all."""
    return plan.capacity_budget_s + _CLEARING_S


def step(ctx: Context) -> Outcome:
    """Go on with the attempt that the record tells of, or begin the next one."""
    record = ctx.expect(Phase.PLANNED)
    if record is None:
        return Done()
    if ctx.plan.tpu_pool:
        return _use(ctx, record)
    attempt = record.attempt
    if attempt is None:
        record = _begin(ctx, record)
    elif attempt.error:
        return _after_failure(ctx, record, attempt)
    return _attempt(ctx, record, ctx.plan.offers[len(record.attempts) - 1])


def _use(ctx: Context, record: Record) -> Outcome:
    """Use a pool that is there, if it has the shape that the plan needs; it is nobody's attempt and stays."""
    name, (offer, *_) = ctx.plan.tpu_pool, ctx.plan.offers
    found = ctx.pools.get(name)
    if found is None:
        raise PermanentError(f"tpu_pool={name}: the cluster has no such node pool; leave it empty to have one made")
    spec = pool_spec(ctx, name, offer)
    return not_running(found, spec) or _ready(ctx, record, spec)


def _begin(ctx: Context, record: Record) -> Record:
    number = len(record.attempts) + 1
    pool = ctx.names.pool(number)
    attempt = Attempt(str(ctx.plan.offers[number - 1]), pool, ctx.clock.now())
    intent = f"{CREATE_INTENT} {pool}"
    return ctx.update(lambda r: replace(r, attempts=(*r.attempts, attempt), pool=pool, intent=intent, operation=""))


def _attempt(ctx: Context, record: Record, offer: Offer) -> Outcome:
    spec = pool_spec(ctx, record.pool, offer)
    try:
        outcome = _follow(ctx, record, spec)
    except NoCapacityError as error:
        return _failed(ctx, record, str(error))
    left_s = _deadline(ctx, record, offer) - ctx.clock.now()
    if isinstance(outcome, Waiting) and left_s <= 0:
        taken_s = ctx.clock.now() - record.attempts[-1].began
        return _failed(ctx, record, f"not ready after {taken_s:.0f} s: {outcome.why}")
    return outcome


def _follow(ctx: Context, record: Record, spec: PoolSpec) -> Outcome:
    """Have the pool made, then wait for its nodes; NoCapacityError once the offer came to nothing."""
    request = Request(record.intent.startswith(CREATE_INTENT), record.operation)
    offered = f"{spec.node_count} x {spec.machine_type}, {record.attempts[-1].offer}"

    def remember(operation: str) -> None:
        ctx.update(lambda r: replace(r, operation=operation, intent=""))

    return follow(ctx.pools, spec, request, remember, offered) or _ready(ctx, record, spec)


def _ready(ctx: Context, record: Record, spec: PoolSpec) -> Outcome:
    wanted = target_slice(ctx.plan.target)
    labels = {TPU_ACCELERATOR_LABEL: wanted.accelerator_label, TPU_TOPOLOGY_LABEL: wanted.topology}
    nodes = ready_nodes(ctx.kube, spec, wanted.resource, wanted.chips, labels)
    if isinstance(nodes, Waiting):
        return nodes
    now = ctx.clock.now()

    def done(r: Record) -> Record:
        r = r.with_attempt(ended=now) if r.attempts else r
        return replace(r.moved_to(Phase.PROVISIONED), pool=spec.name, operation="", intent="")

    ctx.update(done)
    return Done({"pool": spec.name, "nodes": nodes, "attempts": len(record.attempts)})


def _failed(ctx: Context, record: Record, error: str) -> Outcome:
    """Write an attempt's failure down; go on with the next one if there is one that may do better."""
    record = ctx.update(lambda r: r.with_attempt(error=error))
    ctx.log("%s: %s", record.attempts[-1].offer, error)
    if not _may_go_on(ctx, record):
        raise _nothing_to_be_had(ctx, record)  # the teardown clears this attempt away
    return Waiting(0, f"{record.attempts[-1].offer}: {error}")


def _after_failure(ctx: Context, record: Record, attempt: Attempt) -> Outcome:
    """Clear an attempt away, so that two pools never are there, then begin the next."""
    if not _may_go_on(ctx, record):
        raise _nothing_to_be_had(ctx, record)
    if (waiting := removed(ctx, record)) is not None:
        return replace(waiting, why=f"{attempt.offer} came to nothing ({attempt.error}); {waiting.why}")
    if not attempt.ended:
        now = ctx.clock.now()
        record = ctx.update(lambda r: r.with_attempt(ended=now))
    _begin(ctx, record)
    return Waiting(0, f"trying {ctx.plan.offers[len(record.attempts)]}")


def _may_go_on(ctx: Context, record: Record) -> bool:
    error = record.attempts[-1].error
    left = len(record.attempts) < len(ctx.plan.offers) and _end(ctx, record) > ctx.clock.now()
    return left and not every_offer_meets(error)


def _nothing_to_be_had(ctx: Context, record: Record) -> PermanentError:
    told = "; ".join(f"{each.offer} (node pool {each.pool}): {each.error}" for each in record.attempts)
    untried = [str(each) for each in ctx.plan.offers[len(record.attempts) :]]
    rest = f". Not tried: {', '.join(untried)}" if untried else ""
    return PermanentError(f"no TPU nodes are to be had: {told}{rest}; {_REMEDY}")


def _deadline(ctx: Context, record: Record, offer: Offer) -> float:
    return min(record.attempts[-1].began + offer.budget_s, _end(ctx, record))


def _end(ctx: Context, record: Record) -> float:
    return record.attempts[0].began + ctx.plan.capacity_budget_s


def pool_spec(ctx: Context, name: str, offer: Offer) -> PoolSpec:
    """Return the node pool to make for an offer. Its labels say whose it is, and when it is forgotten."""
    plan = ctx.plan
    expires = ctx.clock.now() + _longest_run_s(plan)
    return PoolSpec(
        name=name,
        machine_type=target_slice(plan.target).machine_type,
        node_count=plan.target_replicas,
        zone=offer.zone,
        labels={
            POOL_RUN_LABEL: run_hash(ctx.run_id),
            POOL_NAMESPACE_LABEL: plan.namespace,
            POOL_WORKLOAD_LABEL: plan.workload,
            POOL_EXPIRES_LABEL: f"{expires:.0f}",
        },
        spot=offer.kind == "spot",
        reservation=offer.reservation,
        max_nodes=plan.target_max_nodes,
        service_account=plan.node_service_account,
    )


def _longest_run_s(plan: Plan) -> float:
    from tpu_migration.stages import STAGES  # it lists this stage, too

    return sum(stage.budget_s(plan) for stage in STAGES.values()) + _GRACE_S
