"""Wait until the TPU replicas answer, then drive every shape until nothing compiles any more."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Object
from tpu_migration.clients.vllm import Vllm
from tpu_migration.domain.phases import Phase
from tpu_migration.errors import PermanentError
from tpu_migration.record import Record
from tpu_migration.stages.base import Context, Done, Outcome, Waiting
from tpu_migration.stages.load import run_block
from tpu_migration.stages.objects import is_ready, pods_of

# What vLLM-TPU logs for each compiled program (JAX_LOG_COMPILES=1, tpu_inference's precompile).
COMPILED = re.compile(r"Finished XLA compilation of|Compilation of .+ finished in")
_PROGRESS = re.compile(
    r"Precompile .*|Compilation of .+ finished in .*|Memory statistics.*|Init model.*|KV cache size.*"
)
_MAX_PASSES = 4
_MAX_RESTARTS = 3
_OUTPUT_TOKENS = 8
_PASS_DEADLINE_S = 1800.0


def step(ctx: Context) -> Outcome:
    """Wait for ready pods, check what they serve, then run passes until one is free of compiles."""
    record = ctx.expect(Phase.DEPLOYED)
    if record is None:
        return Done()
    deployment = ctx.kube.get(k8s.DEPLOYMENTS, ctx.names.target, ctx.plan.namespace)
    if deployment is None:
        raise PermanentError(f"Deployment {ctx.names.target} is gone: somebody deleted it")
    pods = pods_of(ctx.kube, ctx.plan.namespace, deployment)
    ready = sorted((each for each in pods if is_ready(each)), key=lambda pod: str(pod["metadata"]["name"]))
    if len(ready) < ctx.plan.target_replicas:
        return _wait_for_pods(ctx, pods, len(ready))
    return _warm(ctx, record, ready)


def _wait_for_pods(ctx: Context, pods: list[Object], ready: int) -> Outcome:
    for pod in pods:
        _refuse_hopeless(ctx, pod)
    waiting = [each for each in pods if not is_ready(each)]
    detail = _progress(ctx, waiting[0]) if waiting else "the pods are not made yet"
    return Waiting(3.0, f"{ready} of {ctx.plan.target_replicas} TPU replicas are ready; {detail}")


def _refuse_hopeless(ctx: Context, pod: Object) -> None:
    name = pod["metadata"]["name"]
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        last = (status.get("lastState") or {}).get("terminated") or {}
        now = (status.get("state") or {}).get("waiting") or {}
        out_of_memory = last.get("reason") == "OOMKilled"
        if not out_of_memory and status.get("restartCount", 0) < _MAX_RESTARTS:
            continue
        tail = ctx.kube.pod_log(ctx.plan.namespace, name, status["name"], tail_lines=5).strip()
        why = "ran out of memory" if out_of_memory else f"keeps crashing ({now.get('reason', 'restarting')})"
        raise PermanentError(
            f"container {status['name']} of pod {name} {why}: exit code {last.get('exitCode')}; its last words: "
            f"{tail[-600:] or 'none'}; lower --max-model-len or --max-num-seqs, or take a larger slice"
        )


def _progress(ctx: Context, pod: Object) -> str:
    """Say what a pod that is not ready is doing, in its own words where it has any."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{name} finds no node: {condition.get('message', '')}"
    for container in status.get("containerStatuses") or []:
        if waiting := (container.get("state") or {}).get("waiting"):
            return f"{name}: {waiting.get('reason', 'waiting')} {waiting.get('message', '')}".strip()
    lines = ctx.kube.pod_log(ctx.plan.namespace, name, tail_lines=20).splitlines()
    told = [found.group(0) for line in lines if (found := _PROGRESS.search(line))]
    return f"{name}: {told[-1][:120] if told else 'starting'}"


def _check_served(ctx: Context, record: Record, pods: list[str]) -> None:
    vllm = Vllm(ctx.kube, ctx.plan.namespace, record.source.port)
    for pod in pods:
        served = vllm.models(pod)
        lost = set(record.source.served_names) - set(served)
        if lost:
            raise PermanentError(
                f"pod {pod} serves {sorted(served)}: clients that ask for {sorted(lost)} would get 404"
            )
        shorter = {n: length for n, length in served.items() if _shorter(length, record.source.max_model_len)}
        if shorter:
            raise PermanentError(
                f"pod {pod} serves a context of {shorter}, the source {record.source.max_model_len}: longer prompts "
                "would be refused"
            )


