"""Prove the GPUs by the policy `rescue` before users come back to them: only while the TPU still serves users."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from tpu_migration.bench.results import BenchRun, client_health, merge
from tpu_migration.clients.kubernetes import DEPLOYMENTS
from tpu_migration.clients.vllm import Vllm
from tpu_migration.domain.gate import Block, Observations, Policy, Verdict, compared, judge
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.names import SOURCE_ARM, run_hash
from tpu_migration.record import Record
from tpu_migration.resources import policy as policy_named
from tpu_migration.restore import ready_endpoints
from tpu_migration.stages.base import Context, Waiting
from tpu_migration.stages.cleanup import remove_jobs
from tpu_migration.stages.gate_blocks import block_arguments
from tpu_migration.stages.load import run_block
from tpu_migration.stages.objects import is_ready, pods_of
from tpu_migration.stages.peak import peak_rps

_POLL_S = 2.0
_ASK_EVERY_S, _SILENT_S = 5.0, 30.0
_MAX_VOIDS = 5
_DEADLINE_S = 900.0


def target_serves(ctx: Context, record: Record) -> bool:
    """Tell whether users have somewhere to wait: a replica that is ready and has given a token within half a minute.

    One that hangs passes its probes for long. On a dead target users meet nobody, and whatever answers is better.
    """
    if not ready_endpoints(ctx.kube, record.namespace, record.target):
        return False
    now, memory = ctx.clock.monotonic(), ctx.memory
    memory.setdefault("target_answered_at", now)
    if now - memory.get("target_asked_at", -math.inf) >= _ASK_EVERY_S:
        memory["target_asked_at"] = now
        if _answers(ctx, record):
            memory["target_answered_at"] = ctx.clock.monotonic()
    silent_s: float = now - memory["target_answered_at"]
    return silent_s <= _SILENT_S


def _answers(ctx: Context, record: Record) -> bool:
    """Ask each ready replica for one token, and tell whether any gave it."""
    deployment = ctx.kube.get(DEPLOYMENTS, record.target, record.namespace)
    pods = [pod for pod in pods_of(ctx.kube, record.namespace, deployment) if is_ready(pod)] if deployment else []
    vllm = Vllm(ctx.kube, record.namespace, record.source.port)

    def gives(pod: str) -> bool:
        try:
            return bool(vllm.complete(pod, record.source.served_names[0], "ping", 1))
        except (TransientError, PermanentError) as error:
            ctx.log("replica %s gives no answer: %s", pod, error)
            return False

    return any(ctx.together([lambda n=pod["metadata"]["name"]: gives(n) for pod in pods]))  # type: ignore[misc]


def prove(ctx: Context, record: Record, run_id: str) -> Waiting | dict[str, Any]:
    """Return the verdict once the source carries the peak within the policy's limits; `run_id` is whoever goes back.

    Users are on the target, so the source takes the whole peak. Raises PermanentError where it does not pass.
    """
    policy, prefix = policy_named("rescue"), f"rescue-{run_hash(run_id)}"
    good: list[BenchRun] = []
    for number in range(1, policy.looks + _MAX_VOIDS + 1):
        block = _block(ctx, record, policy, prefix, number)
        told = f"proving {record.source.deployment} by the policy {policy.name}: {block.requests} requests at the peak"
        run = run_block(ctx, block.name, block_arguments(record, policy, block, SOURCE_ARM), _deadline_s(block))
        if run is None:
            return Waiting(_POLL_S, f"{told} (block {number}); users stay on {record.target} meanwhile")
        if _judged(policy, [run]).outcome == "void":
            continue
        good.append(run)
        verdict = _judged(policy, good)
        if verdict.outcome == "pass":
            return verdict.to_dict()
        if verdict.outcome == "fail" or len(good) == policy.looks:
            raise _refused(ctx, record, verdict.sentence)
    raise _refused(ctx, record, f"the load generator was too slow {_MAX_VOIDS} times and more")


def _judged(policy: Policy, runs: list[BenchRun]) -> Verdict:
    together = merge(runs)
    seen = Observations(candidate_client=client_health(together))
    return judge(policy, (), together.results, observations=seen, look=len(runs))


def _block(ctx: Context, record: Record, policy: Policy, prefix: str, number: int) -> Block:
    """Return the load of a look of its own names and seeds: a prefix cache would answer for prompts sent before."""
    ((block,),) = compared(policy, peak_rps(ctx, record), f"{number}a")
    seed = (int(prefix.rpartition("-")[2], 16) + block.seed) % 2**31
    return replace(block, name=f"{prefix}-{number}", seed=seed)


def _deadline_s(block: Block) -> float:
    return block.requests / block.rate_rps * 3 + _DEADLINE_S


def _refused(ctx: Context, record: Record, why: str) -> PermanentError:
    remove_jobs(ctx)
    return PermanentError(
        f"{record.source.deployment} did not pass the policy rescue: {why}; users stay on {record.target}, which "
        "serves them. See what the GPUs lack and start gpu_fallback again; with its parameter `prove` off it "
        "moves users without this proof"
    )
