"""Define a gate policy: which checks are made, and their limits. Read from include/policies/*.yaml."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from tpu_migration.domain.gate.sections import (
    Bootstrap,
    Capacity,
    Cost,
    Errors,
    Goodput,
    Load,
    Quality,
    Ratio,
    Requests,
    Slo,
    Void,
)

SECTIONS = ("slo", "ratio", "capacity", "goodput", "errors", "cost", "quality", "void")
_LOOKS = (1, 2, 3)
_CONFIDENCES = (0.90, 0.95)


class PolicyError(ValueError):
    """Report what is wrong with a policy file; the message names the key and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """One gate policy. A section that is null leaves its checks out; one that is forgotten is an error."""

    name: str
    version: int = 1  # raise it with every change of a value, so that people can name what they agreed on
    description: str = ""
    confidence: float = 0.95
    looks: int = 3
    requests: Requests = field(default_factory=Requests)
    load: Load = field(default_factory=Load)
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    slo: Slo | None
    ratio: Ratio | None
    capacity: Capacity | None
    goodput: Goodput | None
    errors: Errors | None
    cost: Cost | None
    quality: Quality | None
    void: Void | None

    @property
    def hash(self) -> str:
        """Return 16 hex digits that change with any value (not with the wording of the description)."""
        payload = {**asdict(self), "description": ""}
        return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:16]

    def without(self, *sections: str) -> Policy:
        """Return this policy with whole sections left out; its hash, which binds a verdict, differs."""
        unknown = sorted(set(sections) - set(SECTIONS))
        if unknown:
            raise PolicyError(f"no such section: {', '.join(unknown)}; known are {', '.join(SECTIONS)}")
        return replace(self, **dict.fromkeys(sections))  # type: ignore[arg-type]

    def problems(self) -> list[str]:
        """Return what makes this policy undecidable; empty if nothing does."""
        found = [] if self.name else ["name: must not be empty"]
        if self.version < 1:
            found.append("version: must be at least 1")
        if self.confidence not in _CONFIDENCES:
            found.append(f"confidence: must be one of {_CONFIDENCES}")
        if self.looks not in _LOOKS:
            found.append(f"looks: must be one of {_LOOKS}")
        for f in fields(self):
            section = getattr(self, f.name)
            if hasattr(section, "problems"):
                found += section.problems()
        found += self.requests.at(self.looks)
        if not any((self.slo, self.ratio, self.goodput, self.errors)):
            found.append("slo, ratio, goodput and errors are all null: such a gate would prove nothing")
        if self.goodput and not self.slo:
            found.append("goodput: needs slo, whose limits say what a good request is")
        if self.capacity and self.capacity.headroom not in self.load.shares:
            found.append("load.shares: must hold capacity.headroom, the rate that is to be proven")
        if self.capacity and not self.goodput:
            found.append("capacity: needs goodput, whose minimum says when a rate holds")
        return found


def load_policy(text: str) -> Policy:
    """Parse a policy from YAML; every problem at once in one PolicyError, an unknown key among them."""
    import yaml

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PolicyError(f"policy is no YAML: {error}") from error
    problems: list[str] = []
    policy = _build(Policy, data, "", problems)
    if not problems and isinstance(policy, Policy):
        problems = policy.problems()
        if not problems:
            return policy
    raise PolicyError("; ".join(problems))


def _build(kind: type[Any], data: object, path: str, problems: list[str]) -> Any:
    """Build a dataclass from a mapping, collecting problems; None where it cannot be built."""
    if not isinstance(data, Mapping):
        problems.append(f"{path.rstrip('.') or 'policy'}: must be a mapping, not {data!r}")
        return None
    hints = typing.get_type_hints(kind)
    before = len(problems)
    for key in data:
        if key not in hints:
            near = difflib.get_close_matches(str(key), list(hints), n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(hints)}"
            problems.append(f"{path}{key}: unknown key; {hint}")
    values = {}
    for f in fields(kind):
        if f.name in data:
            values[f.name] = _value(hints[f.name], data[f.name], f"{path}{f.name}", problems)
        elif f.default is MISSING and f.default_factory is MISSING:
            waive = "; write null to leave its checks out" if f.name in SECTIONS else ""
            problems.append(f"{path}{f.name}: missing{waive}")
    return kind(**values) if len(problems) == before else None


def _value(hint: Any, value: object, path: str, problems: list[str]) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in options:
        return None
    wanted = next(option for option in options if option is not types.NoneType)
    if typing.get_origin(wanted) is tuple:
        if isinstance(value, list):
            return tuple(_value(float, each, f"{path}[{i}]", problems) for i, each in enumerate(value))
        problems.append(f"{path}: must be a list of numbers, not {value!r}")
        return None
    if isinstance(wanted, type) and hasattr(wanted, "__dataclass_fields__"):
        return _build(wanted, value, f"{path}.", problems)
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    problems.append(f"{path}: must be a finite {wanted.__name__}, not {value!r}")
    return None
