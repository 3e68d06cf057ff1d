"""Measure both arms and judge: only a pass lets users move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tpu_migration.bench.results import BenchRun, client_health, merge
from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.vllm import Metrics, Vllm
from tpu_migration.domain.gate import (
    ArmCost,
    ArmEvents,
    Observations,
    Policy,
    RatePoint,
    RequestResult,
    Verdict,
    conforming_tokens_per_s,
    judge,
    rate_point,
)
from tpu_migration.domain.phases import Phase
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.names import SOURCE_ARM, TARGET_ARM
from tpu_migration.record import Record
from tpu_migration.resources import accelerators
from tpu_migration.resources import policy as policy_named
from tpu_migration.stages.base import Context, Done, Failed, Outcome, Waiting
from tpu_migration.stages.load import run_block, through_gateway
from tpu_migration.stages.objects import pods_of, template_hash
from tpu_migration.stages.probes import prober_stats
from tpu_migration.stages.warm_up import COMPILED

_MAX_VOIDS = 2
_PATIENCE_S = 900.0  # with an engine, a prober or a Gateway that does not answer
_TARGET_ANSWERS = 3  # in a row, through the Gateway, before load is sent that way


def step(ctx: Context) -> Outcome:
    """Run the blocks of one look, judge all looks so far, and write the verdict."""
    record = ctx.expect(Phase.WARM)
    if record is None:
        return Done()
    try:
        blocked = _wait_for_the_way(ctx)
        if blocked is None:
            outcome = _measure(ctx, record)
            ctx.memory.pop("blocked_since", None)
            return outcome
    except TransientError as error:
        blocked = Waiting(2.0, f"cannot measure: {error}")
    since = ctx.memory.setdefault("blocked_since", ctx.clock.monotonic())
    if ctx.clock.monotonic() - since > _PATIENCE_S:
        raise PermanentError(f"no measurement was possible for {_PATIENCE_S / 60:.0f} minutes: {blocked.why}")
    return blocked


def _measure(ctx: Context, record: Record) -> Outcome:
    policy = policy_named(ctx.plan.policy)
    looks: list[str] = list(record.notes.get("looks") or [])
    voids = int(record.notes.get("voids") or 0)
    name = f"{len(looks) + 1}{'abc'[voids]}"
    if record.notes.get("gate_block") != name:
        before = {arm: _arm_state(ctx, record, arm) for arm in (SOURCE_ARM, TARGET_ARM)}
        record = ctx.update(lambda r: replace(r, notes={**r.notes, "gate_block": name, "gate_before": before}))
    blocks = _run_look(ctx, record, policy, name)
    if blocks is None:
        return Waiting(2.0, f"measuring (look {len(looks) + 1} of at most {policy.looks}, policy {policy.name})")
    return _decide(ctx, record, policy, [*looks, name], voids)


def _wait_for_the_way(ctx: Context) -> Waiting | None:
    """Wait until the Gateway itself sends requests to the target: NEG and health check take their time."""
    stats = prober_stats(ctx)
    if stats is None:
        return Waiting(1.0, "the prober does not answer yet")
    target = stats.arms.get(TARGET_ARM)
    if target is None or target.ok < _TARGET_ANSWERS or target.consecutive_failures:
        error = f" ({target.last_error})" if target and target.last_error else ""
        return Waiting(1.0, f"the Gateway does not reach the target yet{error}")
    return None


def _run_look(ctx: Context, record: Record, policy: Policy, name: str) -> dict[str, BenchRun] | None:
    """Run the baseline's probe and the candidate's load side by side, then the other rates one by one."""
    plan = ctx.plan
    shape = [
        f"--prompt-tokens={plan.prompt_tokens}",
        f"--output-tokens={plan.output_tokens}",
        "--ignore-eos",
        f"--seed={int(name[:-1]) * 1000 + ord(name[-1])}",
        *_void_limits(policy),
    ]
    source = record.source
    rates = _rates(plan.peak_rps, policy)
    wanted = {
        f"baseline-{name}": (SOURCE_ARM, _probe_rate(plan.peak_rps), policy.requests.baseline),
        f"load-{name}-0": (TARGET_ARM, rates[0], policy.requests.candidate),
    }
    further = {
        f"load-{name}-{i}": (TARGET_ARM, rate, policy.requests.candidate_min) for i, rate in enumerate(rates[1:], 1)
    }
    done: dict[str, BenchRun] = {}
    for group in (wanted, *({key: value} for key, value in further.items())):
        for block, (arm, rate, requests) in group.items():
            arguments = [*through_gateway(source, arm), f"--rate={rate:g}", f"--requests={requests}", *shape]
            run = run_block(ctx, block, arguments, deadline_s=requests / rate * 3 + 900)
            if run is not None:
                done[block] = run
        if len(done.keys() & group.keys()) < len(group):
            return None
    return done


def _void_limits(policy: Policy) -> list[str]:
    """Return what the load generator calls its own run void by: the policy's limits, not its defaults."""
    if policy.void is None:
        return []
    limits = {
        "loop-lag-ms": policy.void.loop_lag_p99_ms,
        "schedule-delay-ms": policy.void.schedule_delay_p99_ms,
        "achieved-rate": policy.void.achieved_rate_min,
    }
    return [f"--policy-void-{name}={limit:g}" for name, limit in limits.items() if limit is not None]


