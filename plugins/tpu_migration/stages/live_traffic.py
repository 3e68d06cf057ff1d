"""Read from the source's own histograms what its users send: how long it is, and how long it takes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from tpu_migration.bench.lengths import Lengths
from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.vllm import Vllm, parse_lengths, parse_stay
from tpu_migration.errors import PermanentError
from tpu_migration.record import Record
from tpu_migration.stages.base import Context
from tpu_migration.stages.objects import pods_of

_LEAST_SEEN = 100  # requests, for the live histograms to stand for the users


@dataclass(frozen=True)
class LiveTraffic:
    """Lengths of prompts and answers, the mean seconds that a request stays, and where that is known from.

    None where too few users were seen.
    """

    prompt: Lengths | None
    output: Lengths | None
    stay_s: float | None
    origin: str


def live_traffic(ctx: Context, record: Record) -> LiveTraffic:
    """Add up the histograms of the source's pods; no prompt is ever read."""
    deployment = ctx.kube.get(k8s.DEPLOYMENTS, record.source.deployment, ctx.plan.namespace)
    if deployment is None:
        raise PermanentError(f"Deployment {record.source.deployment} is gone: somebody deleted it")
    vllm = Vllm(ctx.kube, ctx.plan.namespace, record.source.port)
    names = [pod["metadata"]["name"] for pod in pods_of(ctx.kube, ctx.plan.namespace, deployment)]
    pages: list[str] = ctx.together([lambda n=name: vllm.page(n) for name in names])  # type: ignore[misc]
    sums: dict[str, dict[float, float]] = {"prompt": defaultdict(float), "generation": defaultdict(float)}
    for page in pages:
        for kind, buckets in parse_lengths(page).items():
            for bound, count in buckets.items():
                sums[kind][bound] += count
    stays = [parse_stay(page) for page in pages]
    finished = sum(count for _, count in stays)
    stay_s = sum(seconds for seconds, _ in stays) / finished if finished >= _LEAST_SEEN else None
    seen = max(sums["prompt"].values(), default=0.0)
    # A prompt and an answer, both the longest, must still fit into the context together.
    context = record.source.max_model_len or 32_768
    prompt = Lengths.of_histogram(sums["prompt"], context - context // 2 - 16)
    output = Lengths.of_histogram(sums["generation"], context // 2)
    if seen < _LEAST_SEEN or prompt is None or output is None:
        return LiveTraffic(None, None, stay_s, f"the source's histograms hold {seen:.0f} requests only")
    return LiveTraffic(prompt, output, stay_s, f"{seen:.0f} requests of the source's users")
