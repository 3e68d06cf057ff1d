"""Strike with each fault of the sandbox at the beginning of each stage: a safe end, for the right reason.

python -m tests.simulation.fault_matrix FAULT STAGE    plays one cell aloud
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests.docs.messages import in_runbook
from tests.simulation.harness import Airflow, Calls, Phase
from tests.simulation.scenarios import FAULTS, QUICK, SPEED, Ended, Onset, Play, Scenario
from tests.simulation.witness import TARGET
from tpu_migration.stages.base import Failed

# A stage begins in this phase. `soak` is the keeper's last part; `restore` comes to work when a person stops the shift.
STAGES: Mapping[str, Phase | None] = {
    "preflight": None,
    "provision": Phase.PLANNED,
    "deploy": Phase.PROVISIONED,
    "warm_up": Phase.DEPLOYED,
    "gate": Phase.WARM,
    "shift": Phase.GATED,
    "soak": Phase.SOAKING,
    "decommission": Phase.COMMITTED,
    "restore": Phase.FALLING_BACK,
}
CELLS = [(fault, stage) for fault in sorted(FAULTS) for stage in STAGES]


class Foretold(NamedTuple):
    """How a run ends that a fault strikes in one of these stages, and what its reason says (a regular expression)."""

    stages: str
    ends: Phase
    reason: str


_BEFORE_WARM = "preflight provision deploy warm_up"
_FELL = Phase.FALLEN_BACK
# What is not here is ridden out, or comes too late to strike: the migration ends well. A stopped run falls back.
FORETOLD: Mapping[str, Sequence[Foretold]] = {
    "api-down": [Foretold("soak", _FELL, "nothing could be seen for")],
    "compile-hang": [Foretold(_BEFORE_WARM, _FELL, "warm_up: .* no progress for 20 minutes")],
    "crash-loop": [Foretold(_BEFORE_WARM, _FELL, "warm_up: .* keeps crashing")],
    "errors-under-load": [
        Foretold(_BEFORE_WARM, _FELL, "warm-up pass 1: .* failed, first: HTTP 500"),
        Foretold("gate", _FELL, "the benchmark gate: FAIL"),
    ],
    "gitops": [
        Foretold(f"{_BEFORE_WARM} gate shift soak", _FELL, "last written by argocd-controller"),
        Foretold("decommission", Phase.COMMITTED, "users are not all on the target, nothing is given up"),
    ],
    "gpu-gone": [Foretold("soak", _FELL, "the source has 1 ready endpoints of 2")],
    "gpu-hung": [
        Foretold(f"{_BEFORE_WARM} gate", Phase.HELD, "the baseline's p95 is not measurable"),
        Foretold("shift", _FELL, "no answer on the way 'main'"),
        Foretold("soak", _FELL, "Ready but gives no completion"),
    ],
    "hang-mid-stream": [
        Foretold(_BEFORE_WARM, _FELL, "it hangs, or its port is not reached"),
        Foretold("gate", _FELL, "the Gateway does not reach the target"),
        Foretold("shift", _FELL, "no answer on the way 'target'"),
        Foretold("soak", _FELL, "2 probes in a row failed"),
        Foretold("decommission", Phase.DECOMMISSIONING, "for 5 minutes: nothing more is given up"),
    ],
    "host-oom": [Foretold(_BEFORE_WARM, _FELL, "OOMKilled")],
    "image-pull": [Foretold(_BEFORE_WARM, _FELL, "ImagePullBackOff")],
    "late-oom": [Foretold(_BEFORE_WARM, _FELL, "ran out of accelerator memory")],
    "late-stockout": [Foretold("preflight provision", _FELL, "lack of capacity")],
    "lb-errors": [
        Foretold(f"{_BEFORE_WARM} gate", _FELL, "error rate .* > limit"),
        Foretold("shift soak", _FELL, "probes (in a row failed at|of) the Gateway's own address"),
    ],
    "node-lost": [
        Foretold("preflight provision", _FELL, "1 of 2 TPU nodes are ready"),
        Foretold("deploy warm_up", _FELL, "finds no node for|no ready"),
        Foretold("gate", _FELL, "no measurement was possible"),
        Foretold("shift soak", _FELL, "has given no data for"),
        Foretold("decommission", Phase.COMMITTED, "needed before GPUs go: nothing is given up"),
    ],
    "oom": [Foretold(_BEFORE_WARM, _FELL, "ran out of accelerator memory")],
    "pool-stuck": [Foretold("preflight provision", _FELL, "not ready after 36")],
    "quota": [Foretold("preflight provision", _FELL, "GCE_QUOTA_EXCEEDED")],
    "recompile": [
        Foretold(f"{_BEFORE_WARM} gate", _FELL, "recompiles during the window"),
        Foretold("shift soak", _FELL, "waited more than 3000 ms for"),
    ],
    "slow-compile": [Foretold(_BEFORE_WARM, _FELL, "compiles for too long")],
    "slow-tpu": [
        Foretold(f"{_BEFORE_WARM} gate", _FELL, "the benchmark gate: FAIL: p95 TPOT"),
        Foretold("shift soak", _FELL, "waited more than 3000 ms for"),
    ],
    "stockout": [Foretold("preflight provision", _FELL, "ZONE_RESOURCE_POOL_EXHAUSTED")],
}
_PLAN: dict[str, Any] = {**QUICK, "steps": [50, 100], "soak_s": 60, "source_release": "delete-pool"}
_WORLD: dict[str, Any] = {"speed": SPEED, "rate_rps": 16.0, "answer_s": 1.0}


class _Stopped(BaseException):
    """A person marks the shift as failed, so that the teardown has something to do."""


class _CellCalls(Calls):
    """Strike right before the first call of a stage."""

    def __init__(self, play: CellPlay) -> None:
        super().__init__()
        self._play = play

    def before(self, method: str, path: str) -> None:
        super().before(method, path)
        self._play.look()


class CellPlay(Play):
    """Play a migration with one fault from the beginning of one stage to the end of the run."""

    def __init__(self, fault: str, stage: str) -> None:
        onset = Onset(fault, STAGES[stage], 0.0, None, one_replica=False)
        super().__init__(Scenario(1, (onset,), None, _PLAN, _WORLD))
        self._onset, self._stage = onset, stage
        self.airflow: Airflow = self.scene.airflow(calls=_CellCalls(self))
        self._stopped = False

    def _arm(self, onset: Onset) -> None:
        """Strike by calls, not by the clock: a stage may be over within one tick."""

    def look(self) -> None:
        """Strike if the stage begins now."""
        if self._onset.fault in self.began:
            return
        if (
            self._stage == "restore"
            and not self._stopped
            and self.phase == Phase.SHIFTING
            and self.scene.weights().get(TARGET)
        ):
            self._stopped = True
            raise _Stopped
        if self.phase == (self._onset.phase or "") and (self._stage != "restore" or self._stopped):
            self.begin(self._onset)

    def run(self) -> Ended:
        ended = Ended(self.scenario)
        try:
            self.airflow.run()
        except _Stopped:
            assert self.airflow.current is not None
            self.airflow.ended[self.airflow.current.stage.name] = Failed("a person marked the task as failed")
            self.airflow.run()
        if self._onset.fault not in self.began:
            ended.problems.append(f"the run never came to {self._stage}")
        return self.conclude(self.airflow, ended)


def foretold(fault: str, stage: str) -> Foretold:
    """Return how a cell must end."""
    if stage == "restore":
        return Foretold(stage, Phase.FALLEN_BACK, "a person marked the task as failed")
    ended_well = Foretold(stage, Phase.MIGRATED, "")
    return next((each for each in FORETOLD.get(fault, ()) if stage in each.stages.split()), ended_well)


def broken(fault: str, stage: str) -> list[str]:
    """Play one cell, and return what is wrong with its end."""
    ended, wanted = CellPlay(fault, stage).run(), foretold(fault, stage)
    found = [f"{fault} in {stage}: {each}" for each in ended.problems]
    if ended.phase != wanted.ends or not re.search(wanted.reason, ended.reasons):
        told = f"{ended.phase}: {ended.reasons or 'no reason'}"
        found.append(f"{fault} in {stage} ended {told}; foretold was {wanted.ends}: {wanted.reason}")
    failure = ended.reasons.partition("; restore:")[0]  # what the teardown says besides is the same for all
    if wanted.reason and stage != "restore" and not in_runbook(failure):
        found.append(f"{fault} in {stage}: docs/runbook.md has no entry for {failure!r}")
    return found


def main() -> None:
    """Play one cell aloud."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ended = CellPlay(*sys.argv[1:]).run()
    print(f"{ended.phase or 'never began'}, {'green' if ended.green else 'red'}: {ended.reasons}")
    for problem in ended.problems:
        print(f"PROBLEM: {problem}")


if __name__ == "__main__":
    main()
