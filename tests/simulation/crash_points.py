"""Kill the orchestrator before and after each API call of a story, and see that users are safe whatever comes then.

A story is a migration, a decommission, or a fallback from one of the phases. After the kill the run is resumed, or left
dead with only the guards alive, or it was no kill at all: a duplicate of the worker joins it. Kills that leave equal
worlds behind (worlds.py) are played once.

    python -m tests.simulation.crash_points STORY FATE CALL before|after    plays one aloud
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sandbox.virtual_engine import EnginePod
from sandbox.workload import NAMESPACE
from tests.simulation.harness import Airflow, Calls, Killed, Phase, Scene
from tests.simulation.scenarios import SMALLEST
from tests.simulation.together import Together
from tests.simulation.witness import TARGET, Witness
from tests.simulation.worlds import digest
from tpu_migration.domain.phases import AFTER_COMMIT, ENDED, USERS_MAY_BE_ON_TARGET
from tpu_migration.guard import IDLE_LIMIT_S, NO_USER_DEPENDS
from tpu_migration.lease import DURATION_S
from tpu_migration.stages.base import Failed

GUARD_MARGIN_S = 5.0
BOUND_S = DURATION_S + GUARD_MARGIN_S  # until the safe route is written; writing takes no time here
# The Gateway follows after a second: long enough that it lags behind what is written in the same instant.
SPEED = 8.0
PLAN: dict[str, Any] = {**SMALLEST, "guards": 2, "world": {**SMALLEST["world"], "speed": SPEED}}
# For how many calls of the duplicate a call of the first worker is under way; one by one, by the point's number.
HELD_CALLS = (0, 1, 3, 8, 30)
_HELD_S = 10.0  # no call is under way for longer: clients.kubernetes.CALL_TIMEOUT_S
_BEFORE_WEIGHTS = (Phase.PLANNED, Phase.PROVISIONED, Phase.DEPLOYED, Phase.WARM, Phase.GATED)


class Stopped(BaseException):
    """A person marks the task that runs as failed."""


class Fate(StrEnum):
    """What comes after the kill."""

    RESUMED = "resumed"  # 12 s later, within the lease
    DEAD = "left dead"  # only the guards are alive; much later, Airflow is started again
    JOINED = "joined"  # nothing was killed: a second worker of the same task begins beside the first


@dataclass(frozen=True)
class Story:
    """What the orchestrator does; each of its calls from `begins` on, while `within` holds, is a crash point."""

    name: str
    ends: Phase
    within: frozenset[Phase | None]
    stopped_in: Phase | None = None  # a person marks the task as failed
    unwatched_in: Phase | None = None  # somebody deletes the prober: its silence is a breach
    plan: dict[str, Any] = field(default_factory=dict)


_LONG = {"bake_s": 60, "soak_s": 60}  # longer than a prober may be silent
_ALWAYS: frozenset[Phase | None] = frozenset({None, *Phase})
STORIES: dict[str, Story] = {
    story.name: story
    for story in (
        Story("migration", Phase.MIGRATED, _ALWAYS - AFTER_COMMIT),
        Story("decommission", Phase.MIGRATED, AFTER_COMMIT),
        *(
            Story(f"stopped in {phase}", Phase.FALLEN_BACK, _ALWAYS, stopped_in=phase)
            for phase in (*_BEFORE_WEIGHTS, Phase.SHIFTING, Phase.SOAKING)
        ),
        *(
            Story(f"breach in {phase}", Phase.FALLEN_BACK, _ALWAYS, unwatched_in=phase, plan=_LONG)
            for phase in (Phase.SHIFTING, Phase.SOAKING)
        ),
        Story("proof of concept", Phase.PROVEN, frozenset({Phase.GATED, Phase.PROVEN}), plan={"stop_after": "gate"}),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """Where a story is cut: at which of its counted calls, and before or after the server has done it."""

    call: int
    after: bool


@dataclass
class Played:
    """How it ended, and everything that broke the promise."""

    problems: list[str] = field(default_factory=list)
    safe_after_s: float | None = None  # from the kill to the safe route, where users were on their way


class StoryCalls(Calls):
    """Count a story's own calls, tell of each before and after the server has done it, and give way to a duplicate."""

    def __init__(self, play: Play) -> None:
        super().__init__()
        self._play = play
        self.begun = False
        self._counted = False

    def before(self, method: str, path: str) -> None:
        self.begun = self.begun or self._play.begins()
        self._counted = self.begun and self._play.phase in self._play.story.within
        self.count += self._counted
        self._tell(False)

    def done(self, method: str, path: str) -> None:
        self._tell(True)

    def _tell(self, after: bool) -> None:
        if self._play.together:
            self._play.together.give_way()
        elif self._counted:
            self._play.at(Point(self.count, after))


