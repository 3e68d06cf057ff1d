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

from tpu_migration.domain.capacity import KINDS, NOT_YET, CapacityError, Offer, not_yet, parse_offers
from tpu_migration.domain.masking import masked

TARGETS = ("tpu-v5e-8", "tpu-v5e-4", "tpu-v5e-1", "tpu-v6e-8", "tpu-v6e-4", "tpu-v6e-1")
STOPS = ("none", "gate")
FEATURES = ("seed", "min_p", "logit_bias", "allowed_token_ids", "structured_outputs", "json_schema", "tools")
RELEASES = ("keep", "scale-to-zero", "delete-pool")
APPROVALS = ("shift", "decommission")
ON_FALLBACK = ("release", "keep")

# RFC 1123 label, as Kubernetes and GKE check it; also what keeps a name harmless in a path.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SERVICE_ACCOUNT = re.compile(r"[a-z0-9-]+@[a-z0-9.-]+\.gserviceaccount\.com")
# An address alone: a user, a password or a token in a query would be kept wherever parameters are.
_ADDRESS = re.compile(r"https?://[\w.-]+(:\d+)?(/[\w./~-]*)?|https?://\[[0-9a-fA-F:]+\](:\d+)?(/[\w./~-]*)?")
# https://github.com/distribution/reference: host and path, tag, digest.
_IMAGE = re.compile(r"[\w][\w.-]*(:\d+)?(/[\w][\w.-]*)*(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?", re.ASCII)
_CONNECTION = re.compile(r"\w[\w.:-]{0,199}", re.ASCII)
# One of this project, or one that another shares with it.
_RESERVATION = re.compile(r"(projects/[a-z0-9-]+/reservations/)?[a-z0-9][-a-z0-9]{0,62}")
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
    capacity_plan: tuple[str, ...] = ()  # KIND@ZONE[=SECONDS] in the order to try; empty: the three fields around
    capacity_budget_s: float = 3600.0  # for all attempts together
    tpu_pool: str = ""  # an existing node pool to use; it is never deleted. Empty: the run makes one
    target_max_nodes: int = 0  # upper bound of the pool's autoscaler; 0: none, the pool has a node a replica
    node_service_account: str = ""  # empty: the project's default one of Compute Engine
    tpu_image: str = "vllm/vllm-tpu:v0.32.0"
    toolbox_image: str = "tpu-migration-toolbox:0.1.0"
    tpu_zone: str = ""  # empty: the cluster's zone, or zone -a of its region
    route_owner_consents: bool = False  # whoever owns the HTTPRoute leaves its backendRefs alone
    source_peak_replicas: int = 0  # 0: as many as run now; needed when an autoscaler moves them
    peak_rps: float = 0.0  # 0: not given, then `prometheus_url` must be; a peak is never guessed
    prometheus_url: str = ""  # where to read the peak from; `gmp`: Google's managed Prometheus of the project
    prompt_tokens: int = 512
    output_tokens: int = 256
    policy: str = "chat"
    client_features: tuple[str, ...] = ()  # fields of requests that clients rely on; one that is lost fails the gate
    quality_tasks: str = ""  # a ConfigMap with tasks.jsonl: prompts with their expected answers
    steps: tuple[int, ...] = (1, 5, 25, 50, 100)
    bake_s: float = 300.0
    soak_s: float = 86_400.0
    stop_after: str = "none"
    approvals: tuple[str, ...] = ("decommission",)  # what people are asked about before it is done
    approval_timeout_s: float = 3 * 86_400.0  # silence for so long is a no
    source_release: str = "keep"
    on_fallback: str = "release"  # what becomes of the TPUs when users go home; `keep`: for a diagnosis
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
        for name in _LISTS:
            if isinstance(values.get(name), list | tuple):
                values[name] = tuple(values[name])
        for f in fields(cls):
            if f.name in values and not _fits(values[f.name], f.default):
                problems.append(
                    f"{f.name}={values[f.name]!r} must be a {type(f.default).__name__}, for example {f.default!r}"
                )
        if problems:
            raise PlanError("; ".join(problems))
        for name in ("peak_rps", "bake_s", "soak_s", "capacity_budget_s", "approval_timeout_s"):
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
                ("tpu_pool", self.tpu_pool or "empty", 40),
                ("quality_tasks", self.quality_tasks or "empty", 63),
            )
            if len(value) > limit or not _NAME.fullmatch(value)
        ]
        for name, value, allowed in (
            ("target", self.target, TARGETS),
            ("stop_after", self.stop_after, STOPS),
            ("source_release", self.source_release, RELEASES),
            ("on_fallback", self.on_fallback, ON_FALLBACK),
        ):
            if name == "target" and re.match(r"tpu-?vm|.*-vm$", value):
                problems.append(
                    f"target={value!r}: TPU VMs without Kubernetes are not supported yet; take a slice on GKE, one of "
                    f"{', '.join(allowed)}"
                )
            elif value not in allowed:
                problems.append(f"{name}={value!r} must be one of {', '.join(allowed)}")
        for name, values, choices in (
            ("client_features", self.client_features, FEATURES),
            ("approvals", self.approvals, APPROVALS),
        ):
            if unknown := sorted(set(map(str, values)) - set(choices)):
                problems.append(f"{name}={unknown} are not known; known are {', '.join(choices)}")
        if not self.workload[:1].isalpha():
            problems.append(f"workload={self.workload!r} must begin with a letter: the target's Service takes its name")
        problems += [*self._number_problems(), *self._capacity_problems()]
        if self.prometheus_url not in ("", "gmp") and not _ADDRESS.fullmatch(self.prometheus_url):
            problems.append(
                f"prometheus_url={masked(self.prometheus_url)!r} must be gmp, or an address such as "
                "https://prometheus.example:9090 without user, password and query: parameters are kept in plain text"
            )
        problems += [
            f"{name}={masked(value)!r} is no {what}"
            for name, value, form, what in (
                ("tpu_image", self.tpu_image, _IMAGE, "image, for example vllm/vllm-tpu:v0.32.0 or NAME@sha256:DIGEST"),
                ("toolbox_image", self.toolbox_image, _IMAGE, "image, for example REGISTRY/toolbox@sha256:DIGEST"),
                ("gcp_conn_id", self.gcp_conn_id, _CONNECTION, "id of an Airflow connection"),
                ("reservation", self.reservation or "none", _RESERVATION, "name of a reservation"),
            )
            if not form.fullmatch(value)
        ]
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.policy):
            problems.append(f"policy={self.policy!r} must be the name of a file in include/policies")
        return problems

    def _capacity_problems(self) -> list[str]:
        problems = []
        if self.capacity in NOT_YET:
            problems.append(f"capacity={self.capacity!r}: {not_yet(self.capacity)}")
        elif self.capacity not in KINDS:
            problems.append(f"capacity={self.capacity!r} must be one of {', '.join(KINDS)}")
        if self.capacity == "reservation" and not self.reservation:
            problems.append("capacity=reservation needs the reservation's name in `reservation`")
        simple = [name for name in ("capacity", "reservation", "tpu_zone") if getattr(self, name) != _DEFAULTS[name]]
        if self.capacity_plan and simple:
            problems.append(
                f"capacity_plan says where and how already: leave out {', '.join(simple)}, or capacity_plan"
            )
        if self.tpu_pool and self.capacity_plan:
            problems.append(f"tpu_pool={self.tpu_pool!r} is there already: leave out capacity_plan, or tpu_pool")
        try:
            parse_offers(self.capacity_plan, self.capacity_budget_s)
        except CapacityError as error:
            problems.append(f"capacity_plan: {error}")
        if self.node_service_account and not _SERVICE_ACCOUNT.fullmatch(self.node_service_account):
            problems.append(
                f"node_service_account={self.node_service_account!r} must be an address such as "
                f"tpu-nodes@{self.project_id}.iam.gserviceaccount.com"
            )
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
        if self.target_max_nodes and not self.target_replicas <= self.target_max_nodes <= 256:
            problems.append(
                f"target_max_nodes={self.target_max_nodes} must be 0 (no autoscaler), or within target_replicas="
                f"{self.target_replicas} and 256"
            )
        if not 60 <= self.capacity_budget_s <= 7 * 86_400:
            problems.append(f"capacity_budget_s={self.capacity_budget_s} must be within 60 seconds and 7 days")
        if not 60 <= self.approval_timeout_s <= 14 * 86_400:
            problems.append(f"approval_timeout_s={self.approval_timeout_s} must be within 60 seconds and 14 days")
        if not 1 <= self.bake_s <= 86_400:
            problems.append(f"bake_s={self.bake_s} must be within 1 and 86400 seconds")
        if not 1 <= self.soak_s <= 14 * 86_400:
            problems.append(f"soak_s={self.soak_s} must be within 1 second and 14 days")
        return problems

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {**asdict(self), **{name: list(getattr(self, name)) for name in _LISTS}}

    @property
    def pool_zone(self) -> str:
        """The zone of the TPU node pool: the one that is asked for, the cluster's, or zone -a of its region."""
        return self.tpu_zone or (self.location if self.location.count("-") == 2 else f"{self.location}-a")

    @cached_property
    def offers(self) -> tuple[Offer, ...]:
        """Where TPUs are to be had, in the order to try; one at least."""
        if self.capacity_plan:
            return parse_offers(self.capacity_plan, self.capacity_budget_s)
        reservation = self.reservation if self.capacity == "reservation" else ""
        return (Offer(self.capacity, self.pool_zone, self.capacity_budget_s, reservation),)

    def asks_about(self, what: str) -> bool:
        """Tell whether people's word is wanted on one of APPROVALS; to keep the GPUs needs none."""
        gives_up = what != "decommission" or self.source_release != "keep"
        return what in self.approvals and gives_up and self.stop_after == "none"

    @cached_property
    def hash(self) -> str:
        """Return 16 hex digits that change whenever the plan does (the connection's name apart)."""
        skip = {f.name for f in fields(self) if f.metadata.get("not_hashed")}
        payload = {key: value for key, value in self.to_dict().items() if key not in skip}
        return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:16]


_LISTS = ("steps", "client_features", "capacity_plan", "approvals")
_DEFAULTS = {f.name: f.default for f in fields(Plan)}


def _fits(value: Any, default: Any) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, int):
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, type(default))
