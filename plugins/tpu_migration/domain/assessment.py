"""Put fit, cost, lost features and translation together into one verdict on a migration."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tpu_migration.domain import cost, features
from tpu_migration.domain.accelerators import Accelerators, Gpu, Slice
from tpu_migration.domain.cost import CostRow, Machine, Overlap, Throughput
from tpu_migration.domain.features import BLOCKER, FeatureTable, Gap, Workload
from tpu_migration.domain.fit import (
    DOES_NOT_FIT,
    FITS,
    TIGHT,
    Fit,
    Serving,
    Shape,
    fit,
    fit_all,
    place_of_gpus,
    place_of_slice,
    smallest,
)
from tpu_migration.domain.plan import Plan
from tpu_migration.domain.translation import Finding, Source

SOURCE = "source"
# Room above the peak, as the gate's policies ask for.
_HEAD_ROOM = 1.2


@dataclass(frozen=True)
class Subject:
    """Hold what is to be moved and onto what, everything read: shapes, arguments, table, prices.

    `serving` is what the target will be started with (as translated), `source_serving` what the source has now;
    without a `source` the comparison takes H100s for it. `gpus` is how many a GPU target has.
    """

    model: str
    shape: Shape
    serving: Serving
    target: Slice | Gpu
    gpus: int = 1
    target_replicas: int = 1
    source: Source | None = None
    source_shape: Shape | None = None
    source_serving: Serving | None = None
    workload: Workload | None = None
    translation_blockers: tuple[Finding, ...] = ()
    kind: str = "on-demand"
    region: str = ""
    peak_rps: float = 0.0
    output_tokens: int = 256
    throughputs: Mapping[str, Throughput] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)


@dataclass(frozen=True)
class Assessment:
    """Hold the verdict on a migration and everything that it rests on."""

    model: str
    target: str
    verdict: str  # fits, tight, does_not_fit, or blocked
    sentence: str
    recommended: str | None
    recommendation: str
    target_fit: Fit
    source_fit: Fit | None
    fits: tuple[Fit, ...]
    costs: tuple[CostRow, ...]
    source_is_assumed: bool
    overlap: Overlap | None
    gaps: tuple[Gap, ...]
    translation_blockers: tuple[Finding, ...]
    would_change: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Tell whether nothing forbids the migration; tight is no prohibition."""
        return self.verdict in {FITS, TIGHT}


def assess(subject: Subject, known: Accelerators, table: FeatureTable, today: dt.date) -> Assessment:
    """Judge a migration; pure, `today` tells the age of prices."""
    region = subject.region or known.region
    slices = fit_all(subject.shape, subject.serving, known.slices)
    on_gpu = replace(subject.source_serving or subject.serving, tensor_parallel=None)
    gpus = {gpu.name: smallest(subject.source_shape or subject.shape, on_gpu, gpu) for gpu in known.gpus}
    target_fit = _target_fit(subject)
    gaps = _gaps(subject, table)
    source, source_fit, assumed = _source(subject, known, gpus)
    machines = _machines(subject, known, source, slices, gpus)
    throughputs = {**cost.published_throughputs(known, subject.model), **subject.throughputs}
    name = source.accelerator.name
    if SOURCE not in throughputs and name in throughputs and name not in {machine.name for machine in machines}:
        throughputs[SOURCE] = throughputs[name]  # the source stands for its kind of GPU in the table
    rows = [(machine, _replicas(subject, machine, throughputs)) for machine in machines]
    costs = cost.compare(rows, subject.kind, region, today, throughputs)
    target_row = next((row for row in rows if row[0].name == _target_name(subject)), None)
    both = None
    if target_row is not None and target_fit.verdict != DOES_NOT_FIT:
        both = cost.overlap(rows[0], target_row, subject.kind, region, subject.plan)
    best = _recommended(slices, known, subject.kind, region)
    blocked = bool(subject.translation_blockers) or any(gap.severity == BLOCKER for gap in gaps)
    verdict = target_fit.verdict if target_fit.verdict == DOES_NOT_FIT or not blocked else "blocked"
    return Assessment(
        model=subject.model,
        target=_target_name(subject),
        verdict=verdict,
        sentence=_sentence(subject, target_fit, verdict),
        recommended=best.place.name if best else None,
        recommendation=_recommendation(best, known, subject.kind, region),
        target_fit=target_fit,
        source_fit=source_fit,
        fits=tuple([*slices, *gpus.values()]),
        costs=tuple(costs),
        source_is_assumed=assumed,
        overlap=both,
        gaps=tuple(gaps),
        translation_blockers=subject.translation_blockers,
        would_change=tuple(_would_change(subject, target_fit, best, gaps, costs)),
        warnings=tuple(_warnings(machines, known, region, today)),
    )