def _rates(peak_rps: float, policy: Policy) -> list[float]:
    """Return the rates of the capacity search; the first one is the peak with its head-room."""
    headroom = policy.capacity.headroom if policy.capacity else 1.0
    count = policy.capacity.min_rates if policy.capacity else 1
    return [peak_rps * headroom * factor for factor in (1.0, 0.6, 0.85, 1.15, 1.3, 1.5)[: max(1, count)]]


def _probe_rate(peak_rps: float) -> float:
    """Return how many extra requests a second the live source is probed with: a few per cent, at least some."""
    return max(0.05 * peak_rps, min(2.0, 0.2 * peak_rps))


def _decide(ctx: Context, record: Record, policy: Policy, looks: list[str], voids: int) -> Outcome:
    verdict, arms = _judge_looks(ctx, record, policy, looks)
    note: dict[str, Any] = {**record.notes, "arms": arms}
    if verdict.outcome == "void":
        if voids >= _MAX_VOIDS:
            ctx.update(lambda r: replace(r, verdict=verdict.to_dict(), notes=note))
            return Failed(f"the benchmark was void {voids + 1} times: {verdict.sentence}", "inconclusive")
        ctx.update(lambda r: replace(r, notes={**note, "voids": voids + 1}))
        return Waiting(0, f"the measurement is void ({verdict.sentence}); once more")
    if verdict.outcome == "inconclusive" and len(looks) < policy.looks:
        ctx.update(lambda r: replace(r, notes={**note, "looks": looks, "voids": 0}))
        return Waiting(0, f"inconclusive so far ({verdict.sentence}); extending")
    return _conclude(ctx, verdict, note)


def _conclude(ctx: Context, verdict: Verdict, note: dict[str, Any]) -> Outcome:
    deployment = ctx.kube.get(k8s.DEPLOYMENTS, ctx.names.target, ctx.plan.namespace)
    digest = template_hash(deployment) if deployment else ""

    def change(record: Record) -> Record:
        if digest != record.template_hash:
            raise PermanentError(
                f"the pod template of {record.target} changed during the benchmark: the verdict holds for neither"
            )
        noted = replace(record, verdict=verdict.to_dict(), notes=note)
        # A failed gate stays `warm`: what is `gated` may move users, or ends as the proof of concept.
        if verdict.outcome == "pass" or ctx.plan.stop_after == "gate":
            return noted.moved_to(Phase.GATED)
        if verdict.outcome == "inconclusive":
            return noted.moved_to(Phase.GATED).moved_to(Phase.HELD)
        return noted

    ctx.update(change)
    if verdict.outcome == "pass" or ctx.plan.stop_after == "gate":
        return Done({"outcome": verdict.outcome, "sentence": verdict.sentence})
    kind = "inconclusive" if verdict.outcome == "inconclusive" else "permanent"
    return Failed(f"the benchmark gate: {verdict.sentence}", kind)


def _judge_looks(ctx: Context, record: Record, policy: Policy, looks: list[str]) -> tuple[Verdict, dict[str, Any]]:
    """Judge all looks so far together; each look's blocks are found again by their names."""
    baselines, candidates = [], []
    sweep: list[RatePoint] = []
    rates = _rates(ctx.plan.peak_rps, policy)
    for name in looks:
        blocks = _run_look(ctx, record, policy, name)
        if blocks is None:
            raise PermanentError(f"the results of look {name} are gone: start a new run")
        baselines.append(blocks[f"baseline-{name}"])
        candidates.append(blocks[f"load-{name}-0"])
        if policy.slo:
            runs = [blocks[f"load-{name}-{index}"] for index in range(len(rates))]
            sweep += [rate_point(policy, rate, run.results) for rate, run in zip(rates, runs, strict=True)]
    baseline, candidate = merge(baselines), merge(candidates)
    baseline_cost, candidate_cost = _costs(ctx, record, policy, candidate)
    observations = Observations(
        baseline_client=client_health(baseline),
        candidate_client=client_health(candidate),
        baseline_events=_events(ctx, record, SOURCE_ARM),
        candidate_events=_events(ctx, record, TARGET_ARM),
        peak_rps=ctx.plan.peak_rps,
        sweep=tuple(sweep),
        baseline_cost=baseline_cost,
        candidate_cost=candidate_cost,
    )
    verdict = judge(policy, baseline.results, candidate.results, observations=observations, look=len(looks))
    return verdict, {"baseline": _quantiles(baseline.results), "candidate": _quantiles(candidate.results)}


