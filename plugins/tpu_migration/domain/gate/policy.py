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

SECTIONS = ("slo", "ratio", "capacity", "goodput", "errors", "cost", "void")
_LOOKS = (1, 2, 3)
_CONFIDENCES = (0.90, 0.95)


class PolicyError(ValueError):
    """Report what is wrong with a policy file; the message names the key and the remedy."""


@dataclass(frozen=True)
class Requests:
    """How many requests to send at the first look and at most, and the fewest that may pass."""

    baseline: int = 2000
    candidate: int = 2000
    cap: int = 8000
    baseline_min: int = 60
    candidate_min: int = 300

    def problems(self) -> list[str]:
        found = []
        if not 1 <= self.baseline_min <= self.baseline <= self.cap:
            found.append("requests: needs 1 <= baseline_min <= baseline <= cap")
        if not 1 <= self.candidate_min <= self.candidate <= self.cap:
            found.append("requests: needs 1 <= candidate_min <= candidate <= cap")
        return found


@dataclass(frozen=True)
class Bootstrap:
    """Resampling by blocks of time: how often, how many blocks, from which seed."""

    replicates: int = 2000
    blocks: int = 20
    seed: int = 2026

    def problems(self) -> list[str]:
        found = []
        if not 200 <= self.replicates <= 10_000:
            found.append("bootstrap.replicates: must be within 200 and 10000")
        if not 10 <= self.blocks <= 200:
            found.append("bootstrap.blocks: must be within 10 and 200")
        if self.seed < 0:
            found.append("bootstrap.seed: must not be negative")
        return found


@dataclass(frozen=True)
class Slo:
    """Absolute limits at a quantile; also what a request must meet to count as good."""

    ttft_limit_ms: float
    tpot_limit_ms: float
    quantile: float = 0.99

    def problems(self) -> list[str]:
        found = _positive("slo", ttft_limit_ms=self.ttft_limit_ms, tpot_limit_ms=self.tpot_limit_ms)
        return found + _fraction("slo", quantile=self.quantile)


@dataclass(frozen=True)
class Ratio:
    """Non-inferiority margins: candidate over baseline at a quantile; null leaves one out.

    Both sides are raised to the floor first: below it no user feels a difference.
    """

    ttft_limit: float | None = None
    tpot_limit: float | None = None
    e2e_limit: float | None = None
    quantile: float = 0.95
    ttft_floor_ms: float = 0.0
    tpot_floor_ms: float = 0.0
    e2e_floor_ms: float = 0.0

    def problems(self) -> list[str]:
        limits = {name: getattr(self, name) for name in ("ttft_limit", "tpot_limit", "e2e_limit")}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        found = _positive("ratio", **given) + _fraction("ratio", quantile=self.quantile)
        if not given:
            found.append("ratio: sets no limit; give one or set ratio to null")
        if min(self.ttft_floor_ms, self.tpot_floor_ms, self.e2e_floor_ms) < 0:
            found.append("ratio: a floor must not be negative")
        return found


@dataclass(frozen=True)
class Capacity:
    """The rate at which every SLO still holds must be at least the live peak times the head-room."""

    headroom: float = 1.2
    min_rates: int = 4

    def problems(self) -> list[str]:
        found = _positive("capacity", headroom=self.headroom)
        return found if self.min_rates >= 1 else [*found, "capacity.min_rates: must be at least 1"]


@dataclass(frozen=True)
class Goodput:
    """The share of scheduled requests that must meet every SLO."""

    minimum: float = 0.95

    def problems(self) -> list[str]:
        return _fraction("goodput", minimum=self.minimum)


@dataclass(frozen=True)
class Errors:
    """The share of requests that may fail."""

    limit: float = 0.01

    def problems(self) -> list[str]:
        return _fraction("errors", limit=self.limit)


@dataclass(frozen=True)
class Cost:
    """Dollars a conforming token, candidate over baseline."""

    ratio_limit: float = 0.90

    def problems(self) -> list[str]:
        return _positive("cost", ratio_limit=self.ratio_limit)


@dataclass(frozen=True)
class Void:
    """When a measurement says nothing about the server; null leaves one out."""

    loop_lag_p99_ms: float | None = 5.0
    schedule_delay_p99_ms: float | None = 20.0  # 1 % of the TTFT limit
    achieved_rate_min: float | None = 0.98
    arm_events: bool = True  # a recompile, restart or preemption in the window

    def problems(self) -> list[str]:
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "arm_events"}
        return _positive("void", **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class Policy:
    """One gate policy. A section that is null leaves its checks out; one that is forgotten is an error."""

    name: str
    description: str = ""
    confidence: float = 0.95
    looks: int = 3
    requests: Requests = field(default_factory=Requests)
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    slo: Slo | None
    ratio: Ratio | None
    capacity: Capacity | None
    goodput: Goodput | None
    errors: Errors | None
    cost: Cost | None
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
        if self.confidence not in _CONFIDENCES:
            found.append(f"confidence: must be one of {_CONFIDENCES}")
        if self.looks not in _LOOKS:
            found.append(f"looks: must be one of {_LOOKS}")
        for f in fields(self):
            section = getattr(self, f.name)
            if hasattr(section, "problems"):
                found += section.problems()
        if not any((self.slo, self.ratio, self.goodput, self.errors)):
            found.append("slo, ratio, goodput and errors are all null: such a gate would prove nothing")
        if self.goodput and not self.slo:
            found.append("goodput: needs slo, whose limits say what a good request is")
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
    if isinstance(wanted, type) and hasattr(wanted, "__dataclass_fields__"):
        return _build(wanted, value, f"{path}.", problems)
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    problems.append(f"{path}: must be a finite {wanted.__name__}, not {value!r}")
    return None


def _positive(section: str, **values: float) -> list[str]:
    return [f"{section}.{name}: must be above 0" for name, value in values.items() if not value > 0]


def _fraction(section: str, **values: float) -> list[str]:
    return [
        f"{section}.{name}: must be between 0 and 1, not {value}" for name, value in values.items() if not 0 < value < 1
    ]
