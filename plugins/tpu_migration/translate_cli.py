"""Run `tpu-migration translate`: a file of GPU manifests in, TPU manifests out."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from tpu_migration.domain.accelerators import AcceleratorError, Accelerators, parse_accelerators
from tpu_migration.domain.masking import masked
from tpu_migration.domain.translation import Finding, InputError, Sizing, Translation, dump, translate_documents
from tpu_migration.resources import INCLUDE

# The release that the translation's rules were read from.
DEFAULT_IMAGE = "vllm/vllm-tpu:v0.32.0"
DEFAULT_TARGET = "tpu-v5e-8"
OK, BLOCKED, BAD_INPUT = 0, 1, 2


def load_accelerators(path: Path | None = None) -> Accelerators:
    """Read the accelerators file. Raises AcceleratorError if it is missing or wrong."""
    path = path or INCLUDE / "accelerators.yaml"
    try:
        return parse_accelerators(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AcceleratorError(f"cannot read {path}: {error.strerror}; name the file with --accelerators") from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `translate` to a parser."""
    parser.add_argument("-f", "--filename", required=True, metavar="FILE", help="Kubernetes YAML; - reads stdin")
    parser.add_argument("--target", default=DEFAULT_TARGET, help="TPU slice (default: %(default)s)")
    parser.add_argument("--format", choices=("yaml", "json"), default="yaml", help="output (default: %(default)s)")
    parser.add_argument("--image", default=DEFAULT_IMAGE, help="vLLM's TPU image (default: %(default)s)")
    parser.add_argument("--replicas", type=positive, help="replicas of the target (default: the source's)")
    parser.add_argument("--model", help="BF16 checkpoint to serve, where none is known for the source's")
    parser.add_argument("--max-model-len", type=positive, help="context length, where the source leaves it to vLLM")
    parser.add_argument("--text-only", action="store_true", help="no user sends images: leave the vision tower out")
    parser.add_argument("--accelerators", type=Path, metavar="FILE", help="accelerators and prices (default: include/)")


def positive(text: str) -> int:
    """Read a number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def main(args: argparse.Namespace) -> int:
    """Translate a file. Return 0, 1 where something blocks the target, 2 for input that cannot be read."""
    try:
        target = load_accelerators(args.accelerators).slice(args.target)
        text = read_input(args.filename)
        result = translate_documents(
            text,
            target=target,
            image=args.image,
            replicas=args.replicas,
            sizing=Sizing(max_model_len=args.max_model_len, model=args.model, text_only=args.text_only),
        )
    except (InputError, AcceleratorError) as error:
        name = "stdin" if args.filename == "-" else args.filename
        place = f"{name}: " if isinstance(error, InputError) else ""
        sys.stderr.write(f"error: {place}{error}\n")
        return BAD_INPUT
    if args.format == "json":
        json.dump(asdict(result), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(dump(result.manifests))
        report(result, sys.stderr)
    return BLOCKED if result.blockers else OK


def read_input(filename: str) -> str:
    """Read a file or stdin (-). Raises InputError for what cannot be read or is no text."""
    try:
        raw = sys.stdin.buffer.read() if filename == "-" else Path(filename).read_bytes()
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"no Kubernetes YAML: not UTF-8 (byte {error.start})") from error


def report(result: Translation, out: TextIO) -> None:
    """Write changes, warnings and blockers for people."""
    out.write(f"{len(result.changes)} changes\n")
    for change in result.changes:
        out.write(f"  {change.path}: {_short(change.old)} -> {_short(change.new)}  # {change.why}\n")
    for title, findings in (("warnings", result.warnings), ("blockers", result.blockers)):
        out.write(f"{len(findings)} {title}\n")
        for finding in findings:
            out.write(f"  {_line(finding)}\n")


def _line(finding: Finding) -> str:
    remedy = f" ({finding.remedy})" if finding.remedy else ""
    return f"{finding.path}: {finding.message}{remedy}"


def _short(value: object) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = masked(" ".join(text.split()))
    return text if len(text) <= 160 else f"{text[:157]}..."
