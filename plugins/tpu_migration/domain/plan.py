"""Define the plan of a migration: what a person fills in, checked once, frozen, hashed."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

TARGETS = ("tpu-v5e-8", "tpu-v5e-4", "tpu-v5e-1", "tpu-v6e-8", "tpu-v6e-4", "tpu-v6e-1")
CAPACITIES = ("on-demand", "spot", "reservation")
STOPS = ("none", "gate")
RELEASES = ("keep", "scale-to-zero", "delete-pool")

# RFC 1123 label, as Kubernetes and GKE check it; also what keeps a name harmless in a path.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_MAX_WORKLOAD = 40  # leaves room for the suffixes of the names made from it, at most 63 in all


class PlanError(ValueError):
    """Report every problem of a plan at once; the message names each parameter and its remedy."""


@dataclass(frozen=True)
class Plan:
    """What to migrate, onto what, and how carefully. Units are in the names."""

    project_id: str = "my-project"
    location: str = "us-central1-a"
    cluster: str = "inference"
    namespace: str = "inference"
    workload: str = "vllm-gemma3-27b"
    route: str = ""  # empty: the one HTTPRoute that points at the workload's Service
    target: str = "tpu-v5e-8"
    target_replicas: int = 2
    accept_single_replica: bool = False
    capacity: str = "on-demand"
    reservation: str = ""
    tpu_image: str = "vllm/vllm-tpu:v0.32.0"
    toolbox_image: str = "tpu-migration-toolbox:0.1.0"
    tpu_zone: str = ""  # empty: the cluster's zone, or zone -a of its region
    route_owner_consents: bool = False  # whoever owns the HTTPRoute leaves its backendRefs alone
    source_peak_replicas: int = 0  # 0: as many as run now; needed when an autoscaler moves them
    peak_rps: float = 0.0  # 0: not given; preflight refuses, a peak is never guessed
    prompt_tokens: int = 512
    output_tokens: int = 256
    policy: str = "chat"
    steps: tuple[int, ...] = (1, 5, 25, 50, 100)
    bake_s: float = 300.0
    soak_s: float = 86_400.0
    stop_after: str = "none"
    source_release: str = "keep"
    gcp_conn_id: str = field(default="google_cloud_default", metadata={"not_hashed": True})

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Plan:
        """Build a plan from parameters; unknown ones are errors, not silently dropped.

        Raises PlanError with every problem found.
        """
        known = {f.name for f in fields(cls)}
        problems = []
        for key in sorted(set(params) - known):
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(sorted(known))}"
            problems.append(f"unknown parameter {key!r}: {hint}")
        # Airflow's form leaves an optional text empty as null.
        optional = {f.name for f in fields(cls) if f.default == ""}
        values = {k: v for k, v in params.items() if k in known and not (v is None and k in optional)}
        if isinstance(values.get("steps"), list | tuple):
            values["steps"] = tuple(values["steps"])
        for f in fields(cls):
            if f.name in values and not _fits(values[f.name], f.default):
                problems.append(
                    f"{f.name}={values[f.name]!r} must be a {type(f.default).__name__}, for example {f.default!r}"
                )
        if problems:
            raise PlanError("; ".join(problems))
        for name in ("peak_rps", "bake_s", "soak_s"):
            if name in values:
                values[name] = float(values[name])
        plan = cls(**values)
        problems = plan._problems()
        if problems:
            raise PlanError("; ".join(problems))
        return plan

    def _problems(self) -> list[str]:
        problems = [
            f"{name}={value!r} is no valid name: lower-case letters, digits, '-', at most {limit} characters"
            for name, value, limit in (
                ("cluster", self.cluster, 63),
                ("namespace", self.namespace, 63),
                ("workload", self.workload, _MAX_WORKLOAD),
                ("route", self.route or "empty", 63),
                ("project_id", self.project_id, 63),
                ("location", self.location, 63),
                ("tpu_zone", self.tpu_zone or "empty", 63),
            )
            if len(value) > limit or not _NAME.fullmatch(value)
        ]
        for name, value, allowed in (
            ("target", self.target, TARGETS),
            ("capacity", self.capacity, CAPACITIES),
            ("stop_after", self.stop_after, STOPS),
            ("source_release", self.source_release, RELEASES),
        ):
            if value not in allowed:
                problems.append(f"{name}={value!r} must be one of {', '.join(allowed)}")
        if not self.workload[:1].isalpha():
            problems.append(f"workload={self.workload!r} must begin with a letter: the target's Service takes its name")
        problems += self._number_problems()
        if self.capacity == "reservation" and not self.reservation:
            problems.append("capacity=reservation needs the reservation's name in `reservation`")
        if not re.fullmatch(r"[a-z0-9_-]+", self.policy):
            problems.append(f"policy={self.policy!r} must be the name of a file in include/policies")
        return problems

    def _number_problems(self) -> list[str]:
        problems = []
        steps = self.steps
        if not steps or any(not isinstance(s, int) or isinstance(s, bool) for s in steps):
            problems.append(f"steps={list(steps)!r} must be whole per cents, for example [1, 5, 25, 50, 100]")
        elif list(steps) != sorted(set(steps)) or steps[0] < 1 or steps[-1] != 100:
            problems.append(f"steps={list(steps)!r} must rise from at least 1 to exactly 100")
        if not 1 <= self.target_replicas <= 64:
            problems.append(f"target_replicas={self.target_replicas} must be within 1 and 64")
        if not 0 <= self.source_peak_replicas <= 256:
            problems.append(f"source_peak_replicas={self.source_peak_replicas} must be within 0 and 256")
        if self.peak_rps < 0 or self.peak_rps > 10_000:
            problems.append(f"peak_rps={self.peak_rps} must be within 0 and 10000 requests a second")
        if not (1 <= self.prompt_tokens <= 131_072 and 2 <= self.output_tokens <= 131_072):
            problems.append("prompt_tokens and output_tokens must be within 1 (2) and 131072")
        if not 1 <= self.bake_s <= 86_400:
            problems.append(f"bake_s={self.bake_s} must be within 1 and 86400 seconds")
        if not 1 <= self.soak_s <= 14 * 86_400:
            problems.append(f"soak_s={self.soak_s} must be within 1 second and 14 days")
        return problems

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {**asdict(self), "steps": list(self.steps)}

    @cached_property
    def hash(self) -> str:
        """Return 16 hex digits that change whenever the plan does (the connection's name apart)."""
        skip = {f.name for f in fields(self) if f.metadata.get("not_hashed")}
        payload = {key: value for key, value in self.to_dict().items() if key not in skip}
        return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:16]


def _fits(value: Any, default: Any) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, int):
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, type(default))
