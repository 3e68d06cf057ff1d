"""Prepare a plan: read the source's objects, translate them, find the models, and say what is to be assessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tpu_migration.domain.accelerators import AcceleratorError, Accelerators, Gpu, Slice
from tpu_migration.domain.assessment import Subject
from tpu_migration.domain.cost import Throughput
from tpu_migration.domain.features import Workload
from tpu_migration.domain.fit import ModelConfigError, Serving
from tpu_migration.domain.plan import Plan
from tpu_migration.domain.profiles import Profile, Profiles
from tpu_migration.domain.translation import (
    Finding,
    InputError,
    Manifest,
    Sizing,
    Translation,
    command_line,
    config_maps,
    describe_source,
    find_vllm_workload,
    is_tpu,
    translate,
)
from tpu_migration.domain.translation.arguments import CommandLine
from tpu_migration.models import FoundModel, find_model
from tpu_migration.translate_cli import DEFAULT_IMAGE

_CONTEXT_UNASKED = 32768
_SEQS = 256


@dataclass(frozen=True)
class Options:
    """Hold what people may ask for; None and 0 leave it to the source.

    `model` is the checkpoint that the target is to serve, or the only one where there is no source. `model_config`
    is its config.json. `throughputs` are output tokens a second of one replica, by the rows' names.
    """

    model: str | None = None
    model_config: Path | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    tensor_parallel_size: int | None = None
    text_only: bool = False
    replicas: int | None = None
    region: str = ""
    kind: str = "on-demand"
    peak_rps: float = 0.0
    output_tokens: int = 256
    throughputs: Mapping[str, Throughput] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)


@dataclass(frozen=True)
class Target:
    """Hold what to plan for: a slice, or so many GPUs of a kind."""

    accelerator: Slice | Gpu
    gpus: int = 1


def choose_target(name: str | None, profile: str | None, known: Accelerators, profiles: Profiles) -> Target:
    """Find the target by its name (a slice, or GPUs as NAME:COUNT) or profile.

    Raises AcceleratorError or ProfileError naming those there are.
    """
    if name is None:
        return _of_profile(profiles.get(profile), known)
    base, _, count = name.partition(":")
    gpu = next((each for each in known.gpus if each.name == base), None)
    if gpu is None:
        return Target(known.slice(name))
    gpus = int(count) if count.isdecimal() else 1 if not count else 0
    if gpus not in gpu.machines.values():
        sizes = ", ".join(map(str, sorted(set(gpu.machines.values()))))
        raise AcceleratorError(f"target {name!r}: machines have {sizes} {base} GPUs")
    return Target(gpu, gpus)


def _of_profile(profile: Profile, known: Accelerators) -> Target:
    if profile.is_tpu:
        return Target(known.slice(profile.accelerator))
    return Target(known.gpu(profile.accelerator), profile.chips)


def build_subject(
    objects: Sequence[Manifest] | None, options: Options, target: Target, translation: Translation | None = None
) -> tuple[Subject, FoundModel]:
    """Translate the source among `objects`, and find the models on both sides and how they are served.

    `objects` are the Deployment and what belongs to it, live or from a file; None plans for `options.model` alone.
    `translation` is theirs onto the target, where the caller has it already.
    Raises InputError for objects without one vLLM workload on GPUs, ModelConfigError for a model nobody knows.
    """
    alone = objects is None
    if objects is None:
        options, objects = _alone(options)
    deployment = find_vllm_workload(objects)
    if is_tpu(deployment):
        raise InputError("this workload runs on TPUs already: give the GPU source")
    maps = config_maps(objects, None)
    source, line = describe_source(deployment, maps), command_line(deployment, maps)
    before = _source_model(source.model, options)
    source_model = source.model or before.shape.name
    source_serving = _serving(line, before, options, None)
    moved = _Moved(source_model, source_serving, line, (), source.replicas)
    replacement = None if alone or options.model == source_model else options.model
    if isinstance(target.accelerator, Slice):
        translation = translation or _translate(options, objects, target.accelerator, before, replacement)
        moved = _served(translation, options, target.accelerator, before, moved, replacement)
    else:
        moved = replace(moved, serving=replace(source_serving, tensor_parallel=None))
    after = before if moved.model == source_model else find_model(moved.model, options.model_config)
    serving = moved.serving
    if options.tensor_parallel_size:
        serving = replace(serving, tensor_parallel=options.tensor_parallel_size)
    subject = Subject(
        model=moved.model,
        shape=after.shape,
        serving=serving,
        target=target.accelerator,
        gpus=target.gpus,
        target_replicas=options.replicas or moved.replicas,
        source=None if alone else source,
        source_shape=before.shape,
        source_serving=source_serving,
        workload=Workload(line, source_model, before.shape, options.text_only, replacement),
        translation_blockers=moved.blockers,
        kind=options.kind,
        region=options.region,
        peak_rps=options.peak_rps,
        output_tokens=options.output_tokens,
        throughputs=options.throughputs,
        plan=options.plan,
    )
    return subject, after


def _source_model(model: str | None, options: Options) -> FoundModel:
    """Find the source's model; where its own is out of sight or unknown, the one that is named for the target."""
    if model is None and not options.model:
        raise InputError("the model is out of sight: name it with --model, or give its ConfigMap in the same file")
    try:
        return find_model(model or options.model or "", options.model_config)
    except ModelConfigError:
        if model is None or not options.model:
            raise
        return find_model(options.model, options.model_config)


