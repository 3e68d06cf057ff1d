"""Measure both arms and judge: only a pass lets users move."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tpu_migration.bench.results import BenchRun, client_health, merge
from tpu_migration.clients import kubernetes as k8s
from tpu_migration.domain.gate import (
    ArmCost,
    ArmEvents,
    Observations,
    Policy,
    Verdict,
    conforming_tokens_per_s,
    judge,
    rate_point,
    stopped,
)
from tpu_migration.domain.gate.evidence import client_entry, costs, distributions, limits, look_entry, rate_entry
from tpu_migration.domain.gate.parity import Parity
from tpu_migration.domain.phases import Phase
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.names import SOURCE_ARM, TARGET_ARM
from tpu_migration.record import Record
from tpu_migration.resources import accelerators
from tpu_migration.resources import policy as policy_named
from tpu_migration.stages import kept_answers
from tpu_migration.stages.base import Context, Done, Failed, Outcome, Waiting
from tpu_migration.stages.engine_state import engine_state, events_between
from tpu_migration.stages.gate_blocks import run_look, sizes_of
from tpu_migration.stages.live_users import UsersSufferError, forget
from tpu_migration.stages.objects import template_hash
from tpu_migration.stages.parity import compare_answers, pooled
from tpu_migration.stages.peak import peak_rps
from tpu_migration.stages.probes import prober_stats
from tpu_migration.stages.recorded_baseline import keep as keep_baseline
from tpu_migration.stages.recorded_baseline import read as read_baseline

_MAX_VOIDS = 2
_PATIENCE_S = 900.0  # with an engine, a prober or a Gateway that does not answer


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
        record = _begin(ctx, record, policy, name)
    if policy.quality and compare_answers(ctx, record, policy.quality, name) is None:
        return Waiting(2.0, f"comparing answers (look {len(looks) + 1} of at most {policy.looks})")
    try:
        look = run_look(ctx, record, policy, peak_rps(ctx, record), name, compared_done=lambda: _note_after(ctx, name))
    except UsersSufferError as error:
        return _conclude(ctx, stopped(policy, str(error)), dict(record.notes))
    if look is None:
        return Waiting(2.0, f"measuring (look {len(looks) + 1} of at most {policy.looks}, policy {policy.name})")
    record = ctx.expect(Phase.WARM) or record  # with the engines' state after the compared blocks
    return _decide(ctx, record, policy, [*looks, name], voids)


def _begin(ctx: Context, record: Record, policy: Policy, name: str) -> Record:
    """Note the engines' state before a look, and once for all how long the requests are."""
    forget(ctx)
    changes: dict[str, Any] = {"gate_block": name, "gate_before": _arm_states(ctx, record), "gate_after": None}
    if "lengths" not in record.notes:
        if policy.ratio and policy.load.baseline == "recorded":
            changes["lengths"] = read_baseline(ctx, record).lengths
        else:
            changes["lengths"] = sizes_of(ctx, record, policy).to_dict()
        if policy.ratio and policy.load.baseline == "active":
            _refuse_to_overload(ctx, record)
    return ctx.update(lambda r: replace(r, notes={**r.notes, **changes}))


def _refuse_to_overload(ctx: Context, record: Record) -> None:
    """Refuse a second peak on a source that was not sized for it: users are on it."""
    ready, peak = record.source.replicas, ctx.plan.source_peak_replicas
    if peak <= 0 or ready < 2 * peak:
        raise PermanentError(
            f"baseline `active` puts the peak a second time on {record.source.deployment}, whose {ready} replicas "
            f"carry users and are needed at the peak ({peak or 'all'} of them): scale the source to twice its peak and "
            "give `source_peak_replicas`, or take a policy whose baseline is `probe`"
        )


def _note_after(ctx: Context, name: str) -> None:
    if ctx.memory.get("noted_after") == name:
        return
    record = ctx.expect(Phase.WARM)
    if record is not None and not record.notes.get("gate_after"):
        after = _arm_states(ctx, record)
        ctx.update(lambda r: replace(r, notes={**r.notes, "gate_after": after}))
    ctx.memory["noted_after"] = name


def _wait_for_the_way(ctx: Context) -> Waiting | None:
    """Wait until the Gateway itself sends requests to the target: NEG and health check take their time."""
    stats = prober_stats(ctx)
    if stats is None:
        return Waiting(1.0, "the prober does not answer yet")
    target = stats.arms.get(TARGET_ARM)
    if target is None or not target.steady:
        error = f" ({target.last_error})" if target and target.last_error else ""
        return Waiting(1.0, f"the Gateway does not reach the target yet{error}")
    return None


