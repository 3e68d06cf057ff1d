"""Look again at what was proven, beside its users: the gate's load at a few per cent of the peak, and what has changed.

It touches nothing that users depend on, and holds a lease of its own: whoever moves users never waits for it. Each
step looks first whether somebody does, and then it is gone with its Jobs.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from tpu_migration.bench.answers import MOST_ANSWERS
from tpu_migration.bench.results import client_health
from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clock import iso
from tpu_migration.domain.canary import FAIL, KEPT_UNITS, PASS, UNDECIDED, WARN, Look, blind_for, concluded, settled
from tpu_migration.domain.gate import Check, Policy, canary_block, judge_answers, judge_canary
from tpu_migration.domain.phases import AFTER_COMMIT
from tpu_migration.domain.plan import Plan
from tpu_migration.errors import PermanentError
from tpu_migration.history import Canary, Figure, Histories, History
from tpu_migration.names import run_hash
from tpu_migration.notices import Notice
from tpu_migration.record import Record
from tpu_migration.resources import policy as policy_named
from tpu_migration.restore import observed_percent, ready_endpoints
from tpu_migration.stages.around_canary import changes
from tpu_migration.stages.base import Context, Done, Failed, Outcome, Waiting
from tpu_migration.stages.cleanup import remove_jobs
from tpu_migration.stages.gate_blocks import block_arguments
from tpu_migration.stages.kept_answers import compare, known_answers
from tpu_migration.stages.live_users import UsersSufferError, UsersUnseenError, forget, watch
from tpu_migration.stages.load import run_block
from tpu_migration.stages.peak import peak_rps

_QUIET_S = 60.0  # users alone, before each load
_POLL_S = 5.0
_APART_S = 120.0  # from a failure to the look that confirms it: a burst, or a Gateway's hiccup, is over by then
_LEASE_IS_OLD_S = 600.0  # a worker that has not renewed for so long is dead, whatever both clocks say
_LONGEST_LOAD_S = 3600.0
_KINDS = {PASS: "success", WARN: "warning", UNDECIDED: "warning"}  # of notices; a failure is told as every stage's
BUDGET_S = 4 * 3600.0


def step(ctx: Context) -> Outcome:
    """Measure beside the users, or step aside at once for whoever moves them."""
    record = ctx.records.read()
    if record is None:
        raise PermanentError(
            f"{ctx.plan.workload} has no migration in namespace {ctx.plan.namespace}: nothing was ever proven"
        )
    if "canary" not in ctx.memory:
        ctx.memory["canary"] = _with_its_plan(ctx, record)
    mine: Context = ctx.memory["canary"]
    if why := _in_the_way(mine, record):
        remove_jobs(mine)
        return Done({"skipped": why})
    histories = Histories(mine.kube, record.namespace, record.workload)
    policy = policy_named(mine.plan.policy)
    if "looks" in mine.memory and (waiting := _look(mine, record, policy)) is not None:
        return waiting  # the history, which may be large, is read before the first look and after the last
    history = histories.read()
    if history.of(mine.run_id) is None:
        if "looks" not in mine.memory:
            mine.memory["looks"] = []
            return Waiting(0, f"{record.workload} is tried again")
        canary, engines = _conclude(mine, record, policy, history)
        if canary.outcome == WARN or (history.canaries and history.canaries[-1].outcome != canary.outcome != FAIL):
            title = f"{record.workload}: canary {canary.outcome}"
            mine.announce(lambda: [Notice(title, canary.sentence, _KINDS[canary.outcome])])
        history = histories.update(lambda found: found if found.of(canary.run) else found.with_canary(canary, engines))
    remove_jobs(mine)
    return _told(history, mine.run_id)


def _with_its_plan(ctx: Context, record: Record) -> Context:
    """Return a context with the plan that the workload migrated by, which says the policy, the peak and the images."""
    plan = Plan.from_params({**record.plan, "gcp_conn_id": ctx.plan.gcp_conn_id})
    return replace(ctx, plan=plan, memory={"of": (record.run_id, record.epoch)})


def _in_the_way(ctx: Context, record: Record) -> str:
    """Say who moves users, or has moved them, or empty: then the canary may go on."""
    if record.phase not in AFTER_COMMIT:
        return f"{record.workload} is {record.phase}: users are not on the TPU"
    if (record.run_id, record.epoch) != ctx.memory["of"]:
        return f"run {record.run_id} changed the migration to epoch {record.epoch} under this canary"
    lease = ctx.kube.get(k8s.LEASES, ctx.records.name, record.namespace)
    holder = lease["spec"].get("holderIdentity") if lease else None
    if lease and holder:
        renewed = datetime.fromisoformat(lease["spec"]["renewTime"]).timestamp()
        if ctx.clock.now() - renewed < _LEASE_IS_OLD_S:
            return f"{holder} works on {record.workload}: the canary steps aside"
    return ""


def _look(ctx: Context, record: Record, policy: Policy) -> Waiting | None:
    """Go on with the looks; None once they are settled."""
    looks: list[Look] = ctx.memory["looks"]
    while not settled(looks):
        left_s = ctx.memory.get("not_before", 0.0) - ctx.clock.monotonic()
        if left_s > 0:
            return Waiting(min(_POLL_S, left_s), f"it failed once ({looks[-1].sentence}); looking again soon")
        seen = _split(ctx, record) or _quiet(ctx, record, policy)
        if seen is None and "hurt" in ctx.memory:
            seen = Look(PASS, "users are within their SLO without the canary's load")  # and are not loaded again
        if seen is None:
            seen = ctx.memory.get("loaded") or _loaded(ctx, record, policy, len(looks) + 1)
            if isinstance(seen, Look) and seen.outcome == PASS:
                ctx.memory["loaded"] = seen
                seen = _compared(ctx, record, policy, len(looks) + 1, seen)
        if isinstance(seen, Waiting):
            return seen
        looks.append(seen)
        if seen.outcome == FAIL:
            ctx.memory["not_before"] = ctx.clock.monotonic() + _APART_S
        for name in ("quiet_since", "loading", "loaded"):
            ctx.memory.pop(name, None)
        forget(ctx)
    return None


def _split(ctx: Context, record: Record) -> Look | None:
    """Decide nothing where the users' way, which the load takes, does not lead to the TPU alone."""
    percent = observed_percent(ctx.kube, record)
    if percent == 100:
        return None
    remove_jobs(ctx)
    return Look(UNDECIDED, f"HTTPRoute {record.source.route} gives {record.target} {percent} % of users: see tpu_watch")


