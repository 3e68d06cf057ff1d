"""Write down when each step of a stage was due and when it began; for the proof of many deferrals."""

from __future__ import annotations

import os
import time
from typing import Any

from tpu_migration.drive import Turns
from tpu_migration.stages.base import Outcome, Waiting
from tpu_migration.triggers import stage
from tpu_migration.triggers.stage import StageTrigger

STEPS_FILE = "TPU_MIGRATION_PROOF_STEPS"  # environment variable: the file's path
CLASSPATH = "tests.prove.timed_trigger.TimedTrigger"


class TimedTurns(Turns):
    """Append "now stage namespace lag_s step_s" to a file at each step; the first was due when this was made."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._due = time.time()
        self._file = os.open(os.environ[STEPS_FILE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def __exit__(self, *error: Any) -> None:
        os.close(self._file)
        super().__exit__(*error)

    def take(self) -> Outcome:
        """Make one step."""
        began, due = time.time(), self._due
        outcome = super().take()
        self._due = ended = time.time()
        if isinstance(outcome, Waiting):
            self._due += outcome.seconds
        name = f"{self.run.stage.name} {self.run.context.plan.namespace}" if self.run else "- -"
        os.write(self._file, f"{began:.3f} {name} {began - due:.4f} {ended - began:.4f}\n".encode())
        return outcome


class TimedTrigger(StageTrigger):
    """The product's trigger, whose turns are timed."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the same under its own name."""
        return CLASSPATH, super().serialize()[1]


stage.Turns = TimedTurns  # type: ignore[misc]
