"""Read and write Kubernetes quantities: "8", "500m", "128Gi"."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

_FORM = re.compile(r"^([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:([KMGTPE]i)|([numkMGTPE]?)|[eE]([+-]?[0-9]+))$")
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "": Fraction(1),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
}
MALFORMED = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"


@lru_cache(maxsize=4096)
def parse(text: str) -> Fraction:
    """Return the value of a quantity; ValueError where it is none."""
    found = _FORM.match(text)
    if found is None:
        raise ValueError(MALFORMED)
    number, binary, decimal, exponent = found.groups()
    if binary:
        return Fraction(number) * _BINARY[binary]
    if exponent:
        return Fraction(number) * Fraction(10) ** int(exponent)
    return Fraction(number) * _DECIMAL[decimal or ""]


@lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    """Return a quantity as the API server writes it back: the largest unit that leaves a whole number."""
    value = parse(text)
    if value == 0:
        return "0"
    if text[-2:] in _BINARY and value.denominator == 1:
        for suffix in reversed(_BINARY):
            if value % _BINARY[suffix] == 0:
                return f"{value // _BINARY[suffix]}{suffix}"
        return str(value.numerator)
    for suffix in reversed(_DECIMAL):
        scaled = value / _DECIMAL[suffix]
        if scaled.denominator == 1:
            return f"{scaled.numerator}{suffix}"
    # Finer than a billionth: rounded up, as a quantity always is.
    return f"{-(-value // _DECIMAL['n'])}n"
