"""Draw migrations by a seed, with what goes wrong in them, and hold each to the promise.

A scenario is a plan, up to two faults that come and go at some moment of the run, and perhaps the
death of Airflow at one of its calls. Whatever is drawn: no user is hurt but by the fault itself,
the run comes to an end, users are where the record says, and nothing is left over.

    python -m tests.simulation.scenarios SEED    plays one aloud
"""

from __future__ import annotations

import logging
import math
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from sandbox.faults import Fault, describe
from sandbox.virtual_engine import EnginePod
from sandbox.virtual_traffic import Violation
from sandbox.workload import NAMESPACE, WORKLOAD
from tests.simulation.harness import Airflow, Calls, Killed, Phase, Scene
from tpu_migration.domain.phases import AFTER_COMMIT, ENDED
from tpu_migration.guard import IDLE_LIMIT_S, NO_USER_DEPENDS

FAULTS: Mapping[str, Fault] = {fault.name: fault for fault in describe()}
# The cloud runs at this many times its usual speed, so that a migration takes a minute of virtual time.
SPEED = 60.0
QUICK: dict[str, Any] = {"bake_s": 1, "soak_s": 2, "peak_rps": 40}
# One replica of each side, one guard: the smallest migration, about 500 calls of the orchestrator.
SMALLEST: dict[str, Any] = {
    **QUICK,
    "guards": 1,
    "peak_rps": 40,
    "steps": [50, 100],
    "target_replicas": 1,
    "accept_single_replica": True,
    "source_peak_replicas": 1,
    "world": {"speed": 4 * SPEED, "rate_rps": 16.0, "answer_s": 1.0, "replicas": 1},
}
_PHASES = (
    None, Phase.PLANNED, Phase.PROVISIONED, Phase.DEPLOYED, Phase.WARM, Phase.GATED, Phase.SHIFTING, Phase.SHIFTING,
    Phase.SOAKING, Phase.COMMITTED, Phase.DECOMMISSIONING,
)  # fmt: skip
# While these are on, requests that meet them fail, whatever anybody does.
_HURTING = frozenset({"errors-under-load", "hang-mid-stream", "gpu-hung", "lb-errors"})
# These end only with a stage's own time limit; most scenarios cannot wait for hours.
_ENDLESS = frozenset({"pool-stuck", "image-pull", "compile-hang", "slow-compile"})
# While one of these strikes the whole of a busy workload, no keeper may commit: FORETOLD says so, for a soak of 60 s.
SEEN_BY_THE_KEEPER = frozenset({"gitops", "gpu-hung", "hang-mid-stream", "lb-errors", "recompile", "slow-tpu"})
_SEEN_WITHIN_S, _BUSY_RPS = 50.0, 16.0
_LONGEST_CALLS = 700
_HELP_S = 60.0 + 5.0 + 8.0 + 5.0  # a lease, the guard's margin, its restore, the Gateway
_AFTER_S = 60.0  # after the last fault is gone, until nothing of it may be felt any more


@dataclass(frozen=True)
class Onset:
    """A fault, and when it comes and goes."""

    fault: str
    phase: Phase | None  # of the record; None: before the run begins
    after_s: float
    for_s: float | None  # None: until the run has ended
    one_replica: bool  # an engine's fault hits one pod only


@dataclass(frozen=True)
class Death:
    """All of Airflow dies at one of its calls, and comes back some time later; None: long after the guard acted."""

    at_call: int
    after: bool  # the server has done it, the answer is lost
    back_after_s: float | None


@dataclass(frozen=True)
class Scenario:
    """One drawn migration."""

    seed: int
    onsets: tuple[Onset, ...]
    death: Death | None
    plan: dict[str, Any]
    world: dict[str, Any]

    def __str__(self) -> str:
        parts = [f"{o.fault}@{o.phase or 'start'}+{o.after_s:.0f}s" for o in self.onsets]
        if self.death:
            parts.append(f"dies at call {self.death.at_call}, back after {self.death.back_after_s}")
        return f"seed {self.seed}: {', '.join(parts) or 'nothing'}; {self.plan}"