class GivingWay(Calls):
    """Count the calls of a duplicate, and let the other worker's come in between."""

    def __init__(self, together: Together) -> None:
        super().__init__()
        self._together = together

    def before(self, method: str, path: str) -> None:
        self.count += 1
        self._together.give_way()

    def done(self, method: str, path: str) -> None:
        self._together.give_way()


class Play:
    """Play one story up to a point, and what comes then."""

    def __init__(self, story: Story, at: Callable[[Point], None]) -> None:
        self.story, self.at = story, at
        self.together: Together | None = None  # once a duplicate has joined
        self.scene = Scene(**{**PLAN, **story.plan})
        self.world = self.scene.world
        self.witness = Witness(self.world)
        self.witness.source_pools = ("h100-pool",)
        self.calls = StoryCalls(self)
        self.airflow = self.scene.airflow(calls=self.calls)
        self.played = Played()

    @property
    def phase(self) -> Phase | None:
        """The record's phase right now; None before there is one."""
        record = self.witness.record
        return record.phase if record else None

    def begins(self) -> bool:
        """Tell whether the story has come to where its own calls begin; whatever is to happen there happens now."""
        story = self.story
        if story.stopped_in is None and story.unwatched_in is None:
            return True
        if self.phase is not (story.stopped_in or story.unwatched_in):
            return False
        if self.phase is Phase.SHIFTING and not self.scene.weights().get(TARGET):
            return False
        if story.unwatched_in is None:
            raise Stopped
        self.world.client.delete("deployments", NAMESPACE, self.airflow.current.context.names.prober)  # type: ignore[union-attr]
        return True

    def to_its_end(self) -> Airflow:
        """Run the story; Killed where the point says so."""
        try:
            return self.airflow.run()
        except Stopped:
            assert self.airflow.current is not None
            self.airflow.ended[self.airflow.current.stage.name] = Failed("a person marked the task as failed")
            self.calls.begun = True
            return self.airflow.run()

    # ------------------------------------------------------------------ fates

    def resumed(self) -> None:
        """Start Airflow again within the lease: the story ends as if nothing had happened."""
        self.world.advance(12.0)
        again = self.scene.goes_on(self.airflow)
        if self.scene.rescued:
            self._broken("the guard took a run for dead that came back within its lease")
        self._judge(again, {self.story.ends})

    def left_dead(self) -> None:
        """Leave it to the guards, and start Airflow again when nobody expects it any more."""
        killed_in = self.phase
        if killed_in in USERS_MAY_BE_ON_TARGET:
            self._rescue()
        else:
            self.world.advance(BOUND_S)
        if self.phase in NO_USER_DEPENDS:
            self.world.advance(IDLE_LIMIT_S - DURATION_S, tick_s=5.0)
        if self.phase not in (None, *ENDED, *AFTER_COMMIT) and self.phase is not Phase.FALLING_BACK:
            self._broken(f"the guard left a dead migration in {self.phase}")
        if self.phase is Phase.FALLING_BACK:
            self.world.advance(2 * BOUND_S)
            self._target_is_empty()
        ends = {self.story.ends} if self.phase in (None, *ENDED, *AFTER_COMMIT) else {Phase.FALLEN_BACK}
        self._judge(self.scene.goes_on(self.airflow), ends)

    def _rescue(self) -> None:
        """Wait for the guard, second by second, and note when the safe route was written and the record told."""
        killed = self.world.clock.now()
        while self.phase in USERS_MAY_BE_ON_TARGET or self.witness.written_percent:
            if self.world.clock.now() - killed > 2 * BOUND_S:
                self._broken(f"left dead in {self.phase}, the guard has not restored within {2 * BOUND_S:.0f} s")
                return
            self.world.advance(1.0)
        self.played.safe_after_s = self.world.clock.now() - killed
        if self.played.safe_after_s > BOUND_S:
            self._broken(
                f"the safe route came {self.played.safe_after_s:.0f} s after the kill, more than {BOUND_S:.0f}"
            )

    def _target_is_empty(self) -> None:
        """See that nothing of the target runs: what is left is an empty pool, and the objects around it."""
        running = [each.name for each in self.world.pods.values() if isinstance(each, EnginePod) and each.is_tpu]
        if running:
            self._broken(f"nobody came back, and {', '.join(running)} still run")

    def joined(self, point: Point) -> None:
        """Let a duplicate take the task up beside the first worker, whose call is under way for a while."""
        together, first = Together(self.world), self.airflow
        calls = GivingWay(together)
        held = HELD_CALLS[point.call % len(HELD_CALLS)]
        runs: list[Airflow] = []

        def join(now: Point) -> None:
            if now != point:
                return
            self.together, first.joined, first.wait = together, True, together.sleep
            duplicate = self.scene.again(first, calls)
            duplicate.wait = together.sleep
            ended = together.start(lambda: runs.append(duplicate.run()))
            until = self.world.clock.now() + _HELD_S
            together.wait(lambda: calls.count >= held or ended() or self.world.clock.now() >= until, until)

        self.at = join
        together.start(self.to_its_end)
        together.run()
        if runs:
            self._judge(runs[0], {self.story.ends})
        else:
            self._broken("the story never came to the point")

    # ------------------------------------------------------------------ judge

    def _judge(self, ended: Airflow, ends: set[Phase]) -> None:
        self.world.advance(10.0)
        if self.phase not in ends:
            self._broken(f"it ended {self.phase}, not {' or '.join(ends)}: {ended.reasons()}")
        if ended.green is not (self.phase in (Phase.MIGRATED, Phase.PROVEN)):
            self._broken(f"the run is {'green' if ended.green else 'red'} in phase {self.phase}: {ended.reasons()}")
        self.played.problems += self.scene.problems_at_rest()
        self.played.problems += [f"users: {each.what}" for each in self.world.traffic.violations[:3]]
        self.played.problems += [each.what for each in self.witness.broken[:3]]

    def _broken(self, what: str) -> None:
        self.played.problems.append(what)


