"""See where users are: the counters of both arms, their endpoints, and the prober, in one look."""

from __future__ import annotations

from collections.abc import Mapping

from tpu_migration.clients.kubernetes import ENDPOINT_SLICES, Kubernetes, Object
from tpu_migration.clients.vllm import Vllm
from tpu_migration.domain.watch import ArmSample, Limits, PodSample, ProbeSample, Sample, Watch
from tpu_migration.errors import ThrottledError, TransientError
from tpu_migration.names import SOURCE_ARM, TARGET_ARM
from tpu_migration.record import Record
from tpu_migration.resources import policy
from tpu_migration.stages.base import Context
from tpu_migration.stages.probes import MAIN_ARM, ArmStats, prober_stats

_COMPLETION_EVERY_S = 10.0
_BROKEN_OFF = ("abort", "error")  # values of finished_reason: a client's or the server's end, and an engine's failure


def watch_of(ctx: Context) -> Watch:
    """Return what this worker's looks so far are judged by."""
    if "watch" not in ctx.memory:
        slo = policy(ctx.plan.policy).slo
        limit_ms = slo.ttft_limit_ms if slo else 5000.0
        ctx.memory["watch"] = Watch(Limits(ttft_limit_s=limit_ms / 1000))
    found: Watch = ctx.memory["watch"]
    return found


def look(ctx: Context, record: Record, *, ask_sources: bool = True) -> Sample:
    """Scrape every pod of both arms side by side and ask the prober; what does not answer is None.

    `ask_sources=False` leaves out the real completions, where only the counters matter and time is short.
    """
    kube, namespace = ctx.kube, ctx.plan.namespace
    services = (record.source.service, record.target)
    selector = f"kubernetes.io/service-name in ({','.join(services)})"
    slices = kube.list(ENDPOINT_SLICES, namespace, labels=selector)
    pods = {service: _pods(slices, service) for service in services}
    vllm = Vllm(kube, namespace, record.source.port)
    # First what this product asks itself, then the counters: they have seen it by then.
    sources = [n for n, has in pods[services[0]].items() if has.get("ready")] if ask_sources else []
    dead = _complete_on_sources(ctx, record, kube, sources)
    everyone = [name for service in services for name in pods[service]]
    scrapes = [lambda n=n: _scrape(vllm, n) for n in everyone]
    *answers, stats = ctx.together([*scrapes, lambda: prober_stats(ctx)])
    scraped: dict[str, PodSample | None] = dict(zip(everyone, answers, strict=True))
    # Who was there at this worker's first look counts from then on; who came later, once it has answered.
    known: set[str] = ctx.memory.setdefault("known_pods", set(everyone))
    known.update(name for name, pod in scraped.items() if pod is not None)
    arms: Mapping[str, ArmStats] = stats.arms if stats else {}
    probe = None
    if main := arms.get(MAIN_ARM):
        target = arms.get(TARGET_ARM)
        probe = ProbeSample(
            main.failed,
            main.consecutive_failures,
            main.last_ok_s_ago,
            main.last_error or "",
            target_failed=target.failed if target else 0,
            target_last_error=(target and target.last_error) or "",
            long_ok=main.long_ok,
            long_failed=main.long_failed,
        )
    completions = float(ctx.memory.get("completions", 0))

    def side(service: str, name: str, own: float) -> ArmSample:
        probed = arms.get(name)
        if probed:  # a prober that is silent for a moment has not unmade its requests
            _count(ctx, name, probed.ok + probed.failed + probed.in_flight)
        return ArmSample(
            ready=sum(bool(has.get("ready")) for has in pods[service].values()),
            # One that came later, is not ready and has never answered is still starting: nobody is sent to it.
            pods={pod: scraped[pod] for pod, has in pods[service].items() if has.get("ready") or pod in known},
            leaving=frozenset(pod for pod, has in pods[service].items() if has.get("terminating")),
            own=own + sum(ctx.memory.get(f"probed_{name}", (0, 0))),
            own_in_flight=float(probed.in_flight) if probed else 0.0,
        )

    return Sample(
        at=ctx.clock.monotonic(),
        source=side(services[0], SOURCE_ARM, completions),
        target=side(services[1], TARGET_ARM, 0.0),
        probe=probe,
        dead_sources=dead,
    )


def _count(ctx: Context, arm: str, sent: int) -> None:
    """Note how many probes were sent so far, those of a prober that was replaced among them."""
    before, last = ctx.memory.get(f"probed_{arm}", (0, 0))
    ctx.memory[f"probed_{arm}"] = (before + last if sent < last else before, sent)


def _pods(slices: list[Object], service: str) -> dict[str, Object]:
    """Return the pods behind a Service, each with its endpoint's conditions (`ready`, `terminating`)."""
    found: dict[str, Object] = {}
    for one in slices:
        if one["metadata"].get("labels", {}).get("kubernetes.io/service-name") != service:
            continue
        for endpoint in one.get("endpoints") or []:
            reference = endpoint.get("targetRef") or {}
            if reference.get("kind") == "Pod":
                found[reference["name"]] = endpoint.get("conditions") or {}
    return found


def _scrape(vllm: Vllm, pod: str) -> PodSample | None:
    try:
        metrics = vllm.metrics(pod)
    except TransientError:
        return None
    return PodSample(
        first_tokens=metrics.first_tokens,
        running=metrics.running,
        waiting=metrics.waiting,
        aborted=sum(metrics.finished.get(reason, 0.0) for reason in _BROKEN_OFF),
        finished=sum(metrics.finished.values()),
        started_at=metrics.started_at,
        ttft_buckets=metrics.ttft_buckets,
    )


def _complete_on_sources(ctx: Context, record: Record, kube: Kubernetes, pods: list[str]) -> Mapping[str, str]:
    """Ask each source replica for a real completion every ten seconds: Ready alone proves too little.

    One failure may be bad luck; the second in a row is reported. An API server that throttles has asked nobody.
    """
    now = ctx.clock.monotonic()
    if not pods or now - ctx.memory.get("completed_at", -1e9) < _COMPLETION_EVERY_S:
        return {}
    ctx.memory["completed_at"] = now
    vllm = Vllm(kube, ctx.plan.namespace, record.source.port)
    model = record.source.served_names[0]

    def ask(pod: str) -> str | None:
        try:
            vllm.complete(pod, model, "ping", 1)
        except ThrottledError:
            return None
        except TransientError as error:
            return str(error)
        return ""

    answers = dict(zip(pods, ctx.together([lambda p=p: ask(p) for p in pods]), strict=True))  # type: ignore[misc]
    unasked = [pod for pod, why in answers.items() if why is None]
    ctx.memory["completions"] = ctx.memory.get("completions", 0) + len(pods) - len(unasked)
    before: Mapping[str, str] = ctx.memory.get("failing_sources", {})
    failing = {pod: why for pod, why in answers.items() if why}
    ctx.memory["failing_sources"] = {**failing, **{pod: before[pod] for pod in unasked if pod in before}}
    if failing or unasked:
        ctx.memory["completed_at"] = now - _COMPLETION_EVERY_S + 1.0  # ask again soon
    return {pod: why for pod, why in failing.items() if pod in before}