def _quiet(ctx: Context, record: Record, policy: Policy) -> Waiting | Look | None:
    """Watch users for a while without any load; None once they are well and carried as was proven."""
    if "loading" in ctx.memory:
        return None
    now = ctx.clock.monotonic()
    if "quiet_since" not in ctx.memory:
        forget(ctx)
        ctx.memory["quiet_since"] = now
    ready = ready_endpoints(ctx.kube, record.namespace, record.target)
    if ready:
        try:
            watch(ctx, record, policy, record.target)
        except UsersUnseenError as error:
            return Look(UNDECIDED, str(error))
        except UsersSufferError as error:
            return Look(FAIL, f"without any load of the canary, {error}")
    if (left_s := _QUIET_S - (now - ctx.memory["quiet_since"])) > 0:
        return Waiting(min(_POLL_S, left_s), f"watching users of {record.workload} before any load")
    if not ready:
        return Look(FAIL, f"no replica of {record.target} is ready: users meet nobody")
    if ready < ctx.plan.target_replicas:
        needed = ctx.plan.target_replicas
        return Look(UNDECIDED, f"{ready} replicas of {record.target} are ready, {needed} were proven: no load is added")
    ctx.memory["loading"] = True
    forget(ctx)
    return None


def _loaded(ctx: Context, record: Record, policy: Policy, number: int) -> Waiting | Look:
    """Send the gate's load the way users come, a few per cent of it, and stop it at once if they feel it."""
    block = canary_block(policy, peak_rps(ctx, record), f"canary-{number}", _seed(ctx, number))
    if block.requests / block.rate_rps > _LONGEST_LOAD_S:
        block = replace(block, requests=max(1, int(block.rate_rps * _LONGEST_LOAD_S)), write_every=1)
    arguments = block_arguments(record, policy, block, arm="")
    run = run_block(ctx, block.name, arguments, block.requests / block.rate_rps * 3 + 900)
    if run is None:
        told = f"canary {number}: {block.requests} requests at {block.rate_rps:.3g} a second"
        return _felt(ctx, record, policy, f"{block.rate_rps:.3g} requests/s") or Waiting(_POLL_S, told)
    arms = (record.notes.get("evidence") or {}).get("arms") or {}
    verdict = judge_canary(policy, arms.get("candidate") or {}, run.results, client_health(run))
    ctx.memory["checks"] = verdict.checks
    outcome = verdict.outcome if verdict.outcome in (PASS, FAIL) else UNDECIDED
    return Look(outcome, verdict.sentence)


