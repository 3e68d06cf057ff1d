"""Define what a stage is: plain Python that observes, compares, acts once and verifies.

    step(context) -> Waiting(seconds, why) | Done(result) | Failed(reason, kind)

A step is synchronous and short. Calling it again after a crash at any point is safe. It trusts
no edge of a DAG: it reads the record first, and a mismatch is a permanent failure.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tpu_migration.backoff import Backoff
from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.iam import Permissions
from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.clients.prometheus import Prometheus
from tpu_migration.clock import Clock
from tpu_migration.domain.phases import ENDED, Phase
from tpu_migration.domain.plan import Plan
from tpu_migration.domain.routing import RouteError
from tpu_migration.errors import NotHolderError, PermanentError, SupersededError, TransientError
from tpu_migration.lease import DURATION_S, Holder, Lease
from tpu_migration.names import Names
from tpu_migration.notices import Notice, failure, notices
from tpu_migration.record import Record, RecordError, Records

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

# What each task of a run leads to, in their order. The teardown, or another run that ends this one, comes after them.
LEADS_TO = {
    "preflight": Phase.PLANNED,
    "provision": Phase.PROVISIONED,
    "deploy": Phase.DEPLOYED,
    "warm_up": Phase.WARM,
    "gate": Phase.GATED,
    "shift": Phase.COMMITTED,
    "decommission": Phase.MIGRATED,
}

_BACKOFF_MAX_S = 15.0
_WATCH_BACKOFF_MAX_S = 1.0
# A wait of an hour is not looked at every three seconds: a look comes after a fortieth of the time so far.
_PACE, _LONGEST_PAUSE_S = 1 / 40, 15.0
_NOTE_EVERY_S = 5.0  # how often the waiting message is written to the record


@dataclass(frozen=True)
class Waiting:
    """Say what the stage waits for and when to look again; 0 seconds means: at once, there is more to do."""

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
        """Write a line to the task's log."""
        log.info(message, *values)


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