def _alone(options: Options) -> tuple[Options, list[Manifest]]:
    """Make a server of a model that has none yet; few need the whole of 128k, so 32k is meant where nothing is said."""
    if not options.model:
        raise InputError("nothing to plan for: give -f FILE or --model M")
    longest = find_model(options.model, options.model_config).shape.max_position or _CONTEXT_UNASKED
    options = replace(options, max_model_len=options.max_model_len or min(longest, _CONTEXT_UNASKED))
    limits = {"max-model-len": options.max_model_len, "max-num-seqs": options.max_num_seqs}
    container = {
        "name": "vllm",
        "image": "vllm/vllm-openai",
        "command": ["vllm", "serve"],
        "args": [options.model, *(f"--{name}={value}" for name, value in limits.items() if value)],
        "resources": {"limits": {"nvidia.com/gpu": 1}},
    }
    labels = {"app": "planned"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    return options, [{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "planned"}, "spec": spec}]


@dataclass(frozen=True)
class _Moved:
    """Hold what will run on the target: as the translation has it, or as the source does."""

    model: str
    serving: Serving
    line: CommandLine | None
    blockers: tuple[Finding, ...]
    replicas: int


def _translate(
    options: Options, objects: Sequence[Manifest], target: Slice, before: FoundModel, replacement: str | None
) -> Translation:
    sizing = Sizing(
        max_model_len=options.max_model_len or before.shape.max_position or None,
        max_num_seqs=options.max_num_seqs,
        model=replacement,
        text_only=options.text_only,
    )
    return translate(objects, target=target, image=DEFAULT_IMAGE, replicas=options.replicas, sizing=sizing)


def _served(
    result: Translation,
    options: Options,
    target: Slice,
    before: FoundModel,
    source: _Moved,
    replacement: str | None,
) -> _Moved:
    """Read from a translation what the target will serve, and how."""
    served = next((each for each in result.manifests if each.get("kind") == "Deployment" and is_tpu(each)), None)
    blockers = tuple(result.blockers)
    if served is None:
        return replace(source, blockers=blockers)
    line = command_line(served, config_maps(result.manifests, None))
    model = (line.model()[1] if line else None) or replacement or source.model
    replicas = int(served["spec"].get("replicas") or 1)
    return _Moved(model, _serving(line, before, options, target), line, blockers, replicas)


def _serving(line: CommandLine | None, found: FoundModel, options: Options, target: Slice | None) -> Serving:
    """Read what sizes a server from its arguments; what is asked for wins over them."""
    written = line.integer("max-model-len") if line else None
    limits = (line.value("limit-mm-per-prompt") or "").replace(" ", "") if line else ""
    without_images = '"image":0' in limits or "image=0" in limits
    return Serving(
        max_model_len=options.max_model_len or written or found.shape.max_position or _CONTEXT_UNASKED,
        max_num_seqs=options.max_num_seqs or (line.integer("max-num-seqs") if line else None) or _SEQS,
        utilization=_share((line.value("gpu-memory-utilization") or "") if line else ""),
        max_num_batched_tokens=(line.integer("max-num-batched-tokens") if line else None) or 2048,
        kv_dtype=(line.value("kv-cache-dtype") if line else None) or "auto",
        tensor_parallel=None if target else (line.integer("tensor-parallel-size") if line else None),
        quantization=line.value("quantization") if line else None,
        text_only=options.text_only or without_images or bool(line and line.get("language-model-only")),
    )


def _share(text: str) -> float:
    """Read a memory utilization; vLLM's default for what is out of sight or senseless."""
    try:
        share = float(text)
    except ValueError:
        return 0.90
    return share if 0 < share <= 1 else 0.90