def _target_name(subject: Subject) -> str:
    return subject.target.name


def _target_fit(subject: Subject) -> Fit:
    if isinstance(subject.target, Slice):
        return fit(subject.shape, subject.serving, place_of_slice(subject.target))
    return fit(subject.shape, subject.serving, place_of_gpus(subject.target, subject.gpus))


def _gaps(subject: Subject, table: FeatureTable) -> list[Gap]:
    if not isinstance(subject.target, Slice):
        return []
    workload = subject.workload or Workload(None, subject.model, subject.shape, subject.serving.text_only)
    return features.analyse(table, workload, subject.target.generation)


def _source(subject: Subject, known: Accelerators, gpus: Mapping[str, Fit]) -> tuple[Machine, Fit | None, bool]:
    """Find the machine that the comparison starts from: the source's own GPUs, else H100s (assumed)."""
    source = subject.source
    gpu = known.gpu_by_label(source.accelerator) if source else None
    if source is None or gpu is None or not source.chips:
        found = gpus["h100"]
        return Machine(SOURCE, known.gpu("h100"), found.place.chips, f"H100 x{found.place.chips} (assumed)"), None, True
    machine = Machine(SOURCE, gpu, source.chips, f"{gpu.name} x{source.chips} (as it is)")
    if subject.source_shape is None or subject.source_serving is None:
        return machine, None, False
    place = place_of_gpus(gpu, source.chips)
    serving = replace(subject.source_serving, tensor_parallel=subject.source_serving.tensor_parallel or source.chips)
    return machine, fit(subject.source_shape, serving, place), False


def _machines(
    subject: Subject, known: Accelerators, source: Machine, slices: Sequence[Fit], gpus: Mapping[str, Fit]
) -> list[Machine]:
    """List what is priced: the source, each kind of GPU, each slice; only what the model fits, and the target."""
    target = _target_name(subject)
    listed = [source]
    for gpu in known.gpus:
        found = gpus[gpu.name]
        if gpu.name == target:
            listed.append(Machine(gpu.name, gpu, subject.gpus, f"{gpu.name} x{subject.gpus}"))
        elif found.verdict != DOES_NOT_FIT and (gpu, found.place.chips) != (source.accelerator, source.chips):
            listed.append(Machine(gpu.name, gpu, found.place.chips, found.place.name))
    for each, found in zip(known.slices, slices, strict=True):
        if found.verdict != DOES_NOT_FIT or each.name == target:
            listed.append(Machine(each.name, each, each.chips, f"{each.name} ({found.verdict.replace('_', ' ')})"))
    return listed


def _replicas(subject: Subject, machine: Machine, throughputs: Mapping[str, Throughput]) -> int:
    """Count replicas: as many as the peak needs where a throughput is known, else one for each of the source's."""
    if machine.name == SOURCE:
        return max(1, subject.source.replicas) if subject.source else 1
    known = throughputs.get(machine.name)
    if known is not None and known.tokens_per_s > 0 and subject.peak_rps > 0:
        wanted = subject.peak_rps * subject.output_tokens * _HEAD_ROOM
        return max(1, math.ceil(wanted / known.tokens_per_s))
    return subject.target_replicas


