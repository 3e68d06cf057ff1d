"""Run `tpu-migration plan`: will it fit, what will it cost, what is lost."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tpu_migration.domain.accelerators import AcceleratorError, Accelerators, Gpu, Slice, parse_accelerators
from tpu_migration.domain.assessment import SOURCE, Subject, assess
from tpu_migration.domain.cost import GIVEN, Throughput
from tpu_migration.domain.features import Workload, parse_features
from tpu_migration.domain.fit import ModelConfigError, Serving
from tpu_migration.domain.prices import KINDS
from tpu_migration.domain.profiles import Profile, ProfileError, Profiles, parse_profiles
from tpu_migration.domain.translation import (
    Finding,
    InputError,
    Manifest,
    Sizing,
    command_line,
    config_maps,
    describe_source,
    find_vllm_workload,
    is_tpu,
    load,
    translate,
)
from tpu_migration.domain.translation.arguments import CommandLine
from tpu_migration.models import FoundModel, find_model
from tpu_migration.report.plan_page import render
from tpu_migration.resources import read_text
from tpu_migration.translate_cli import BAD_INPUT, BLOCKED, DEFAULT_IMAGE, OK, positive, read_input

# Without a source nobody said how long requests may be: few need more, and the whole of 128k is rarely meant.
_CONTEXT_UNASKED = 32768
_SEQS = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `plan` to a parser."""
    parser.add_argument("-f", "--filename", metavar="FILE", help="Kubernetes YAML of the source; - reads stdin")
    parser.add_argument("--model", help="model id or path; with -f: the checkpoint that the target is to serve")
    parser.add_argument("--max-model-len", type=positive, metavar="N", help="context length (default: the source's)")
    parser.add_argument(
        "--max-num-seqs", type=positive, metavar="N", help="concurrent requests (default: the source's)"
    )
    parser.add_argument("--tensor-parallel-size", type=positive, metavar="N", help="default: every chip of the target")
    parser.add_argument("--text-only", action="store_true", help="no user sends images: leave the vision tower out")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--target", help="TPU slice such as tpu-v5e-8, or GPUs such as h100:2")
    target.add_argument("--profile", help="named target of include/profiles.yaml (default: production)")
    parser.add_argument("--replicas", type=positive, metavar="N", help="replicas of the target (default: the source's)")
    parser.add_argument("--region", default="", help="region of the prices (default: the price file's)")
    parser.add_argument("--kind", choices=KINDS, default="on-demand", help="pricing kind (default: %(default)s)")
    parser.add_argument("--peak-rps", type=_number, default=0.0, metavar="R", help="live peak, requests a second")
    parser.add_argument("--output-tokens", type=positive, default=256, metavar="N", help="a request's mean output")
    parser.add_argument(
        "--throughput",
        type=_throughput,
        action="append",
        default=[],
        metavar="NAME=TOK_S",
        help="output tokens a second of one replica of `source`, h100, tpu-v5e-8, …; may be repeated",
    )
    parser.add_argument("--prices", type=Path, metavar="FILE", help="your own prices, over those of include/")
    parser.add_argument("--model-config", type=Path, metavar="FILE", help="the model's config.json, or its folder")
    parser.add_argument("--format", choices=("table", "json"), default="table")


