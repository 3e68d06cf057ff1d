"""Measure both arms and judge: only a pass lets users move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from tpu_migration.bench.results import BenchRun
from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.vllm import Metrics, Vllm
from tpu_migration.domain.accelerators import parse_accelerators
from tpu_migration.domain.gate.arms import conforming_tokens_per_s
from tpu_migration.domain.gate.judge import judge
from tpu_migration.domain.gate.model import (
    ArmCost,
    ArmEvents,
    Observations,
    RatePoint,
    RequestResult,
    Verdict,
)
from tpu_migration.domain.gate.policy import Policy, load_policy
from tpu_migration.domain.phases import Phase
from tpu_migration.errors import PermanentError
from tpu_migration.names import SOURCE_ARM, TARGET_ARM
from tpu_migration.record import Record
from tpu_migration.resources import read_text
from tpu_migration.stages.base import Context, Done, Failed, Outcome, Waiting
from tpu_migration.stages.load import run_block, through_gateway
from tpu_migration.stages.objects import pods_of, template_hash
from tpu_migration.stages.probes import prober_stats
from tpu_migration.stages.warm_up import COMPILED

_MAX_LOOKS = 3
_MAX_VOIDS = 2
_TARGET_ANSWERS = 3  # in a row, through the Gateway, before load is sent that way


def step(ctx: Context) -> Outcome:
    """Run the blocks of one look, judge all looks so far, and write the verdict."""
    record = ctx.expect(Phase.WARM)
    if record is None:
        return Done()
    if (waiting := _wait_for_the_way(ctx)) is not None:
        return waiting
    policy = load_policy(read_text(f"policies/{ctx.plan.policy}.yaml"))
    looks: list[str] = list(record.notes.get("looks") or [])
    voids = int(record.notes.get("voids") or 0)
    name = f"{len(looks) + 1}{'abc'[voids]}"
    if record.notes.get("gate_block") != name:
        before = _arm_state(ctx, record)
        ctx.update(lambda r: replace(r, notes={**r.notes, "gate_block": name, "gate_before": before}))
        record = ctx.update(lambda r: r)
    blocks = _run_look(ctx, record, policy, name)
    if blocks is None:
        return Waiting(1.0, f"measuring (look {len(looks) + 1} of at most {_MAX_LOOKS}, policy {policy.name})")
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
        f"--seed={len(name) * 1000 + ord(name[0])}",
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
    if verdict.outcome == "inconclusive" and len(looks) < _MAX_LOOKS:
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
    return Failed(f"the gate says {verdict.outcome}: {verdict.sentence}", kind)


def _judge_looks(ctx: Context, record: Record, policy: Policy, looks: list[str]) -> tuple[Verdict, dict[str, Any]]:
    baseline: list[RequestResult] = []
    candidate: list[RequestResult] = []
    sweep: list[RatePoint] = []
    last: dict[str, BenchRun] = {}
    rates = _rates(ctx.plan.peak_rps, policy)
    offset = 0.0
    for name in looks:
        blocks = _run_look(ctx, record, policy, name)
        if blocks is None:
            raise PermanentError(f"the results of look {name} are gone: start a new run")
        main = blocks[f"load-{name}-0"]
        baseline += _later(blocks[f"baseline-{name}"].results, offset)
        candidate += _later(main.results, offset)
        for index, rate in enumerate(rates):
            results = blocks[f"load-{name}-{index}"].results
            good = sum(1 for each in results if policy.conforms(each))
            sweep.append(RatePoint(rate, len(results), good))
        offset += 3600.0
        last = {"baseline": blocks[f"baseline-{name}"], "candidate": main}
    after = _arm_state(ctx, record)
    observations = Observations(
        baseline_client=last["baseline"].health,
        candidate_client=last["candidate"].health,
        candidate_events=_events(record.notes["gate_before"], after),
        peak_rps=ctx.plan.peak_rps,
        sweep=tuple(sweep),
        **_costs(ctx, record, policy, last),
    )
    verdict = judge(policy, baseline, candidate, observations=observations, look=len(looks))
    return verdict, {"baseline": _quantiles(baseline), "candidate": _quantiles(candidate)}


def _later(results: Sequence[RequestResult], offset_s: float) -> list[RequestResult]:
    """Shift a block in time, so that blocks of the bootstrap never mix two looks."""
    return [replace(each, scheduled_s=each.scheduled_s + offset_s, sent_s=each.sent_s + offset_s) for each in results]


def _arm_state(ctx: Context, record: Record) -> dict[str, dict[str, float]]:
    """Return, for each pod of the target, the counters that must not move during a measurement."""
    deployment = ctx.kube.get(k8s.DEPLOYMENTS, ctx.names.target, ctx.plan.namespace)
    if deployment is None:
        raise PermanentError(f"Deployment {ctx.names.target} is gone: somebody deleted it")
    vllm = Vllm(ctx.kube, ctx.plan.namespace, record.source.port)
    state = {}
    for pod in pods_of(ctx.kube, ctx.plan.namespace, deployment):
        name = pod["metadata"]["name"]
        metrics: Metrics = vllm.metrics(name)
        restarts = sum(e.get("restartCount", 0) for e in pod["status"].get("containerStatuses") or [])
        compiles = len(COMPILED.findall(ctx.kube.pod_log(ctx.plan.namespace, name)))
        state[name] = {"restarts": restarts, "preemptions": metrics.preemptions, "compiles": compiles}
    return state


def _events(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> ArmEvents:
    """Return what happened between two states; a pod that is gone or new counts as a restart."""
    both = before.keys() & after.keys()
    changed = len(before.keys() ^ after.keys())

    def grown(what: str) -> int:
        return int(sum(after[name][what] - before[name][what] for name in both))

    return ArmEvents(grown("compiles"), grown("restarts") + changed, grown("preemptions"))


def _costs(ctx: Context, record: Record, policy: Policy, runs: dict[str, BenchRun]) -> dict[str, ArmCost]:
    """Return what each arm costs and delivers, whole machines of the same pricing kind."""
    if policy.cost is None:
        return {}
    catalogue = parse_accelerators(read_text("accelerators.yaml"))
    kind = "spot" if ctx.plan.capacity == "spot" else "on-demand"
    source, plan = record.source, ctx.plan
    gpu = catalogue.gpu(source.accelerator).usd_per_hour(kind) * source.chips * source.replicas
    tpu = catalogue.slice(plan.target).usd_per_hour(kind) * plan.target_replicas
    tokens = conforming_tokens_per_s(policy, runs["candidate"].results)
    # The source is taken to deliver the same load: it is sized for the live peak, and a probe
    # of a few per cent cannot tell its throughput.
    return {
        "baseline_cost": ArmCost(gpu, tokens.value),
        "candidate_cost": ArmCost(tpu, tokens.value, tokens.low, tokens.high),
    }


def _quantiles(results: Sequence[RequestResult]) -> dict[str, Any]:
    """Return the distributions in 41 quantiles, for the report; milliseconds."""
    table: dict[str, Any] = {"requests": len(results), "failed": sum(1 for each in results if not each.ok)}
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        values = sorted(v for each in results if each.ok and (v := asdict(each)[name]) is not None)
        if values:
            table[name[:-2] + "_ms"] = [round(1000 * values[round(i / 40 * (len(values) - 1))], 2) for i in range(41)]
    return table