def _shorter(length: int | None, wanted: int | None) -> bool:
    return length is not None and wanted is not None and length < wanted


def _warm(ctx: Context, record: Record, pods: list[Object]) -> Outcome:
    """Run pass after pass on every pod; the counts of compiles so far are in the record."""
    passes: list[dict[str, int]] = list(record.notes.get("compiles") or [])
    number = len(passes) + 1
    if not passes:
        _check_served(ctx, record, [each["metadata"]["name"] for each in pods])
        at_start = _compiles(ctx, pods)
        ctx.update(lambda r: replace(r, notes={**r.notes, "compiles": [at_start]}))
        return Waiting(0, "the engines are ready")
    arguments = ["--shapes=" + shapes(ctx), f"--output-tokens={_OUTPUT_TOKENS}", "--ignore-eos", "--seed=1"]
    model = record.source.served_names[0]
    finished = 0
    for index, pod in enumerate(pods):
        address = pod["status"]["podIP"]
        url = [f"--url=http://{address}:{record.source.port}", f"--model={model}"]
        run = run_block(ctx, f"warm-{number - 1}-{index}", [*url, *arguments], _PASS_DEADLINE_S)
        if run is None:
            continue
        if bad := [each for each in run.results if not each.ok]:
            raise PermanentError(
                f"warm-up pass {number - 1}: {len(bad)} of {len(run.results)} requests to pod "
                f"{pod['metadata']['name']} failed, first: {bad[0].error}"
            )
        finished += 1
    if finished < len(pods):
        return Waiting(1.0, f"warm-up pass {number - 1}: {finished} of {len(pods)} replicas driven through every shape")
    compiled = _compiles(ctx, pods)
    growth = [compiled[name] - passes[-1].get(name, 0) for name in compiled]
    fresh = sum(growth)
    passes.append(compiled)
    if not any(growth):  # a log that was rotated shows fewer: that proves nothing either
        _check_served(ctx, record, list(compiled))
        return _finish(ctx, passes)
    if number > _MAX_PASSES:
        raise PermanentError(
            f"the engines still compile after {number - 1} warm-up passes ({fresh} programs in the last one): "
            "users would meet stalls; raise VLLM_TPU_BUCKET_PADDING_GAP, or fix --max-num-batched-tokens"
        )
    ctx.update(lambda r: replace(r, notes={**r.notes, "compiles": passes}))
    return Waiting(0, f"warm-up pass {number - 1} compiled {fresh} programs; once more")


def _finish(ctx: Context, passes: list[dict[str, int]]) -> Outcome:
    at_start = sum(passes[0].values())
    in_passes = sum(passes[-1].values()) - at_start
    result: dict[str, Any] = {"compiled_at_start": at_start, "compiled_by_requests": in_passes}
    result["passes"] = len(passes) - 1
    ctx.update(lambda r: replace(r.moved_to(Phase.WARM), notes={**r.notes, "compiles": passes, "warm_up": result}))
    return Done(result)


def _compiles(ctx: Context, pods: list[Object]) -> dict[str, int]:
    """Count the programs that each pod's log says were compiled; PermanentError if one tells of none."""
    names = [each["metadata"]["name"] for each in pods]
    logs = ctx.together([lambda n=name: ctx.kube.pod_log(ctx.plan.namespace, n) for name in names])  # type: ignore[misc]
    compiled = {name: len(COMPILED.findall(text)) for name, text in zip(names, logs, strict=True)}
    if silent := sorted(name for name, count in compiled.items() if not count):
        raise PermanentError(
            f"the log of {', '.join(silent)} tells of no compiled program: nothing would show whether users meet "
            "compiles; is JAX_LOG_COMPILES=1 set, and does the image log to its standard output?"
        )
    return compiled


def shapes(ctx: Context) -> str:
    """Return the shapes of the warm-up, prompt tokens x concurrency: from short to four times the usual prompt."""
    longest = min(4 * ctx.plan.prompt_tokens, 16_384)
    lengths = [2**power for power in range(5, 15) if 2**power <= longest] or [32]
    lengths = lengths[-4:]
    # Little's law with a generous 30 ms a token; an engine pads its batch to powers of two.
    busiest = ctx.plan.peak_rps * ctx.plan.output_tokens * 0.03 / ctx.plan.target_replicas
    top = max(1, min(6, math.ceil(math.log2(max(busiest, 1)))))
    together = sorted({1, 2 ** (top // 2), 2**top})
    return ",".join(f"{length}x{count}" for length in lengths for count in together)