def _number(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return number


def _throughput(text: str) -> tuple[str, float]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=TOKENS_A_SECOND, for example tpu-v5e-8=1400")
    try:
        return name, _number(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value!r} is no number of tokens a second") from error


def main(args: argparse.Namespace, today: dt.date | None = None) -> int:
    """Print the plan. Return 0 if it fits, 1 if it does not or something blocks it, 2 for bad input."""
    today = today or dt.date.today()
    try:
        own = _own_prices(args.prices)
        known = parse_accelerators(read_text("accelerators.yaml"), own)
        profiles = parse_profiles(read_text("profiles.yaml"), known)
        subject, found = build_subject(args, known, profiles)
        _check_names(args, known, subject)
        assessment = assess(subject, known, parse_features(read_text("features.yaml")), today)
    except (InputError, AcceleratorError, ModelConfigError, ProfileError) as error:
        place = f"{'stdin' if args.filename == '-' else args.filename}: " if isinstance(error, InputError) else ""
        sys.stderr.write(f"error: {place if args.filename else ''}{error}\n")
        return BAD_INPUT
    if args.format == "json":
        facts: dict[str, Any] = {**asdict(assessment), "ok": assessment.ok, "model_origin": found.origin}
        json.dump(facts, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(render(assessment, subject, found.origin, subject.region or known.region))
    return OK if assessment.ok else BLOCKED


def _own_prices(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AcceleratorError(f"cannot read the price file {path}: {error}") from error


def _check_names(args: argparse.Namespace, known: Accelerators, subject: Subject) -> None:
    """Refuse names that match nothing: a throughput or a region with a typing error would go unseen."""
    names = [SOURCE, *(each.name for each in known.slices), *(each.name for each in known.gpus)]
    for name, _ in args.throughput:
        if name not in names:
            raise AcceleratorError(f"--throughput {name}: use one of {', '.join(names)}")
    sheets = [*(each.prices for each in known.slices), *(each.prices for each in known.gpus)]
    regions = {price.region for sheet in sheets for price in sheet}
    if subject.region and subject.region not in regions:
        there = ", ".join(sorted(regions))
        raise AcceleratorError(f"--region {subject.region}: prices are known for {there}; give others with --prices")


@dataclass(frozen=True)
class _Target:
    accelerator: Slice | Gpu
    gpus: int = 1


def choose_target(name: str | None, profile: str | None, known: Accelerators, profiles: Profiles) -> _Target:
    """Find the target by its name (a slice, or GPUs as NAME:COUNT) or profile.

    Raises AcceleratorError or ProfileError naming those there are.
    """
    if name is None:
        return _of_profile(profiles.get(profile), known)
    base, _, count = name.partition(":")
    gpu = next((each for each in known.gpus if each.name == base), None)
    if gpu is None:
        return _Target(known.slice(name))
    gpus = int(count) if count.isdecimal() else 1 if not count else 0
    if gpus not in gpu.machines.values():
        sizes = ", ".join(map(str, sorted(set(gpu.machines.values()))))
        raise AcceleratorError(f"target {name!r}: machines have {sizes} {base} GPUs")
    return _Target(gpu, gpus)


def _of_profile(profile: Profile, known: Accelerators) -> _Target:
    if profile.is_tpu:
        return _Target(known.slice(profile.accelerator))
    return _Target(known.gpu(profile.accelerator), profile.chips)


def build_subject(args: argparse.Namespace, known: Accelerators, profiles: Profiles) -> tuple[Subject, FoundModel]:
    """Read the source (or make one of --model), translate it, and find the models on both sides."""
    target = choose_target(args.target, args.profile, known, profiles)
    if args.model and not args.filename and args.max_model_len is None:
        asked = _context(args, find_model(args.model, args.model_config))
        args = argparse.Namespace(**{**vars(args), "max_model_len": asked})
    objects = _objects(args)
    deployment = find_vllm_workload(objects)
    if is_tpu(deployment):
        raise InputError("this workload runs on TPUs already: give the GPU source")
    maps = config_maps(objects, None)
    source, line = describe_source(deployment, maps), command_line(deployment, maps)
    if source.model is None and not args.model:
        raise InputError("the model is out of sight: name it with --model, or give its ConfigMap in the same file")
    source_model = source.model or args.model
    before = find_model(source_model, args.model_config)
    source_serving = _serving(line, before, args, None)
    moved = _Moved(source_model, source_serving, line, (), source.replicas)
    if isinstance(target.accelerator, Slice):
        moved = _translated(args, objects, target.accelerator, source_model, before, moved)
    after = before if moved.model == source_model else find_model(moved.model, args.model_config)
    serving = moved.serving if isinstance(target.accelerator, Slice) else replace(source_serving, tensor_parallel=None)
    if args.tensor_parallel_size:
        serving = replace(serving, tensor_parallel=args.tensor_parallel_size)
    replacement = args.model if args.filename and args.model != source_model else None
    subject = Subject(
        model=moved.model,
        shape=after.shape,
        serving=serving,
        target=target.accelerator,
        gpus=target.gpus,
        target_replicas=args.replicas or moved.replicas,
        source=source if args.filename else None,
        source_shape=before.shape,
        source_serving=source_serving,
        workload=Workload(line, source_model, before.shape, args.text_only, replacement),
        translation_blockers=moved.blockers,
        kind=args.kind,
        region=args.region,
        peak_rps=args.peak_rps,
        output_tokens=args.output_tokens,
        throughputs={name: Throughput(rate, GIVEN, "--throughput") for name, rate in args.throughput},
    )
    return subject, after


def _objects(args: argparse.Namespace) -> list[Manifest]:
    if args.filename:
        return load(read_input(args.filename))[0]
    if not args.model:
        raise InputError("nothing to plan for: give -f FILE or --model M")
    limits = {"max-model-len": args.max_model_len, "max-num-seqs": args.max_num_seqs}
    arguments = [args.model, *(f"--{name}={value}" for name, value in limits.items() if value)]
    container = {
        "name": "vllm",
        "image": "vllm/vllm-openai",
        "command": ["vllm", "serve"],
        "args": arguments,
        "resources": {"limits": {"nvidia.com/gpu": 1}},
    }
    pod = {"metadata": {"labels": {"app": "planned"}}, "spec": {"containers": [container]}}
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": "planned"}}, "template": pod}
    return [{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "planned"}, "spec": spec}]


@dataclass(frozen=True)
class _Moved:
    """Hold what will run on the target: as the translation has it, or as the source does."""

    model: str
    serving: Serving
    line: CommandLine | None
    blockers: tuple[Finding, ...]
    replicas: int


def _translated(
    args: argparse.Namespace,
    objects: list[Manifest],
    target: Slice,
    source_model: str,
    before: FoundModel,
    source: _Moved,
) -> _Moved:
    """Translate the source and read from the result what the target will serve, and how."""
    sizing = Sizing(
        max_model_len=_context(args, before),
        max_num_seqs=args.max_num_seqs,
        model=args.model if args.filename else None,
        text_only=args.text_only,
    )
    result = translate(objects, target=target, image=DEFAULT_IMAGE, replicas=args.replicas, sizing=sizing)
    served = next((each for each in result.manifests if each.get("kind") == "Deployment" and is_tpu(each)), None)
    blockers = tuple(result.blockers)
    if served is None:
        return replace(source, blockers=blockers)
    line = command_line(served, config_maps(result.manifests, None))
    model = (line.model()[1] if line else None) or args.model or source_model
    replicas = int(served["spec"].get("replicas") or 1)
    return _Moved(model, _serving(line, before, args, target), line, blockers, replicas)


def _context(args: argparse.Namespace, found: FoundModel) -> int:
    """Tell the context length where the source leaves it to the model."""
    own: int | None = args.max_model_len
    longest = found.shape.max_position or _CONTEXT_UNASKED
    return own or (longest if args.filename else min(longest, _CONTEXT_UNASKED))


def _serving(line: CommandLine | None, found: FoundModel, args: argparse.Namespace, target: Slice | None) -> Serving:
    """Read what sizes a server from its arguments; those of this command line win."""
    written = line.integer("max-model-len") if line else None
    share = (line.value("gpu-memory-utilization") or "") if line else ""
    limits = (line.value("limit-mm-per-prompt") or "") if line else ""
    without_images = '"image":0' in limits.replace(" ", "") or "image=0" in limits
    return Serving(
        max_model_len=args.max_model_len or written or _context(args, found),
        max_num_seqs=args.max_num_seqs or (line.integer("max-num-seqs") if line else None) or _SEQS,
        utilization=_share(share),
        max_num_batched_tokens=(line.integer("max-num-batched-tokens") if line else None) or 2048,
        kv_dtype=(line.value("kv-cache-dtype") if line else None) or "auto",
        tensor_parallel=None if target else (line.integer("tensor-parallel-size") if line else None),
        quantization=line.value("quantization") if line else None,
        text_only=args.text_only or without_images or bool(line and line.get("language-model-only")),
    )


def _share(text: str) -> float:
    """Read a memory utilization; vLLM's default for what is out of sight or senseless."""
    try:
        share = float(text)
    except ValueError:
        return 0.90
    return share if 0 < share <= 1 else 0.90