def _recommended(slices: Sequence[Fit], known: Accelerators, kind: str, region: str) -> Fit | None:
    """Choose the cheapest slice that fits well, else the largest that is tight; without a price the fewest chips."""
    for wanted in (FITS, TIGHT):
        found = [each for each in slices if each.verdict == wanted]
        if wanted == TIGHT:
            return max(found, key=lambda each: each.head_room_gib, default=None)
        if found:
            return min(found, key=lambda each: (_hourly(each, known, kind, region), each.place.chips))
    return None


def _hourly(found: Fit, known: Accelerators, kind: str, region: str) -> float:
    usd = known.slice(found.place.name).usd_per_hour(kind, region)
    return math.inf if usd is None else usd


def _recommendation(best: Fit | None, known: Accelerators, kind: str, region: str) -> str:
    if best is None:
        return "no slice of one host holds this model: keep it on GPU, or take a smaller or quantized checkpoint"
    usd = _hourly(best, known, kind, region)
    price = f"${usd:.2f} an hour {kind}" if math.isfinite(usd) else f"no {kind} price known"
    how = "the cheapest slice that fits" if best.verdict == FITS else "the roomiest slice, tight as it is"
    return f"{best.place.name}: {how}, {price}"


def _sentence(subject: Subject, found: Fit, verdict: str) -> str:
    name, length = found.place.name, subject.serving.max_model_len
    if found.verdict == DOES_NOT_FIT:
        return f"{subject.model} does not fit {name}: {'; '.join(found.reasons)}"
    room = (
        f"{found.weights_gib:.1f} GiB of weights, {found.kv_gib:.1f} GiB for KV cache:"
        f" {found.kv_tokens:,} tokens, {_count(found.concurrency, 'request')} of {length:,} at once"
    )
    word = "fits" if found.verdict == FITS else "is tight on"
    tail = f"; {'; '.join(found.reasons)}" if found.verdict == TIGHT else ""
    blocked = ", but something blocks the migration (below)" if verdict == "blocked" else ""
    return f"{subject.model} {word} {name}{blocked}: {room}{tail}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _would_change(
    subject: Subject, found: Fit, best: Fit | None, gaps: Sequence[Gap], costs: Sequence[CostRow]
) -> list[str]:
    """List what would turn the verdict, for the better or the worse."""
    said = [f"{gap.title}: {gap.remedy}" for gap in gaps if gap.severity == BLOCKER]
    said += [f"{each.path}: {each.remedy}" for each in subject.translation_blockers if each.remedy]
    length = subject.serving.max_model_len
    if found.verdict != FITS and best is not None and best.place.name != found.place.name:
        said.append(f"--target {best.place.name}: the model {'fits' if best.verdict == FITS else 'is tight'} there")
    if found.verdict != FITS and 0 < found.largest_context < 2 * length:
        half = found.largest_context // 2 // 1024 * 1024 or found.largest_context // 2
        said.append(f"--max-model-len {half}: two requests of that length find room on {found.place.name}")
    if found.verdict != FITS and subject.shape.vision and not subject.serving.text_only:
        gain = subject.shape.vision.parameters * 2 / 1024**3
        said.append(f"--text-only, if no user sends images: {gain:.1f} GiB of vision tower are not loaded")
    if found.verdict == FITS and found.largest_context < (subject.shape.max_position or math.inf):
        said.append(f"a context beyond {found.largest_context:,} tokens: no single request of that length fits")
    row = next((each for each in costs if each.name == _target_name(subject)), None)
    if row is not None and row.break_even is not None and found.verdict != DOES_NOT_FIT:
        said.append(_break_even(row))
    return said


def _break_even(row: CostRow) -> str:
    share = f"a replica that carries less than {row.break_even:.0%} of what a source replica does"
    if row.break_even_tokens_per_s is not None:
        share += f" ({row.break_even_tokens_per_s:,.0f} tok/s)"
    return f"{share}: from there on {row.name} is dearer a token"


def _warnings(machines: Sequence[Machine], known: Accelerators, region: str, today: dt.date) -> list[str]:
    said = cost.contradicted_claims(known, region)
    old = cost.old_prices(machines, region, today)
    if old:
        said.append(f"prices of {', '.join(old)} are older than 90 days: compare them with the list, or give --prices")
    return said
