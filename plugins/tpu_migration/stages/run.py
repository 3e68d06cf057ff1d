"""Step one stage, from the operator, the trigger, the command line or a simulation alike.

Here is what all stages have in common: the lease, what an error means, and what the record is told.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import replace

from tpu_migration.backoff import Backoff
from tpu_migration.domain.masking import masked
from tpu_migration.domain.phases import ENDED, Phase
from tpu_migration.domain.routing import RouteError
from tpu_migration.errors import NotHolderError, PermanentError, SupersededError, TransientError
from tpu_migration.lease import DURATION_S, Holder
from tpu_migration.notices import failure
from tpu_migration.record import Record
from tpu_migration.stages.base import FORWARD, Context, Done, Failed, Outcome, Stage, Waiting

log = logging.getLogger(__name__)

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


class StageRun:
    """One stage with its context; `step` until it gives something other than `Waiting`."""

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
        self._since = self._looked_at = context.clock.monotonic()

    def step(self) -> Outcome:
        """Make one step; a transient error becomes a wait with back-off, a permanent one a failure.

        A wait counts from when the step began, so that whoever is to look every second does. What is returned is the
        rest of it.
        """
        self._looked_at = self.context.clock.monotonic()
        outcome = self._step()
        if isinstance(outcome, Waiting):
            self._waited += outcome.seconds
            outcome = replace(outcome, seconds=max(0.0, outcome.seconds - self._took_s()))
        if isinstance(outcome, Failed) and outcome.kind != "superseded" and not outcome.is_told:
            self.context.announce(lambda: [failure(self.context.plan.workload, self.stage.name, outcome.reason)])
        if self.stage.gives_lease_back and not isinstance(outcome, Waiting):
            self._give_lease_back()
        return outcome

    def _step(self) -> Outcome:
        try:
            if not self._begun and (waiting := self._begin()) is not None:
                return waiting
            outcome = self._paced(_shown(self.stage.step(self.context)))
            self._backoff.succeeded()
            self._note(outcome)
        except (SupersededError, NotHolderError) as error:
            return Failed(str(error), "superseded")
        except TransientError as error:
            return Waiting(self._took_s() + self._backoff.pause_s(), f"will try again: {error}")
        except (PermanentError, RouteError) as error:
            outcome = Failed(str(error))
            self._note_failure(outcome)
        except Exception as error:  # noqa: BLE001 (told in full, but for the secrets in it)
            log.error("stage %s\n%s", self.stage.name, masked(traceback.format_exc()))
            outcome = Failed(masked(f"unexpected {type(error).__name__} in stage {self.stage.name}: {error}"))
            self._note_failure(outcome)
        return outcome

    def _took_s(self) -> float:
        """Return the seconds since this look began."""
        return self.context.clock.monotonic() - self._looked_at

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

    def hand_over(self) -> None:
        """Write what was waited for so far to the record, the last wait in full: another worker goes on after it."""
        if self.context.epoch is None or not self.context.lease.taken or not self._waited:
            return
        now, waited = self.context.clock.now(), self._waited
        try:
            self.context.update(lambda r: r.with_stage(self.stage.name, "running", self._began, now, waited=waited))
        except (TransientError, PermanentError) as error:
            log.warning("could not write what %s has waited for to the record: %s", self.stage.name, error)
        self._waited = 0.0

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


def _shown(outcome: Outcome) -> Outcome:
    """Return an outcome whose text shows no secret: it may quote a log, and goes into record, log and notices."""
    if isinstance(outcome, Failed):
        return replace(outcome, reason=masked(outcome.reason))
    return replace(outcome, why=masked(outcome.why)) if isinstance(outcome, Waiting) else outcome
