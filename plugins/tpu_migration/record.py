"""Say what the record of a migration is: its parts, how it may change, and its JSON. `records` keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

import msgspec

from tpu_migration.domain.phases import AFTER_COMMIT, ENDED, Phase, may_follow
from tpu_migration.errors import PermanentError

SCHEMA_VERSION = 1


class RecordError(PermanentError):
    """Report a record that is missing, damaged, or of a schema this version does not know.

    `phase` is what the ConfigMap says beside the record, readable whatever became of that; else empty.
    """

    phase = ""


@dataclass(frozen=True)
class Source:
    """What serves users before the migration, as found by preflight."""

    deployment: str  # its name
    service: str  # the Service that the route points at
    port: int  # of that Service
    route: str  # the HTTPRoute whose weights move users
    replicas: int  # pinned while users move: the plan's peak, or as many as ran
    accelerator: str  # of the source's nodes, such as nvidia-h100-80gb
    chips: int  # accelerators a replica
    model: str  # what `--model` says
    served_names: tuple[str, ...]  # what clients ask for; the target answers to the same
    gateway_url: str  # the Gateway's own address
    rules: tuple[dict[str, Any], ...]  # the route's rules to restore, literally
    host: str = ""  # the first host name that the users' route listens for, if any
    node_pools: tuple[str, ...] = ()  # where its pods ran
    max_model_len: int | None = None  # its context, in tokens
    hpa: str = ""  # its HorizontalPodAutoscaler, if any
    hpa_min_replicas: int | None = None  # the original, put back at the end

    @property
    def scarcity(self) -> str:
        """Warn whoever gives the source up, or wants it back."""
        return f"{self.accelerator} capacity may not be there again: what is given up goes to whoever asks next"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Source:
        """Read what `dataclasses.asdict` and JSON made of it; TypeError or KeyError on a foreign shape."""
        return cls(**{**data, **{key: tuple(data[key]) for key in ("served_names", "rules", "node_pools")}})


@dataclass(frozen=True)
class StageRun:
    """One stage's state and times (Unix seconds)."""

    stage: str  # its name
    state: str  # running, done, failed
    started: float  # when a worker first took it up
    ended: float | None = None  # null while it runs
    detail: str = ""  # the reason of a failure, or its result in a sentence
    waited: float = 0.0  # seconds that the stage asked to wait, of those since it started


@dataclass(frozen=True)
class Attempt:
    """One try to get a node pool. Unix seconds; `ended` with an error: nothing of it is left."""

    offer: str  # as a person reads it: "spot in us-west4-a"
    pool: str  # the name of its own node pool
    began: float  # when it was asked for
    error: str = ""  # GKE's own words; empty: none
    ended: float | None = None  # null while it is under way


@dataclass(frozen=True)
class Approval:
    """A question to people and their answer. Unix seconds; `approved` is None until they have answered."""

    what: str  # shift, decommission
    asked: float  # when
    approved: bool | None = None  # null: no answer yet
    by: str = ""  # who answered
    reason: str = ""  # what they said
    answered: float | None = None  # when


@dataclass(frozen=True)
class Fallback:
    """Why, by whom and when users were sent back."""

    reason: str  # the breach, or why somebody asked
    actor: str  # who wrote the route: a stage, the guard, a person
    detected: float  # Unix seconds
    route_written: float  # when the safe route was written
    observed: float | None = None  # when the traffic was seen to have followed
    stays: int = 0  # per cent of the users that a target which is well keeps while the source lacks replicas


@dataclass(frozen=True)
class Shift:
    """How far the keeper is: the index into the plan's steps, and when the split was seen."""

    step: int = -1  # index into the plan's steps; -1: none yet
    percent: int = 0  # the share of users that was written last
    written: float | None = None  # when; Unix seconds
    observed: float | None = None  # when the traffic was seen to follow
    watched: float | None = None  # the last look that was written down; a gap after it was not watched


