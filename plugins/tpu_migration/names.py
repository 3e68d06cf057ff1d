"""Derive every name that a migration gives, from the workload and the run id alone.

A crashed run finds again what it made because the names say so; nothing is passed through XCom.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

MANAGED_BY = {"app.kubernetes.io/managed-by": "tpu-migration"}
RECORD_LABEL = "tpu-migration/record"
WORKLOAD_LABEL = "tpu-migration/workload"
RUN_LABEL = "tpu-migration/run"
# Of node pools, whose labels GKE hands on to their nodes: run, workload, and when the run is over at the latest.
POOL_RUN_LABEL = "tpu-migration-run"
POOL_NAMESPACE_LABEL = "tpu-migration-namespace"
POOL_WORKLOAD_LABEL = "tpu-migration-workload"
POOL_EXPIRES_LABEL = "tpu-migration-expires"  # Unix seconds
STACK_LABEL = "tpu-migration/stack"  # of what deploy_all set up by itself: the name of the stack's Service
ARM_HEADER = "x-tpu-migration-arm"  # reaches one arm through the Gateway, on the probe route only
SOURCE_ARM = "source"
TARGET_ARM = "target"

GUARD_LEASE = "tpu-migration-guard"
SCHEMA_ANNOTATION = "tpu-migration/schema-version"  # on the guard's Lease: which records it can read


def record_name(workload: str) -> str:
    """Return the name of the record's ConfigMap and of the Lease."""
    return f"tpu-migration-{workload}"


def canary_lease(workload: str) -> str:
    """Return the name of the Lease that keeps two canaries from loading a workload at the same time."""
    return f"{record_name(workload)}-canary"


def history_name(workload: str) -> str:
    """Return the name of the ConfigMap with what the canaries saw."""
    return f"{record_name(workload)}-history"


def answers_name(workload: str) -> str:
    """Return the name of the ConfigMap with the source's answers of the gate that passed."""
    return f"{record_name(workload)}-answers"


def run_hash(run_id: str) -> str:
    """Return 8 hex digits for a run id, which may hold characters that no Kubernetes name may."""
    return hashlib.sha256(run_id.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Names:
    """The names of one run's objects."""

    workload: str
    run_id: str

    @property
    def target(self) -> str:
        """The TPU Deployment, its Service and its policies."""
        return f"{self.workload}-tpu"

    def pool(self, attempt: int = 1) -> str:
        """Return the name of the TPU node pool of an attempt, counted from 1; GKE allows 40 characters.

        Each attempt has a name of its own: a pool that comes late is never taken for the next one.
        """
        name = f"tpu-{self.workload[:24].rstrip('-')}-{run_hash(self.run_id)}"
        return name if attempt == 1 else f"{name}-{attempt}"

    @property
    def probe_route(self) -> str:
        """The HTTPRoute that reaches each arm by a header."""
        return f"{record_name(self.workload)}-probe"

    @property
    def prober(self) -> str:
        """The prober's Deployment."""
        return f"{record_name(self.workload)}-prober"

    def job(self, block: str) -> str:
        """Return the name of the Job that runs one block of load."""
        return f"tpu-migration-{run_hash(self.run_id)}-{block}"

    @property
    def labels(self) -> dict[str, str]:
        """The labels of everything this run makes."""
        return {**MANAGED_BY, WORKLOAD_LABEL: self.workload, RUN_LABEL: run_hash(self.run_id)}