def _decide(ctx: Context, record: Record, policy: Policy, looks: list[str], voids: int) -> Outcome:
    verdict, evidence = _judge_looks(ctx, record, policy, looks)
    tried = [
        *(record.notes.get("evidence") or {}).get("looks", ()),
        {**evidence.pop("look"), "outcome": verdict.outcome},
    ]
    note: dict[str, Any] = {**record.notes, "evidence": {**evidence, "looks": tried}}
    if verdict.outcome == "void":
        if voids >= _MAX_VOIDS:
            ctx.update(lambda r: replace(r, verdict=verdict.to_dict(), notes=note))
            return Failed(f"the benchmark was void {voids + 1} times: {verdict.sentence}", "inconclusive")
        ctx.update(lambda r: replace(r, notes={**note, "voids": voids + 1}))
        return Waiting(0, f"the measurement is void ({verdict.sentence}); once more")
    if verdict.outcome == "inconclusive" and len(looks) < policy.looks:
        ctx.update(lambda r: replace(r, notes={**note, "looks": looks, "voids": 0}))
        return Waiting(0, f"inconclusive so far ({verdict.sentence}); extending")
    if verdict.outcome == "pass" and (answers := _quality(ctx, record, policy, looks)) is not None:
        kept_answers.keep(ctx, record, answers)
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
    held = verdict.outcome == "inconclusive"  # its phase has told it
    return Failed(f"the benchmark gate: {verdict.sentence}", "inconclusive" if held else "permanent", is_told=held)


def _judge_looks(ctx: Context, record: Record, policy: Policy, names: list[str]) -> tuple[Verdict, dict[str, Any]]:
    """Judge all looks so far together; each look's blocks are found again by their names."""
    peak = peak_rps(ctx, record)
    looks = [run_look(ctx, record, policy, peak, name, compared_done=lambda: None) for name in names]
    found = [look for look in looks if look is not None]
    if len(found) < len(looks):
        raise PermanentError(f"the results of look {', '.join(names)} are gone: start a new run")
    recorded = policy.ratio is not None and policy.load.baseline == "recorded"
    last_baseline = merge([read_baseline(ctx, record).run] if recorded else found[-1].baseline)
    baseline = last_baseline if recorded else merge([run for look in found for run in look.baseline])
    candidate = merge([run for look in found for run in look.candidate])
    # A rate at which the load generator itself was the bottleneck says nothing of the server.
    sweep = [pair for look in found for pair in look.sweep if not client_health(pair[1]).void_reasons]
    points = [rate_point(policy, block.rate_rps, run.results) for block, run in sweep] if policy.slo else []
    events = {arm: _events(record, arm) for arm in (SOURCE_ARM, TARGET_ARM)}
    if recorded:
        events[SOURCE_ARM] = ArmEvents(0, 0, 0)  # a void baseline is never kept
    baseline_cost, candidate_cost = _costs(ctx, record, policy, candidate)
    seen = Observations(
        baseline_client=client_health(baseline),
        candidate_client=client_health(candidate),
        baseline_events=events[SOURCE_ARM],
        candidate_events=events[TARGET_ARM],
        peak_rps=peak,
        sweep=tuple(points),
        baseline_cost=baseline_cost,
        candidate_cost=candidate_cost,
        quality=_quality(ctx, record, policy, names),
        needed_features=ctx.plan.client_features,
    )
    verdict = judge(policy, baseline.results, candidate.results, observations=seen, look=len(names))
    if ctx.plan.stop_after == "gate" and policy.ratio and not recorded and verdict.outcome != "void":
        keep_baseline(ctx, record, baseline)
    last = merge(found[-1].candidate)
    arms = {"baseline": events[SOURCE_ARM], "candidate": events[TARGET_ARM]}
    return verdict, {
        "baseline": policy.load.baseline if policy.ratio else "none",
        "peak_rps": peak,
        "limits": limits(policy, peak),
        "arms": {"baseline": distributions(baseline.results), "candidate": distributions(candidate.results)},
        "look": look_entry(names[-1], last_baseline.results, last.results, arms),
        "sweep": [
            rate_entry(block.rate_rps, run.results, point.good, run.summary)
            for (block, run), point in zip(sweep, points, strict=False)
        ],
        "clients": [
            *(client_entry(f"baseline {n}", run.summary) for n, run in enumerate(found[-1].baseline)),
            *(client_entry(block.name, run.summary) for block, run in found[-1].sweep),
        ],
        "costs": costs(seen),
    }


def _quality(ctx: Context, record: Record, policy: Policy, names: list[str]) -> Parity | None:
    if policy.quality is None:
        return None
    looks = [compare_answers(ctx, record, policy.quality, name) for name in names]
    return None if None in looks else pooled([each for each in looks if each is not None])


def _arm_states(ctx: Context, record: Record) -> dict[str, Any]:
    return {arm: engine_state(ctx, record, arm) for arm in (SOURCE_ARM, TARGET_ARM)}


def _events(record: Record, arm: str) -> ArmEvents:
    return events_between(record.notes["gate_before"][arm], record.notes["gate_after"][arm])


def _costs(ctx: Context, record: Record, policy: Policy, candidate: BenchRun) -> tuple[ArmCost | None, ArmCost | None]:
    """Return what the baseline and the candidate cost and deliver, whole machines of the same pricing kind.

    None for a price that the file does not have, or without a steady window to count tokens in: the
    cost check then cannot pass.
    """
    if policy.cost is None:
        return None, None
    catalogue = accelerators()
    kind, source, plan = record.pricing, record.source, ctx.plan
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
    tokens *= candidate.summary["sent"] / len(candidate.results)  # of a high peak's requests a sample is written
    return (
        None if gpu_usd is None else ArmCost(gpu_usd, tokens),
        None if tpu_usd is None else ArmCost(tpu_usd * plan.target_replicas, tokens),
    )