@dataclass(frozen=True)
class Record:
    """The truth about one migration. Versioned; unknown fields are refused, not dropped."""

    workload: str  # name of the Deployment that is migrated
    namespace: str  # of the workload
    run_id: str  # Airflow's run, or the terminal's
    epoch: int  # raised by each restore; a writer of an older one is refused
    phase: Phase  # where the migration stands
    plan: Mapping[str, Any]  # the parameters, as they were given
    plan_hash: str  # a task whose parameters differ is refused
    source: Source  # what served before
    source_capacity: int  # replicas not given up yet; lowered before each scale-down
    target: str  # name of the TPU Deployment and of its Service
    pool: str  # the TPU node pool
    template_hash: str = ""  # of the target's pod template; the verdict holds for it alone
    verdict: Mapping[str, Any] | None = None  # the gate's, with every check
    shift: Shift = Shift()  # how far users have moved
    fallback: Fallback | None = None  # why users were sent back, if they were
    intent: str = ""  # what is about to be done; a crash after it is looked into
    waiting: str = ""  # what the stage waits for at this moment
    operation: str = ""  # GKE's operation that is under way
    attempts: tuple[Attempt, ...] = ()  # at a node pool, in order; none: the pool was there before and stays
    approvals: tuple[Approval, ...] = ()  # what people were asked, in order
    way_back: tuple[str, ...] = ()  # commands that bring the source back, once some of it is given up
    stages: tuple[StageRun, ...] = ()  # each stage that ran, the latest last
    notes: Mapping[str, Any] = field(default_factory=dict)  # what stages found, by name
    schema_version: int = SCHEMA_VERSION  # of this document

    def to_json(self) -> str:
        """Return the record as JSON text."""
        return msgspec.json.encode(self, order="sorted").decode()

    @classmethod
    @lru_cache(maxsize=64)  # a keeper and a guard read the same text once a second; a record is never changed
    def from_json(cls, text: str) -> Record:
        """Read a record; raise RecordError if this version cannot be trusted with it."""
        try:
            data = msgspec.json.decode(text)
            version = data.get("schema_version")
            if version != SCHEMA_VERSION:
                raise RecordError(
                    f"the record has schema version {version}, this program knows {SCHEMA_VERSION}: "
                    "use the version of tpu-migration that wrote it"
                )
            unknown = set(data) - {f.name for f in fields(cls)}
            if unknown:
                raise RecordError(f"the record has unknown fields {sorted(unknown)}")
            source = Source.from_dict(data.pop("source"))
            fallback = data.pop("fallback")
            return cls(
                **{
                    **data,
                    "phase": Phase(data["phase"]),
                    "source": source,
                    "shift": Shift(**data["shift"]),
                    "fallback": Fallback(**fallback) if fallback else None,
                    "stages": tuple(StageRun(**each) for each in data["stages"]),
                    "attempts": tuple(Attempt(**each) for each in data.get("attempts", ())),
                    "approvals": tuple(Approval(**each) for each in data.get("approvals", ())),
                    "way_back": tuple(data.get("way_back", ())),
                }
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordError(
                f"the record is damaged ({error}); `tpu-migration restore` still restores from the snapshot"
            ) from error

    @property
    def active(self) -> bool:
        """Tell whether a run still works on the migration, or should."""
        return self.phase not in ENDED

    @property
    def pricing(self) -> str:
        """The kind of price that the target's machines are paid by."""
        return "spot" if self.attempt and self.attempt.offer.startswith("spot") else "on-demand"

    @property
    def stands_unjudged(self) -> bool:
        """Tell a target that was only made warm from one that the gate could not decide on: people look at that one."""
        return self.phase is Phase.HELD and self.verdict is None and self.fallback is None

    def taken_back(self) -> Record:
        """Return the record of a committed migration on its way back: the source stands again, at full strength.

        The one way out of the phases after the commit. It makes the source the safe side, so whoever calls this has
        just seen every one of its replicas serve; or one, where the target serves nobody.
        """
        if self.phase not in AFTER_COMMIT:
            raise PermanentError(f"a migration that is {self.phase} falls back without being taken back")
        return replace(
            self, phase=Phase.FALLING_BACK, source_capacity=self.source.replicas, fallback=None, intent="", operation=""
        )

    @property
    def attempt(self) -> Attempt | None:
        """The last attempt at a node pool, which `pool` and `operation` are of."""
        return self.attempts[-1] if self.attempts else None

    def with_attempt(self, **changes: Any) -> Record:
        """Return the record with its last attempt changed."""
        return replace(self, attempts=(*self.attempts[:-1], replace(self.attempts[-1], **changes)))

    def approval(self, what: str) -> Approval | None:
        """Return the question about `what` with its answer, None if it was not asked."""
        return next((each for each in self.approvals if each.what == what), None)

    def said_no(self, what: str) -> bool:
        """Tell whether people refused it, by word or by silence."""
        asked = self.approval(what)
        return asked is not None and asked.approved is False

    def with_question(self, what: str, now: float) -> Record:
        """Return the record with a question, unless it was asked before."""
        if self.approval(what):
            return self
        return replace(self, approvals=(*self.approvals, Approval(what, now)))

    def with_answer(self, what: str, *, approved: bool, by: str, reason: str, now: float) -> Record:
        """Return the record with people's answer; the first one counts, and PermanentError says so to a later one."""
        asked = self.approval(what)
        if asked is None or not self.active:
            raise PermanentError(f"{self.workload} is {self.phase} and asks nobody about {what}")
        if asked.approved is not None:
            raise PermanentError(f"{what} of {self.workload} is {told(asked)} already")
        answer = replace(asked, approved=approved, by=by, reason=reason, answered=now)
        return replace(self, approvals=tuple(answer if each is asked else each for each in self.approvals))

    def moved_to(self, phase: Phase) -> Record:
        """Return the record in another phase; raise PermanentError if the phases forbid it."""
        if not may_follow(self.phase, phase):
            raise PermanentError(f"a migration that is {self.phase} cannot become {phase}")
        return replace(self, phase=phase)

    def with_stage(
        self, stage: str, state: str, began: float, now: float, detail: str = "", waited: float = 0.0
    ) -> Record:
        """Return the record with a stage begun, ended, or told of again.

        `began` is when this worker took the stage up; an earlier worker's beginning counts. `waited` are the seconds
        that the stage has waited since it was told of last.
        """
        found = next((each for each in self.stages if each.stage == stage and each.ended is None), None)
        started, before = (found.started, found.waited) if found else (began, 0.0)
        ended = None if state == "running" else now
        run = StageRun(stage, state, started, ended, detail, round(before + waited, 3))
        others = tuple(each for each in self.stages if each.stage != stage)
        return replace(self, stages=(*others, run), waiting="" if state != "running" else self.waiting)


def told(approval: Approval) -> str:
    """Say an answer as a person reads it."""
    if approval.approved is None:
        return "not answered yet"
    reason = f": {approval.reason}" if approval.reason else ""
    return f"{'approved' if approval.approved else 'rejected'} by {approval.by}{reason}"
