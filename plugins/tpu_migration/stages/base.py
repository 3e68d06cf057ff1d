"""Define what a stage is: plain Python that observes, compares, acts once and verifies.

    step(context) -> Waiting(seconds, why) | Done(result) | Failed(reason, kind)

A step is synchronous and short. Calling it again after a crash at any point is safe. It trusts
no edge of a DAG: it reads the record first, and a mismatch is a permanent failure.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.iam import Permissions
from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.clients.prometheus import Prometheus
from tpu_migration.clock import Clock
from tpu_migration.domain.masking import masked
from tpu_migration.domain.phases import Phase
from tpu_migration.domain.plan import Plan
from tpu_migration.errors import PermanentError, SupersededError
from tpu_migration.lease import Holder, Lease
from tpu_migration.names import Names
from tpu_migration.notices import Notice, notices
from tpu_migration.record import Record, RecordError
from tpu_migration.records import Records

log = logging.getLogger(__name__)

# The order in which a migration goes forward; a stage that finds itself already done says so.
FORWARD = (
    Phase.PLANNED,
    Phase.PROVISIONED,
    Phase.DEPLOYED,
    Phase.WARM,
    Phase.GATED,
    Phase.SHIFTING,
    Phase.SOAKING,
    Phase.COMMITTED,
    Phase.DECOMMISSIONING,
    Phase.MIGRATED,
)


@dataclass(frozen=True)
class Waiting:
    """Say what the stage waits for, and when to look again, counted from when this look began.

    0 seconds means: at once, there is more to do.
    """

    seconds: float
    why: str


@dataclass(frozen=True)
class Done:
    """Say that the stage's work is done, with what a person wants to know of it."""

    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """Say why the stage cannot go on. Kinds: permanent, breach, superseded, inconclusive, timeout, capacity."""

    reason: str
    kind: str = "permanent"
    is_told: bool = False  # people heard of it from another stage, or from the record: the task is red all the same


Outcome = Waiting | Done | Failed


def in_turn(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Make the calls one after the other; the way of the simulation, where time stands still."""
    return [call() for call in calls]


@dataclass
class Context:
    """What a stage works with. `memory` is lost in a crash; whatever matters is in the record."""

    plan: Plan
    run_id: str
    kube: Kubernetes  # its writes are fenced by the lease
    unfenced: Kubernetes  # for a restore alone, which must win without any lease
    pools: NodePools
    clock: Clock
    lease: Lease
    monitoring: Prometheus | None = None  # where the plan says that the peak is to be read
    permissions: Permissions | None = None  # None: nobody can ask for them here
    together: Callable[[Sequence[Callable[[], Any]]], list[Any]] = in_turn
    why: str = ""  # this run was started, where somebody said so
    proves_gpus: bool = True  # before users come back to them, unless a person waives it
    tell: Callable[[Notice], object] = lambda notice: None  # people, who wait for none of it
    memory: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = Names(self.plan.workload, self.run_id)
        self.use(self.kube)
        self.epoch: int | None = None

    @classmethod
    def create(
        cls,
        plan: Plan,
        holder: Holder,
        kube: Kubernetes,
        pools: NodePools,
        clock: Clock,
        *,
        lease_name: str = "",
        **more: Any,
    ) -> Context:
        """Return a context whose writes stop when its lease does; the migration's, where no other is named."""
        lease = Lease(kube, plan.namespace, plan.workload, holder, clock, lease_name)
        return cls(plan, holder.run_id, kube.fenced(lease.check), kube, pools.fenced(lease.check), clock, lease, **more)

    def expect(self, *phases: Phase) -> Record | None:
        """Return the record if its phase is one of `phases`, None if the migration is past them.

        Raises PermanentError when the record says anything else: it belongs to another run, to
        another plan, or has fallen back. The DAG's edges prove nothing, for tasks get cleared
        and marked.
        """
        record = self.records.read()
        if record is None:
            raise RecordError(
                f"{self.plan.workload} has no record in namespace {self.plan.namespace}: "
                "preflight writes it, so start a new run rather than this task alone"
            )
        if record.run_id != self.run_id:
            raise SupersededError(
                f"{record.workload} belongs to run {record.run_id} (phase {record.phase}), not to {self.run_id}"
            )
        if record.plan_hash != self.plan.hash:
            raise PermanentError(
                f"the record's plan is {record.plan_hash}, this task's is {self.plan.hash}: parameters changed in "
                "mid-run; start a new run"
            )
        if self.epoch is None:
            self.epoch = record.epoch
        if record.phase in phases:
            if record.epoch != self.epoch:
                raise SupersededError(f"epoch {record.epoch} replaced {self.epoch} under this worker")
            return record
        if record.phase in FORWARD and all(FORWARD.index(record.phase) > FORWARD.index(phase) for phase in phases):
            return None
        why = f" ({record.fallback.reason})" if record.fallback else ""
        raise PermanentError(
            f"this stage needs the phase {' or '.join(phases)}, but the record says {record.phase}{why}"
        )

    def use(self, kube: Kubernetes) -> None:
        """Make the calls through another client."""
        self.kube = kube
        self.records = Records(kube, self.plan.namespace, self.plan.workload)
        self.records.on_change = lambda before, after: self.announce(lambda: notices(before, after))

    def announce(self, make: Callable[[], Sequence[Notice]]) -> None:
        """Tell people; a stage never fails over what it tells them."""
        try:
            for each in make():
                self.tell(each)
        except Exception:
            log.exception("a notice of %s was not told", self.plan.workload)

    def update(self, change: Callable[[Record], Record]) -> Record:
        """Change the record, if it still is of this run and epoch."""
        if self.epoch is None:
            raise PermanentError("the record was never read")
        return self.records.update(self.run_id, self.epoch, change)

    def log(self, message: str, *values: object) -> None:
        """Write a line to the task's log, without the secrets in it."""
        log.info("%s", masked(message % values if values else message))


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline. `budget_s` is what it may take, the plan's own waits included."""

    name: str
    step: Callable[[Context], Outcome]
    budget_s: Callable[[Plan], float]
    takes_lease: bool = True  # preflight takes it itself, after its checks
    gives_lease_back: bool = False
    give_up: Callable[[Context, str], object] | None = None  # what must be done when the budget is spent
    watches_users: bool = False  # short call timeouts, and never blind for long
    lease_name: Callable[[str], str] | None = None  # of a workload's lease of its own, for what must hinder nobody
