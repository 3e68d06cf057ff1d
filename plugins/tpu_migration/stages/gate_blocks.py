"""Run the blocks of one look as Jobs: the compared ones first, then rate after rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tpu_migration.bench.results import BenchRun
from tpu_migration.clients import kubernetes as k8s
from tpu_migration.domain.gate import Block, Policy, RatePoint, compared, next_rate, rate_point
from tpu_migration.names import SOURCE_ARM, TARGET_ARM
from tpu_migration.record import Record
from tpu_migration.stages.base import Context
from tpu_migration.stages.live_traffic import live_traffic
from tpu_migration.stages.live_users import UsersSufferError, forget, watch
from tpu_migration.stages.load import run_block, through_gateway

_ARMS = {"baseline": SOURCE_ARM, "candidate": TARGET_ARM}


@dataclass(frozen=True)
class Look:
    """What one look measured; the first rate of the sweep is that of the compared blocks."""

    baseline: tuple[BenchRun, ...]
    candidate: tuple[BenchRun, ...]
    sweep: tuple[tuple[Block, BenchRun], ...]


@dataclass(frozen=True)
class Sizes:
    """How long prompts and answers are, and where that is known from; frozen when the gate begins."""

    prompt: str
    output: str
    origin: str

    def to_dict(self) -> dict[str, str]:
        """Return JSON values for the record."""
        return {"prompt": self.prompt, "output": self.output, "origin": self.origin}


def run_look(
    ctx: Context, record: Record, policy: Policy, peak_rps: float, name: str, *, compared_done: Callable[[], None]
) -> Look | None:
    """Return what the look measured, or None while it runs; call it again until then.

    `compared_done` is called at each pass after the compared blocks have ended: what happens to an
    engine at the rates of the search, beyond its capacity perhaps, does not void the comparison.
    Raises UsersSufferError, with the probe's Jobs deleted, when live users are over their SLO.
    """
    done: dict[str, BenchRun] = {}
    groups = compared(policy, peak_rps, name)
    for group in groups:
        if not _run_group(ctx, record, policy, group, done):
            return None
    compared_done()
    blocks = [block for group in groups for block in group]
    sides = {
        side: tuple(done[block.name] for block in blocks if block.side == side) for side in ("baseline", "candidate")
    }
    first = next(block for block in blocks if block.side == "candidate")
    sweep = [(first, sides["candidate"][0])]
    points = [_point(policy, *sweep[0])]
    while policy.slo and (block := next_rate(policy, peak_rps, name, points)) is not None:
        if not _run_group(ctx, record, policy, (block,), done):
            return None
        sweep.append((block, done[block.name]))
        points.append(_point(policy, *sweep[-1]))
    return Look(sides["baseline"], sides["candidate"], tuple(sweep))


def _point(policy: Policy, block: Block, run: BenchRun) -> RatePoint:
    if policy.slo is None:
        return RatePoint(block.rate_rps, len(run.results), 0)
    return rate_point(policy, block.rate_rps, run.results)


def _run_group(ctx: Context, record: Record, policy: Policy, group: Sequence[Block], done: dict[str, BenchRun]) -> bool:
    """Run blocks side by side and tell whether all have ended; stop them all if that hurts live users."""
    for block in group:
        deadline_s = block.requests / block.rate_rps * 3 + 900
        arguments = block_arguments(record, policy, block, _ARMS[block.side])
        run = run_block(ctx, block.name, arguments, deadline_s)
        if run is not None:
            done[block.name] = run
    open_blocks = [block for block in group if block.name not in done]
    if any(block.side == "baseline" for block in open_blocks):
        try:
            watch(ctx, record, policy, record.source.deployment)
        except UsersSufferError:
            for block in open_blocks:
                ctx.kube.delete(k8s.JOBS, ctx.names.job(block.name), ctx.plan.namespace)
            raise
    else:
        forget(ctx)
    return not open_blocks


def block_arguments(record: Record, policy: Policy, block: Block, arm: str) -> list[str]:
    """Return what the load generator is told: the gate's own lengths, through the Gateway to an arm."""
    sizes = record.notes["lengths"]
    return [
        *through_gateway(record.source, arm),
        f"--rate={block.rate_rps:g}",
        f"--requests={block.requests}",
        f"--write-every={block.write_every}",
        f"--prompt-tokens={sizes['prompt']}",
        f"--output-tokens={sizes['output']}",
        "--ignore-eos",
        f"--seed={block.seed}",
        *_void_limits(policy),
    ]


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


def sizes_of(ctx: Context, record: Record, policy: Policy) -> Sizes:
    """Take the lengths of prompts and answers from the source's own histograms, or from the plan."""
    plan = ctx.plan
    fixed = Sizes(str(plan.prompt_tokens), str(plan.output_tokens), "the plan")
    if policy.load.lengths == "fixed":
        return fixed
    live = live_traffic(ctx, record)
    if live.prompt is None or live.output is None:
        return replace(fixed, origin=f"the plan: {live.origin}")
    return Sizes(live.prompt.text, live.output.text, live.origin)