@dataclass
class Ended:
    """How a scenario ended, and everything that is wrong with that."""

    scenario: Scenario
    phase: str = ""
    green: bool = False
    reasons: str = ""
    calls: int = 0
    problems: list[str] = field(default_factory=list)


def draw(seed: int) -> Scenario:
    """Return the scenario of a seed."""
    chance = Random(seed)
    count = chance.choices((0, 1, 2), (5, 70, 25))[0]
    onsets = tuple(_onset(chance, name) for name in chance.sample(sorted(FAULTS), count))
    death = None
    if chance.random() < 0.35:
        back = chance.choice((5.0, 15.0, 30.0, 100.0, None))
        death = Death(chance.randint(1, _LONGEST_CALLS), chance.random() < 0.5, back)
    plan: dict[str, Any] = {
        **QUICK,
        "steps": chance.choice(([100], [50, 100], [10, 50, 100])),
        "source_release": chance.choice(("keep", "scale-to-zero", "delete-pool")),
        "stop_after": "gate" if chance.random() < 0.1 else "none",
    }
    world = {"speed": SPEED, "rate_rps": chance.choice((4.0, _BUSY_RPS)), "answer_s": chance.choice((1.0, 5.0))}
    plan["soak_s"] = chance.choice((QUICK["soak_s"],) * 4 + (60,))
    return Scenario(seed, onsets, death, plan, world)


def _onset(chance: Random, name: str) -> Onset:
    phase = FAULTS[name].begins if chance.random() < 0.3 else chance.choice(_PHASES)
    lasting = (5.0, 20.0, 60.0) if name in _ENDLESS and chance.random() < 0.95 else (None, 5.0, 20.0, 60.0)
    after_s = 12 * chance.random() ** 2  # a phase is short: most come early in it
    return Onset(name, phase, after_s, chance.choice(lasting), chance.random() < 0.5)


