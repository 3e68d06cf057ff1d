"""See what has changed around a migrated workload since it was proven, besides how fast it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Object
from tpu_migration.clients.vllm import Vllm
from tpu_migration.clock import iso
from tpu_migration.domain.canary import Price, engine_findings, price_findings, trend_findings
from tpu_migration.domain.compile_log import read_compile_log
from tpu_migration.domain.gate import Check, Policy
from tpu_migration.domain.warmth import WarmUp, padding_findings
from tpu_migration.errors import TransientError
from tpu_migration.history import Canary, History, Identity
from tpu_migration.names import TARGET_ARM
from tpu_migration.record import Record
from tpu_migration.resources import accelerators
from tpu_migration.stages.base import Context
from tpu_migration.stages.engine_state import EngineState, engine_state, events_between
from tpu_migration.stages.objects import is_ready, pods_of, serving_container, template_hash


@dataclass(frozen=True)
class Around:
    """What serves now, what it costs, and what of that has changed, a sentence each."""

    identity: Identity | None
    engines: EngineState
    price: Price
    findings: tuple[str, ...]


def changes(ctx: Context, record: Record, policy: Policy, history: History, checks: Sequence[Check]) -> Around:
    """Look around and compare with the record and with earlier canaries of the same proof."""
    earlier = history.since(record.run_id)
    deployment = ctx.kube.get(k8s.DEPLOYMENTS, record.target, record.namespace)
    try:
        identity = _identity(ctx, record, deployment) if deployment else None
        engines = engine_state(ctx, record, TARGET_ARM) if deployment else {}
    except TransientError as error:
        ctx.log("%s", error)  # a dead engine must not keep its failure from being written down
        identity, engines = None, {}
    price = _price(record, policy, deployment)
    found = [*_served(record, identity), *_identity_findings(record, identity, earlier)]
    before, when = _counted_before(record, history, earlier)
    if before and engines:
        found += engine_findings(events_between(before, engines), when)
    found += _padding(ctx, record, deployment)
    found += price_findings(price.now, price.then, price.source_usd_per_million, price.ratio_limit)
    now = ctx.clock.now()
    series = {
        check.name: [*_series(earlier, check.name), (now, check.value)] for check in checks if check.value is not None
    }
    return Around(identity, engines, price.now, tuple([*found, *trend_findings(series, checks)]))


def _counted_before(record: Record, history: History, earlier: Sequence[Canary]) -> tuple[EngineState, str]:
    """Return what the engines had counted at the last canary of this proof, or when the gate had measured them."""
    if earlier:
        return {pod: dict(counts) for pod, counts in history.engines.items()}, f"since {iso(earlier[-1].at)}"
    return (record.notes.get("gate_after") or {}).get(TARGET_ARM) or {}, "since it passed the gate"


def _padding(ctx: Context, record: Record, deployment: Object | None) -> list[str]:
    """Compare the sizes that an engine says it pads to with those that the warm-up drove."""
    if deployment is None or not (note := record.notes.get("warm_up")):
        return []
    ready = [pod for pod in pods_of(ctx.kube, record.namespace, deployment) if is_ready(pod)]
    if not ready:
        return []
    name, container = ready[0]["metadata"]["name"], serving_container(ready[0], record.source.port)
    told = read_compile_log(ctx.kube.pod_log(record.namespace, name, container))
    return padding_findings(WarmUp.from_dict(note), told.token_buckets, told.batch_buckets)


def _series(earlier: Sequence[Canary], name: str) -> list[tuple[float, float]]:
    figures = [(each.at, each.figures[name].value) for each in earlier if name in each.figures]
    return [(at, value) for at, value in figures if value is not None]


def _identity(ctx: Context, record: Record, deployment: Object) -> Identity | None:
    """Return what serves; None while nobody is ready."""
    pods = [pod for pod in pods_of(ctx.kube, record.namespace, deployment) if is_ready(pod)]
    if not pods:
        return None
    vllm = Vllm(ctx.kube, record.namespace, record.source.port)
    first = pods[0]["metadata"]["name"]
    return Identity(
        template=template_hash(deployment),
        images=tuple(sorted({_image(pod, record.source.port) for pod in pods})),
        version=vllm.version(first),
        models=tuple(sorted(vllm.models(first))),
    )


def _image(pod: Object, port: int) -> str:
    name = serving_container(pod, port)
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    seen: Object = next((each for each in statuses if each["name"] == name), {})
    spec = next(each for each in pod["spec"]["containers"] if each["name"] == name)
    return str(seen.get("imageID") or spec.get("image", ""))


def _served(record: Record, identity: Identity | None) -> list[str]:
    if identity is None or not (lost := sorted(set(record.source.served_names) - set(identity.models))):
        return []
    return [f"{record.target} no longer serves {', '.join(lost)}: clients that ask for it get 404"]


def _identity_findings(record: Record, now: Identity | None, earlier: Sequence[Canary]) -> list[str]:
    """Compare with the proof, and with the first canary that knew more than the record does."""
    if now is None:
        return []
    found = []
    if record.template_hash and now.template != record.template_hash:
        found.append(f"the pod template of {record.target} is not the one that passed the gate")
    first = next((each.identity for each in earlier if each.identity), None)
    for what in ("images", "version", "models"):
        then = getattr(first, what, None)
        if then and then != getattr(now, what):
            found.append(f"{what}: {_told(getattr(now, what))}, {_told(then)} at the first canary")
    return found


def _told(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


@dataclass(frozen=True)
class _Prices:
    now: Price
    then: Price
    source_usd_per_million: float | None
    ratio_limit: float | None


def _price(record: Record, policy: Policy, deployment: Object | None) -> _Prices:
    """Price the live replicas by today's list; tokens a second are those that were proven, at the peak."""
    costs = (record.notes.get("evidence") or {}).get("costs") or {}
    then, baseline = costs.get("candidate") or {}, costs.get("baseline") or {}
    replicas = (deployment["spec"].get("replicas", 1) if deployment else None) or record.plan["target_replicas"]
    one = accelerators().slice(record.plan["target"]).usd_per_hour(record.pricing)
    gpu = accelerators().gpu_by_label(record.source.accelerator)
    source = gpu.usd_per_hour(record.pricing, record.source.chips * record.source.replicas) if gpu else None
    hour = None if one is None else one * replicas
    return _Prices(
        Price(hour, _per_million(hour, then.get("tokens_per_s"))),
        Price(then.get("usd_per_hour"), then.get("usd_per_million")),
        _per_million(source, baseline.get("tokens_per_s")),
        policy.cost.ratio_limit if policy.cost else None,
    )


def _per_million(usd_per_hour: float | None, tokens_per_s: float | None) -> float | None:
    return usd_per_hour / (tokens_per_s * 3600) * 1e6 if usd_per_hour and tokens_per_s else None
