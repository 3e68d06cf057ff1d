"""Wait until the TPU replicas answer, then drive every shape until nothing compiles and two windows agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tpu_migration.bench.results import BenchRun
from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Object
from tpu_migration.clients.vllm import Vllm, parse_metrics, parse_stalls
from tpu_migration.domain import engine_trouble as trouble
from tpu_migration.domain.compile_log import CompileLog, programs_in, read_compile_log
from tpu_migration.domain.phases import Phase
from tpu_migration.domain.warmth import (
    Change,
    Mark,
    Traffic,
    WarmUp,
    compiled_between,
    shapes,
    stalled_between,
    typical_change,
    written,
)
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.record import Record
from tpu_migration.stages.base import Context, Done, Outcome, Waiting
from tpu_migration.stages.live_traffic import live_traffic
from tpu_migration.stages.load import run_block
from tpu_migration.stages.objects import serving_container
from tpu_migration.stages.peak import peak_rps
from tpu_migration.stages.replicas import log_before_the_end, ready_replicas, refuse, refuse_if_ended_for_good

_SETTLING_PASSES = 5  # for latencies to settle; the gate judges them in any case
MAX_PASSES = 10  # for the compiles to end: how requests share a step is chance, and a rare step may come late
_OUTPUT_TOKENS = 8
_PASS_DEADLINE_S = 1800.0
_ANSWER_PATIENCE_S = 300.0  # as long as a request of a pass may take
_SEED = 700_000  # far from the gate's seeds: no prompt is sent twice, or a prefix cache would answer
_UNKNOWN_TPOT_S = 0.03  # where the source has not told yet how long its users' requests stay

Marks = Mapping[str, Mark]


def step(ctx: Context) -> Outcome:
    """Wait for ready pods, prove that they serve, then run passes until they are warm."""
    record = ctx.expect(Phase.DEPLOYED)
    if record is None:
        return Done()
    deployment = ctx.kube.get(k8s.DEPLOYMENTS, ctx.names.target, ctx.plan.namespace)
    if deployment is None:
        raise PermanentError(f"Deployment {ctx.names.target} is gone: somebody deleted it")
    pods = ready_replicas(ctx, deployment, ctx.plan.target_replicas)
    if isinstance(pods, Waiting):
        return pods
    passes: list[Marks] = [
        {pod: Mark.from_dict(mark) for pod, mark in marks.items()} for marks in record.notes.get("warm_marks") or []
    ]
    if not passes:
        return _begin(ctx, record, pods)
    return _drive(ctx, record, pods, passes)


def _begin(ctx: Context, record: Record, pods: list[Object]) -> Outcome:
    """Prove that each engine serves, and note what it compiled at its start, and what it is to be driven with."""
    _prove_serving(ctx, record, [_name(each) for each in pods])
    logs = _logs(ctx, record, pods)
    if silent := sorted(name for name, log in logs.items() if not log.programs):
        raise PermanentError(
            f"the log of {', '.join(silent)} tells of no compiled program: nothing would show whether users meet "
            "compiles; is JAX_LOG_COMPILES=1 set, and does the image log to its standard output?"
        )
    told = next(iter(logs.values()))
    traffic, origin = _traffic(ctx, record)
    driven = shapes(traffic, ctx.plan.target_replicas, told.token_buckets, told.batch_buckets)
    marks = _marks(ctx, record, logs)
    warm_up = WarmUp(written(driven), origin, told.token_buckets, told.batch_buckets)
    notes = {"warm_marks": [_as_note(marks)], "warm_up": warm_up.to_dict()}
    ctx.update(lambda r: replace(r, notes={**r.notes, **notes}))
    return Waiting(0, "the engines are ready")


def _prove_serving(ctx: Context, record: Record, pods: list[str]) -> None:
    """Check what is served; a server that is ready and gives no answer is waited for a while only."""
    try:
        _check_served(ctx, record, pods)
    except TransientError as error:
        since = ctx.memory.setdefault("unanswered_since", ctx.clock.monotonic())
        if (lasting_s := ctx.clock.monotonic() - since) < _ANSWER_PATIENCE_S:
            raise
        raise PermanentError(
            f"{error}; it is ready and has given no answer for {lasting_s:.0f} s: it hangs, or its port is not "
            "reached; read the pod's log"
        ) from error


def _check_served(ctx: Context, record: Record, pods: list[str]) -> None:
    """Refuse engines that serve other names or a shorter context than the source, or that give no answer."""
    vllm = Vllm(ctx.kube, ctx.plan.namespace, record.source.port)
    wanted = record.source.max_model_len
    for pod in pods:
        served = vllm.models(pod)
        lost = set(record.source.served_names) - set(served)
        if lost:
            raise PermanentError(
                f"pod {pod} serves {sorted(served)}: clients that ask for {sorted(lost)} would get 404"
            )
        shorter = {name: length for name, length in served.items() if wanted and (length or 0) < wanted}
        if shorter:
            raise PermanentError(
                f"pod {pod} serves a context of {shorter}, the source {wanted}: longer prompts would be refused"
            )
        if vllm.complete(pod, record.source.served_names[0], "ping", 1) != 1:
            raise TransientError(f"pod {pod} is ready and completes nothing")


def _traffic(ctx: Context, record: Record) -> tuple[Traffic, str]:
    """Return what users send, and the plan's own length: the gate may send that."""
    live = live_traffic(ctx, record)
    plan = ctx.plan
    prompts = [(plan.prompt_tokens, plan.prompt_tokens)]
    if live.prompt is not None:
        prompts += [(low, high) for low, high, _ in live.prompt.bins]
    stay_s = live.stay_s if live.stay_s is not None else plan.output_tokens * _UNKNOWN_TPOT_S
    origin = live.origin if live.prompt is not None else f"the plan: {live.origin}"
    return Traffic(tuple(prompts), peak_rps(ctx, record), stay_s), origin