def _arm_state(ctx: Context, record: Record, arm: str) -> dict[str, dict[str, float]]:
    """Return, for each pod of an arm, the counters that must not move during a measurement."""
    name = record.target if arm == TARGET_ARM else record.source.deployment
    deployment = ctx.kube.get(k8s.DEPLOYMENTS, name, ctx.plan.namespace)
    if deployment is None:
        raise PermanentError(f"Deployment {name} is gone: somebody deleted it")
    vllm = Vllm(ctx.kube, ctx.plan.namespace, record.source.port)
    state = {}
    for pod in pods_of(ctx.kube, ctx.plan.namespace, deployment):
        name = pod["metadata"]["name"]
        metrics: Metrics = vllm.metrics(name)
        restarts = sum(e.get("restartCount", 0) for e in pod["status"].get("containerStatuses") or [])
        compiles = len(COMPILED.findall(ctx.kube.pod_log(ctx.plan.namespace, name))) if arm == TARGET_ARM else 0
        state[name] = {"restarts": restarts, "preemptions": metrics.preemptions, "compiles": compiles}
    return state


def _events(ctx: Context, record: Record, arm: str) -> ArmEvents:
    """Return what happened to an arm since the look began; a pod that is gone or new counts as a restart."""
    before: dict[str, dict[str, float]] = record.notes["gate_before"][arm]
    after = _arm_state(ctx, record, arm)

    def grown(what: str) -> int | None:
        growth = [after[name][what] - before[name][what] for name in before.keys() & after.keys()]
        # A count that shrank was begun anew (a log that was rotated, a counter of a new process): unknown.
        return None if any(each < 0 for each in growth) else int(sum(growth))

    replaced = len(before.keys() ^ after.keys())
    restarts = grown("restarts")
    return ArmEvents(grown("compiles"), None if restarts is None else restarts + replaced, grown("preemptions"))


def _costs(ctx: Context, record: Record, policy: Policy, candidate: BenchRun) -> tuple[ArmCost | None, ArmCost | None]:
    """Return what the baseline and the candidate cost and deliver, whole machines of the same pricing kind.

    None for a price that the file does not have, or without a steady window to count tokens in: the
    cost check then cannot pass.
    """
    if policy.cost is None:
        return None, None
    catalogue = accelerators()
    kind = "spot" if ctx.plan.capacity == "spot" else "on-demand"
    source, plan = record.source, ctx.plan
    gpu = catalogue.gpu_by_label(source.accelerator)
    gpu_usd = gpu.usd_per_hour(kind, source.chips * source.replicas) if gpu else None
    tpu_usd = catalogue.slice(plan.target).usd_per_hour(kind)
    # Both arms are taken to carry the same load, the one that the candidate was given: the source is
    # sized for it, and a probe of a few per cent cannot tell its throughput. What that load was
    # exactly then cancels out, so its interval says nothing about the ratio.
    try:
        tokens, _, _ = conforming_tokens_per_s(policy, candidate.results)
    except ValueError as error:
        ctx.log("cost a token cannot be told: %s", error)
        return None, None
    return (
        None if gpu_usd is None else ArmCost(gpu_usd, tokens),
        None if tpu_usd is None else ArmCost(tpu_usd * plan.target_replicas, tokens),
    )


def _quantiles(results: Sequence[RequestResult]) -> dict[str, Any]:
    """Return the distributions in 41 quantiles, for the report; milliseconds."""
    table: dict[str, Any] = {"requests": len(results), "failed": sum(1 for each in results if not each.ok)}
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        values = sorted(v for each in results if each.ok and (v := getattr(each, name)) is not None)
        if values:
            table[name[:-2] + "_ms"] = [round(1000 * values[round(i / 40 * (len(values) - 1))], 2) for i in range(41)]
    return table