class Play:
    """Run one scenario to its end."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.scene = Scene(seed=scenario.seed, world=scenario.world, **scenario.plan)
        self.world = self.scene.world
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.watched: Counter[str] = Counter()  # by fault: how long users were on the target meanwhile, in seconds
        self._watched_at = self.world.clock.now()
        self._chance = Random(f"play/{scenario.seed}")
        self.over = False
        for onset in scenario.onsets:
            self._arm(onset)
        self.world.on_tick.append(self._watch)

    # ---------------------------------------------------------------- faults

    def _arm(self, onset: Onset) -> None:
        due: list[float] = []

        def look() -> None:
            now = self.world.clock.now()
            if onset.fault in self.ended:
                return
            if onset.fault in self.began:
                if onset.for_s is not None and now >= self.began[onset.fault] + onset.for_s:
                    self._end(onset.fault)
            elif self.over:
                return  # a fault that was due later strikes nobody any more
            elif not due and (onset.phase is None or self.phase == onset.phase):
                due.append(now + onset.after_s)
            elif due and now >= due[0]:
                self.begin(onset)

        if onset.phase is None and not onset.after_s:
            self.begin(onset)
        self.world.on_tick.append(look)

    def begin(self, onset: Onset) -> None:
        options: dict[str, Any] = {}
        engines = sorted(p.name for p in self.world.pods.values() if isinstance(p, EnginePod) and p.is_tpu)
        if onset.fault.startswith("gpu"):
            engines = sorted(p.name for p in self.world.pods.values() if isinstance(p, EnginePod) and not p.is_tpu)
        if onset.one_replica and engines and "workload" in FAULTS[onset.fault].options:
            options["workload"] = self._chance.choice(engines)
        self.began[onset.fault] = self.world.clock.now()
        self.world.faults.set(onset.fault, options)

    def _end(self, fault: str) -> None:
        self.world.faults.clear(fault)
        self.ended[fault] = self.world.clock.now()

    def _watch(self) -> None:
        now = self.world.clock.now()
        if self.began and self.phase == Phase.SOAKING:
            self.watched.update({name: now - self._watched_at for name in self.began.keys() - self.ended.keys()})
        self._watched_at = now

    @property
    def phase(self) -> str:
        """The record's phase, empty before there is one."""
        entry = self.world.api.store.get("configmaps", NAMESPACE, f"tpu-migration-{WORKLOAD}")
        return str(entry.obj["data"]["phase"]) if entry else ""

    # ------------------------------------------------------------------- run

    def run(self) -> Ended:
        """Let the migration run, die and come back, until it has ended; then look at what is left."""
        death, ended = self.scenario.death, Ended(self.scenario)
        calls = Calls(kill_at=death.at_call, after=death.after) if death else Calls()
        airflow = self.scene.airflow(calls=calls)
        try:
            airflow.run()
        except Killed:
            airflow = self._come_back(airflow, ended)
        return self.conclude(airflow, ended)

    def conclude(self, airflow: Airflow, ended: Ended) -> Ended:
        """Take the faults away once the run has ended, let what it could not do be done, and judge what is left."""
        ended.green, ended.reasons, ended.calls = airflow.green, airflow.reasons(), airflow.calls.count
        self.over = True
        for name in [each for each in self.began if each not in self.ended]:
            self._end(name)
        self.world.advance(_AFTER_S)
        if self.phase and self.phase not in ENDED and self.phase not in AFTER_COMMIT:
            # A fault was on while the teardown worked: the same run, cleared, must come to its end now.
            airflow.ended.pop("restore", None)
            airflow = self.scene.goes_on(airflow)
            ended.green, ended.reasons = airflow.green, f"{ended.reasons}; cleared: {airflow.reasons()}"
        self.world.advance(_AFTER_S)
        ended.phase = self.phase
        ended.problems += self._problems(ended)
        comes_back = "node-lost" not in self.began  # its machines do not
        if ended.phase in (Phase.COMMITTED, Phase.DECOMMISSIONING) and comes_back and not ended.problems:
            ended.problems += self._cleared_after_the_commit(airflow)
        return ended

    def _cleared_after_the_commit(self, airflow: Airflow) -> list[str]:
        """Do what every message after the commit tells people to: clear the task, once its cause is gone."""
        airflow.ended.pop("decommission", None)
        airflow.ended.pop("restore", None)
        airflow = self.scene.goes_on(airflow)
        self.world.advance(_AFTER_S)
        if self.phase == Phase.MIGRATED and airflow.green:
            return self._wrong_route()
        return [f"cleared after the commit, it ended {self.phase}: {airflow.reasons()}"]

    def _come_back(self, airflow: Airflow, ended: Ended) -> Airflow:
        death = self.scenario.death
        assert death is not None
        if death.back_after_s is None:
            self.world.advance(_HELP_S)
            if not self.scenario.onsets and self.phase in (Phase.SHIFTING, Phase.SOAKING):
                ended.problems.append(f"left dead in {self.phase}, the guard has not restored within {_HELP_S:.0f} s")
            if self.phase in NO_USER_DEPENDS:
                self.world.advance(IDLE_LIMIT_S / 10, tick_s=5.0)
        else:
            self.world.advance(death.back_after_s)
        return self.scene.goes_on(airflow)

    # ----------------------------------------------------------------- judge

    def _problems(self, ended: Ended) -> list[str]:
        found = [f"users: {each.what} at {each.at:.0f}" for each in self._noticed()[:3]]
        found += self._wrong_route()
        found += self._overlooked()
        if not self.scenario.onsets and not self.scenario.death and self.phase not in (Phase.MIGRATED, Phase.PROVEN):
            found.append(f"nothing went wrong, and it ended {self.phase}: {ended.reasons}")
        expected_green = self.phase in (Phase.MIGRATED, Phase.PROVEN)
        if ended.green and not expected_green:
            found.append(f"the run is green in phase {self.phase or 'none'}")
        if self.phase not in ("", *ENDED, *AFTER_COMMIT):
            found.append(f"the run ended in phase {self.phase}: {ended.reasons}")
        if self.phase in (Phase.FALLEN_BACK, Phase.PROVEN):
            if extra := self.scene.pools() - {"default-pool", "h100-pool"}:
                found.append(f"node pools left: {extra}")
            if left := self.scene.leftovers():
                found.append(f"objects left: {left}")
        if self.phase in ("", Phase.FALLEN_BACK, Phase.PROVEN, Phase.HELD):
            found += self.scene.source_changes()
        return found

    def _overlooked(self) -> list[str]:
        """Return what went wrong all the while that users soaked on the target, if they were left there."""
        if self.scenario.death or self.scenario.world["rate_rps"] < _BUSY_RPS or self.phase not in AFTER_COMMIT:
            return []
        whole = {each.fault for each in self.scenario.onsets if not each.one_replica}
        return [
            f"{name} was on for {self.watched[name]:.0f} s of the soak, and the run committed"
            for name in sorted(whole & SEEN_BY_THE_KEEPER)
            if self.watched[name] > _SEEN_WITHIN_S
        ]

    def _noticed(self) -> list[Violation]:
        """Return what users noticed and the faults do not excuse."""
        return [each for each in self.world.traffic.violations if not any(self._excuses(n, each) for n in self.began)]

    def _excuses(self, fault: str, violation: Violation) -> bool:
        begin, end = self.began[fault], self.ended[fault]
        if self._unwatched_revert():
            end = math.inf
        elif fault in _HURTING or fault in self._reverts_late():
            end += _AFTER_S / 2  # streams that it held up end with their engine
        elif FAULTS[fault].hurts_s:
            end = begin + FAULTS[fault].hurts_s
        else:
            return False
        return begin <= violation.at <= end

    def _reverts_late(self) -> set[str]:
        """Return the fault that puts the old route back once the GPUs are being given up.

        Users then meet nobody until the teardown has restored the safe route; before the commit, the same
        does no harm.
        """
        return {each.fault for each in self.scenario.onsets if each.fault == "gitops" and each.phase in AFTER_COMMIT}

    def _unwatched_revert(self) -> bool:
        """Tell whether the old route was put back when the run was over, and nobody watches any more."""
        return bool(self._reverts_late()) and self.phase == Phase.MIGRATED

    def _wrong_route(self) -> list[str]:
        """Compare where users are sent at the end with where the phase says that they are safe."""
        if self._unwatched_revert():
            return []
        weights = {name: weight for name, weight in self.scene.weights().items() if weight}
        on_target = self.phase in AFTER_COMMIT
        target = f"{WORKLOAD}-tpu"
        wanted = target if on_target else WORKLOAD
        found = []
        # After the commit the safe route is wherever somebody serves; before it, it is the source and nothing else.
        if set(weights) != {wanted} and not (on_target and weights):
            found.append(f"users are on {weights} in phase {self.phase or 'none'}")
        found += [
            f"{name} has weight and no ready engine" for name in weights if not self.world.traffic.ready_engines(name)
        ]
        return found


def play(scenario: Scenario) -> Ended:
    """Run a scenario and say how it ended."""
    return Play(scenario).run()


def main() -> None:
    """Play the scenario of one seed aloud, for whoever looks into what went wrong."""
    (seed,) = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ended = play(draw(int(seed)))
    print(f"{ended.scenario}\n{ended.phase or 'never began'}, {'green' if ended.green else 'red'}: {ended.reasons}")
    for problem in ended.problems:
        print(f"PROBLEM: {problem}")


if __name__ == "__main__":
    main()