def points(story: Story) -> list[tuple[Point, bytes]]:
    """Play a story to its end, and return its points, each with the digest of the world that a kill there leaves."""
    found: list[tuple[Point, bytes]] = []
    play = Play(story, lambda point: found.append((point, digest(play.scene, play.airflow))))
    play.to_its_end()
    play._judge(play.airflow, {story.ends})
    if play.played.problems:
        raise AssertionError(f"{story.name}, undisturbed: {play.played.problems}")
    return found


def different(found: Sequence[tuple[Point, bytes]], known: set[bytes]) -> list[Point]:
    """Return the first point of each world that is not known yet."""
    chosen = []
    for point, world in found:
        if world not in known:
            known.add(world)
            chosen.append(point)
    return chosen


def play(story: Story, fate: Fate, point: Point) -> Played:
    """Play a story to the point, and what comes then."""

    def kill(now: Point) -> None:
        if now == point:
            raise Killed(f"{now}")

    one = Play(story, kill)
    if fate is Fate.JOINED:
        one.joined(point)
        return one.played
    try:
        one.to_its_end()
    except Killed:
        one.resumed() if fate is Fate.RESUMED else one.left_dead()
    else:
        one.played.problems.append("the story never came to the point")
    return one.played


def main() -> None:
    """Play one point aloud."""
    story, fate, call, when = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    played = play(STORIES[story], Fate(fate), Point(int(call), when == "after"))
    for problem in played.problems:
        print(f"PROBLEM: {problem}")


if __name__ == "__main__":
    main()
