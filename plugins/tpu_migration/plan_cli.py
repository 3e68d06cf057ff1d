"""Run `tpu-migration plan`: will it fit, what will it cost, what is lost."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tpu_migration.domain.accelerators import AcceleratorError, Accelerators, parse_accelerators
from tpu_migration.domain.assessment import SOURCE, assess
from tpu_migration.domain.cost import GIVEN, Throughput
from tpu_migration.domain.fit import ModelConfigError
from tpu_migration.domain.prices import KINDS
from tpu_migration.domain.profiles import ProfileError, parse_profiles
from tpu_migration.domain.translation import InputError, load
from tpu_migration.planning import Options, build_subject, choose_target
from tpu_migration.report.plan_page import render
from tpu_migration.resources import features, read_text
from tpu_migration.translate_cli import BAD_INPUT, BLOCKED, OK, positive, read_input


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
    parser.add_argument("--format", choices=("table", "json"), default="table", help="of the page")


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
        _check_names(args, known)
        target = choose_target(args.target, args.profile, known, profiles)
        objects = load(read_input(args.filename))[0] if args.filename else None
        subject, found = build_subject(objects, _options(args), target)
        assessment = assess(subject, known, features(), today)
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


def _options(args: argparse.Namespace) -> Options:
    throughputs = {name: Throughput(rate, GIVEN, "--throughput") for name, rate in args.throughput}
    named = {each.name: getattr(args, each.name) for each in fields(Options) if hasattr(args, each.name)}
    return Options(**named, throughputs=throughputs)


def _own_prices(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AcceleratorError(f"cannot read the price file {path}: {error}") from error


def _check_names(args: argparse.Namespace, known: Accelerators) -> None:
    """Refuse names that match nothing: a throughput or a region with a typing error would go unseen."""
    names = [SOURCE, *(each.name for each in known.slices), *(each.name for each in known.gpus)]
    for name, _ in args.throughput:
        if name not in names:
            raise AcceleratorError(f"--throughput {name}: use one of {', '.join(names)}")
    sheets = [*(each.prices for each in known.slices), *(each.prices for each in known.gpus)]
    regions = {price.region for sheet in sheets for price in sheet}
    if args.region and args.region not in regions:
        there = ", ".join(sorted(regions))
        raise AcceleratorError(f"--region {args.region}: prices are known for {there}; give others with --prices")