def _felt(ctx: Context, record: Record, policy: Policy, load: str) -> Look | None:
    """Watch users beside the canary's load, and end it at once if they feel it."""
    try:
        watch(ctx, record, policy, record.target)
    except UsersSufferError as error:
        remove_jobs(ctx)
        if isinstance(error, UsersUnseenError):
            return Look(UNDECIDED, str(error))
        ctx.memory["hurt"] = True
        return Look(FAIL, f"beside {load} of the canary, {error}")
    return None


def _compared(ctx: Context, record: Record, policy: Policy, number: int, passed: Look) -> Waiting | Look:
    """Hold the answers to the source's, those of the pass and those of now if it is there; `passed` if they do."""
    if policy.quality is None:
        return passed
    sides: list[str] = ctx.memory.setdefault(f"sides-{number}", known_answers(ctx, record))
    done = []
    for side in sides:
        try:
            parity = compare(ctx, record, policy.quality, side, f"answers-{number}")
        except PermanentError as error:
            ctx.memory["uncompared"] = f"the answers were not compared with {side}: {error}"
            continue
        if parity is None:
            told = f"canary {number}: comparing answers with {side}"
            return _felt(ctx, record, policy, "a few questions") or Waiting(_POLL_S, told)
        made = judge_answers(policy, parity, MOST_ANSWERS)
        known = {check.name for check in made}
        ctx.memory["checks"] = (*(each for each in ctx.memory["checks"] if each.name not in known), *made)
        if failed := [check.sentence for check in made if check.outcome == FAIL]:
            return Look(FAIL, f"its answers are not {side}: {'; '.join(failed)}")
        done.append(side)
    if not done:
        return replace(passed, sentence=f"{passed.sentence}; its answers were compared with nobody's")
    return replace(passed, sentence=f"{passed.sentence}; its answers are {' and '.join(done)}")


def _seed(ctx: Context, number: int) -> int:
    """Return a seed of each canary's own: a prefix cache would answer for prompts that were sent before."""
    return (int(run_hash(ctx.run_id), 16) + number) % 2**31


def _conclude(
    ctx: Context, record: Record, policy: Policy, history: History
) -> tuple[Canary, dict[str, dict[str, float]]]:
    looks: list[Look] = ctx.memory["looks"]
    checks: tuple[Check, ...] = ctx.memory.get("checks", ())
    around = changes(ctx, record, policy, history, checks)
    findings = (*around.findings, *filter(None, [ctx.memory.get("uncompared")]))
    outcome, sentence = concluded(looks, findings)
    canary = Canary(
        at=ctx.clock.now(),
        run=ctx.run_id,
        proof=record.run_id,
        outcome=outcome,
        sentence=sentence,
        findings=findings,
        figures={check.name: Figure(check.value, check.limit) for check in checks if check.unit in KEPT_UNITS},
        identity=around.identity,
        usd_per_hour=around.price.usd_per_hour,
        usd_per_million=around.price.usd_per_million,
    )
    return canary, around.engines


def _told(history: History, run: str) -> Outcome:
    canary = history.of(run)
    assert canary is not None
    if canary.outcome == FAIL:
        return Failed(f"{history.workload} {canary.sentence}", "drift")
    result: dict[str, Any] = {
        "outcome": canary.outcome, "sentence": canary.sentence, "findings": list(canary.findings),
        "at": iso(canary.at),
    }  # fmt: skip
    blind = blind_for([each.outcome for each in history.since(canary.proof)])
    if blind:
        return Failed(f"{history.workload}: {blind} canaries in a row decided nothing; the last: {canary.sentence}")
    return Done(result)