# ------------------------------------------------------------------------------------- passes


def _drive(ctx: Context, record: Record, pods: list[Object], passes: list[Marks]) -> Outcome:
    """Run the next pass on every pod; what the engines had done before it is in the record."""
    number, before = len(passes), passes[-1]
    runs = _run_pass(ctx, record, number, pods)
    for pod in pods:
        if (run := runs[_name(pod)]) is not None:
            _refuse_failures(ctx, record, number, pod, run, before.get(_name(pod)))
    finished = {pod: run for pod, run in runs.items() if run is not None}
    if len(finished) < len(pods):
        return Waiting(
            1.0, f"warm-up pass {number}: {len(finished)} of {len(pods)} replicas driven through every shape"
        )
    after = _marks(ctx, record, _logs(ctx, record, pods))
    compiled = _sum(compiled_between(before.get(pod), mark) for pod, mark in after.items())
    changes = _changes(ctx, record, number, pods, finished)
    passes = [*passes, after]
    if compiled == 0 and _settled(changes, before, after):
        return _finish(ctx, record, passes, changes, settled=True)
    if number < _SETTLING_PASSES or (compiled != 0 and number < MAX_PASSES):
        ctx.update(lambda r: replace(r, notes={**r.notes, "warm_marks": [_as_note(marks) for marks in passes]}))
        return Waiting(0, f"warm-up pass {number}: {_told(compiled, changes)}; once more")
    if compiled != 0:
        raise PermanentError(
            f"the engines still compile after {number} warm-up passes ({_told(compiled, changes)}): users would meet "
            "stalls; raise VLLM_TPU_BUCKET_PADDING_GAP, or fix --max-num-batched-tokens"
        )
    return _finish(ctx, record, passes, changes, settled=False)


def _run_pass(ctx: Context, record: Record, number: int, pods: list[Object]) -> dict[str, BenchRun | None]:
    """Return what each pod's Job of a pass measured, None while it runs."""
    arguments = [
        f"--model={record.source.served_names[0]}",
        f"--shapes={record.notes['warm_up']['shapes']}",
        f"--output-tokens={_OUTPUT_TOKENS}",
        "--ignore-eos",
        f"--seed={_SEED + number}",
    ]
    found = {}
    for pod in pods:
        url = f"--url=http://{pod['status']['podIP']}:{record.source.port}"
        block = f"warm-{number}-{_name(pod).rpartition('-')[2]}"  # another pod in its place gets a Job of its own
        found[_name(pod)] = run_block(ctx, block, [url, *arguments], _PASS_DEADLINE_S)
    return found


def _refuse_failures(
    ctx: Context, record: Record, number: int, pod: Object, run: BenchRun, before: Mark | None
) -> None:
    """Raise PermanentError for a pass with failed requests, with what the engine's log says about them."""
    bad = [each for each in run.results if not each.ok]
    if not bad:
        return
    refuse_if_ended_for_good(ctx, pod)
    name, container = _name(pod), serving_container(pod, record.source.port)
    log = ctx.kube.pod_log(ctx.plan.namespace, name, container)
    compiled = programs_in(log) - (before.programs if before else 0)
    if compiled < 0:  # another process began meanwhile: what the one before it said counts
        log, compiled = log_before_the_end(ctx, name, container), 0
    found = trouble.of_failed_requests(len(bad), len(run.results), bad[0].error or "", log, compiled)
    raise refuse(name, replace(found, what=f"warm-up pass {number}: {found.what}"))


