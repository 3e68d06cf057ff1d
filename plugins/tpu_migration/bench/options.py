"""Read the values of command-line options; what is wrong is said the way argparse wants it."""

from __future__ import annotations

import argparse
import re

from tpu_migration.bench.lengths import LengthError, Lengths

DISTRIBUTION = "256, uniform:LOW:HIGH, lognormal:MEAN:SIGMA:CAP or bins:LOW-HIGH=WEIGHT,…"


def lengths(text: str) -> Lengths:
    """Read a distribution of token counts."""
    try:
        return Lengths.parse(text)
    except LengthError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def header(text: str) -> tuple[str, str]:
    """Read NAME=VALUE; nothing that could smuggle in a second header."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or re.search(r"[\r\n\0]", value):
        raise argparse.ArgumentTypeError(f"{text!r} is no header: write NAME=VALUE")
    return name, value


def shapes(text: str) -> tuple[tuple[int, int], ...]:
    """Read a list of warm-up shapes."""
    found = [re.fullmatch(r"(\d{1,7})x(\d{1,4})", part.strip()) for part in text.split(",")]
    shapes = tuple((int(match[1]), int(match[2])) for match in found if match)
    if len(shapes) != len(found) or not all(tokens and width for tokens, width in shapes):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of shapes: write 32x1,512x4 (tokens x requests)")
    return shapes


def positive(text: str) -> float:
    """Read a number above 0."""
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return value


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    value = int(text)
    if not 0 < value <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} must be within 1 and 1000000")
    return value