class StageRun:
    """Step one stage, from the operator, the trigger, the command line or a simulation alike."""

    def __init__(self, stage: Stage, context: Context) -> None:
        self.stage = stage
        self.context = context
        if stage.watches_users:
            context.use(context.kube.watching())
        longest_s = _WATCH_BACKOFF_MAX_S if stage.watches_users else _BACKOFF_MAX_S
        # An API that was down is asked by all runs at once: each draws its pauses from a seed of its own.
        self._backoff = Backoff(f"{context.plan.workload}/{context.run_id}/{stage.name}", longest_s)
        self._noted: tuple[str, float] = ("", -1e9)
        self._waited = 0.0  # since the record was told last
        self._begun = False
        self._began = context.clock.now()
        self._since = context.clock.monotonic()

    def step(self) -> Outcome:
        """Make one step; a transient error becomes a wait with back-off, a permanent one a failure."""
        outcome = self._step()
        if isinstance(outcome, Waiting):
            self._waited += outcome.seconds
        if isinstance(outcome, Failed) and outcome.kind != "superseded":
            self.context.announce(lambda: [failure(self.context.plan.workload, self.stage.name, outcome.reason)])
        if self.stage.gives_lease_back and not isinstance(outcome, Waiting):
            self._give_lease_back()
        return outcome

    def _step(self) -> Outcome:
        try:
            if not self._begun and (waiting := self._begin()) is not None:
                return waiting
            outcome = self._paced(self.stage.step(self.context))
            self._backoff.succeeded()
            self._note(outcome)
        except (SupersededError, NotHolderError) as error:
            return Failed(str(error), "superseded")
        except TransientError as error:
            return Waiting(self._backoff.pause_s(), f"will try again: {error}")
        except (PermanentError, RouteError) as error:
            outcome = Failed(str(error))
            self._note_failure(outcome)
        except Exception as error:
            log.exception("stage %s", self.stage.name)
            outcome = Failed(f"unexpected {type(error).__name__} in stage {self.stage.name}: {error}")
            self._note_failure(outcome)
        return outcome

    def _paced(self, outcome: Outcome) -> Outcome:
        """Stretch the pauses of a wait that gets long; never while users are watched."""
        if not isinstance(outcome, Waiting) or not outcome.seconds or self.stage.watches_users:
            return outcome
        pause_s = min(_LONGEST_PAUSE_S, _PACE * (self.context.clock.monotonic() - self._since))
        return replace(outcome, seconds=max(outcome.seconds, pause_s))

    def _begin(self) -> Waiting | None:
        """Take the lease as it was found before the record was read: whoever knows an older world is refused.

        A later task of the run keeps it. This one is over then, or somebody had it run again, and it has to wait
        until the later one is surely dead.
        """
        lease, found = self.context.lease, None
        if self.stage.takes_lease and self.stage.name in LEADS_TO:
            found = lease.look()
            record = self.context.records.read()
            if found.holder is None or self._has_gone_on(found.holder):
                if self._is_over(record):
                    self._begun = True  # the step says so, and writes nothing
                    return None
                later = found.holder
                if later and (waiting := self._wait_for(later, lease.still_for(found))) is not None:
                    return waiting
        if self.stage.takes_lease:
            lease.acquire(found)
        self._begun = True
        return None

    def _has_gone_on(self, holder: Holder) -> bool:
        """Tell whether a later task of this run has the lease, or another run that ends this one."""
        tasks = list(LEADS_TO)
        return holder.run_id == self.context.run_id and holder.task not in tasks[: tasks.index(self.stage.name) + 1]

    def _is_over(self, record: Record | None) -> bool:
        """Tell whether the record leaves this task nothing to do."""
        if record is None or record.run_id != self.context.run_id or record.phase in ENDED:
            return True
        aim = LEADS_TO[self.stage.name]
        return record.phase in FORWARD and FORWARD.index(record.phase) >= FORWARD.index(aim)

    def _wait_for(self, later: Holder, still_s: float | None) -> Waiting | None:
        if still_s is None:
            raise NotHolderError(
                f"{later.task} of this run is at work on {self.context.plan.workload}: {self.stage.name} is over, and "
                "this worker of it, which was cut off for a while, stops"
            )
        if still_s > DURATION_S:
            return None
        return Waiting(2.0, f"{later.task} of this run had the lease last; waiting to see whether it is still alive")

    def time_out(self, waited_for: str) -> Failed:
        """Give the stage up because its budget is spent, and say so in the record."""
        budget_s = self.stage.budget_s(self.context.plan)
        outcome = Failed(f"stage {self.stage.name} took more than its {budget_s:.0f} s: {waited_for}", "timeout")
        try:
            if self.stage.give_up and self.context.lease.taken:  # else there is another who keeps watch, or the guard
                self.stage.give_up(self.context, outcome.reason)
        except (TransientError, PermanentError) as error:
            log.error("could not give up %s in good order, the teardown must: %s", self.stage.name, error)
        self._note_failure(outcome)
        self.context.announce(lambda: [failure(self.context.plan.workload, self.stage.name, outcome.reason)])
        if self.stage.gives_lease_back:
            self._give_lease_back()
        return outcome

    def _give_lease_back(self) -> None:
        """Let the next run begin at once; one that is not given back is only waited for."""
        try:
            self.context.lease.release()
        except (TransientError, PermanentError) as error:
            log.warning("could not give the lease back: %s", error)

    def _note(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            self._note_failure(outcome)
            return
        if self.context.epoch is None or not self.context.lease.taken:
            return  # preflight has not written the record yet, there is none of this run, or it is another task's now
        now, monotonic = self.context.clock.now(), self.context.clock.monotonic()
        state = "done" if isinstance(outcome, Done) else "running"
        why = outcome.why if isinstance(outcome, Waiting) else ""
        told, at = self._noted
        if state == "running" and (why == told or monotonic - at < _NOTE_EVERY_S):
            return
        self._noted = (why, monotonic)
        waited = self._waited

        def change(record: Record) -> Record:
            return replace(record.with_stage(self.stage.name, state, self._began, now, waited=waited), waiting=why)

        try:
            self.context.records.update(self.context.run_id, self.context.epoch, change)
        except SupersededError as error:
            if not self.stage.gives_lease_back:
                raise
            # What ends a run ends it at whatever epoch others have raised it to: the next look tells which.
            self.context.log("noted at another epoch: %s", error)
            self._note_beside(change)
        self._waited = 0.0

    def _note_beside(self, change: Callable[[Record], Record]) -> None:
        """Write beside the record's other truths, whoever raised its epoch, as long as it is of this run."""
        run_id = self.context.run_id
        self.context.records.force(lambda record: change(record) if record.run_id == run_id else record)

    def _note_failure(self, outcome: Failed) -> None:
        """Write the failure down; never let that hide the failure itself."""
        if self.context.epoch is None or not self.context.lease.taken:
            return
        now = self.context.clock.now()

        def change(record: Record) -> Record:
            return record.with_stage(self.stage.name, "failed", self._began, now, outcome.reason, self._waited)

        try:
            self._note_beside(change)
        except (TransientError, PermanentError) as error:
            log.warning("could not write the failure of %s to the record: %s", self.stage.name, error)