def _changes(
    ctx: Context, record: Record, number: int, pods: list[Object], finished: Mapping[str, BenchRun]
) -> list[Change] | None:
    """Return how each replica's typical TTFT and TPOT changed since the pass before; None if that is not known."""
    if number == 1:
        return None
    earlier = _run_pass(ctx, record, number - 1, pods)
    found = []
    for pod, run in finished.items():
        last = earlier[pod]
        for what in ("TTFT", "TPOT"):
            key = f"{what.lower()}_p50_s"
            change = typical_change(what, _figures(last, key), _figures(run, key)) if last else None
            if change is None:
                return None
            found.append(change)
    return found


def _figures(run: BenchRun, key: str) -> dict[str, float]:
    return {each["shape"]: each[key] for each in run.summary.get("shapes") or [] if each.get(key) is not None}


def _settled(changes: list[Change] | None, before: Marks, after: Marks) -> bool:
    """Tell whether the two windows agree, and no token of the second stood still."""
    if changes is None or not all(each.agrees for each in changes):
        return False
    return not any(stalled_between(before[pod], mark) for pod, mark in after.items() if pod in before)


def _told(compiled: int | None, changes: list[Change] | None) -> str:
    told = "its compiles cannot be told" if compiled is None else f"compiled {compiled} programs"
    if changes:
        told += f"; {max(changes, key=lambda each: each.size)}"
    return told


def _finish(
    ctx: Context, record: Record, passes: list[Marks], changes: list[Change] | None, *, settled: bool
) -> Outcome:
    """Check once more what is served, and write down what it took to get warm."""
    first, last = passes[0], passes[-1]
    _check_served(ctx, record, list(last))
    warm_up = replace(
        WarmUp.from_dict(record.notes["warm_up"]),
        passes=len(passes) - 1,
        settled=settled,
        change=str(max(changes, key=lambda each: each.size)) if changes else "",
        compiled_at_start=sum(mark.programs for mark in first.values()),
        compiled_by_requests=_sum(compiled_between(first.get(pod), mark) for pod, mark in last.items()),
        compile_s=round(sum(mark.seconds for mark in last.values()), 1),
        cache_hits=sum(mark.cache_hits for mark in last.values()),
        stalls=_sum(stalled_between(first[pod], mark) if pod in first else None for pod, mark in last.items()),
    )
    if not settled:
        ctx.log("warm, and not settled after %d passes: %s; the gate judges latency", warm_up.passes, warm_up.change)

    def warm(record: Record) -> Record:
        kept = {key: value for key, value in record.notes.items() if key != "warm_marks"}
        return replace(record.moved_to(Phase.WARM), notes={**kept, "warm_up": warm_up.to_dict()})

    ctx.update(warm)
    return Done(warm_up.to_dict())


# -------------------------------------------------------------------------------------- marks


def _logs(ctx: Context, record: Record, pods: list[Object]) -> dict[str, CompileLog]:
    port, read = record.source.port, ctx.kube.pod_log
    logs = ctx.together(
        [lambda p=pod: read(ctx.plan.namespace, _name(p), serving_container(p, port)) for pod in pods]  # type: ignore[misc]
    )
    return {_name(pod): read_compile_log(text) for pod, text in zip(pods, logs, strict=True)}


def _marks(ctx: Context, record: Record, logs: Mapping[str, CompileLog]) -> Marks:
    """Look at each engine: what it compiled, by its log, and how often it stalled, by its counters."""
    vllm = Vllm(ctx.kube, ctx.plan.namespace, record.source.port)
    pages = ctx.together([lambda n=name: vllm.page(n) for name in logs])  # type: ignore[misc]
    return {
        pod: Mark(log.programs, log.seconds, log.cache_hits, parse_stalls(page), parse_metrics(page).started_at)
        for (pod, log), page in zip(logs.items(), pages, strict=True)
    }


def _as_note(marks: Marks) -> dict[str, Any]:
    return {pod: mark.to_dict() for pod, mark in marks.items()}


def _sum(counts: Any) -> int | None:
    """Add counts up; one that is not known makes the sum unknown."""
    known = list(counts)
    return None if None in known else sum(known)


def _name(pod: Object) -> str:
    return str(pod["metadata"]["name"])
