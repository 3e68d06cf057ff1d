"""Long streams through whole migrations on the real scheduler: its processes are killed, users sent home at each step.

One stand, users who never stop, and one migration after the other: while each of Airflow's processes is killed in
mid shift, soak and decommission, and with a person who sends everybody home at each step. After each migration
`gpu_fallback` brings the workload back to its GPUs, so that the next can begin. What counts: no stream failed, none
was cut.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sandbox.stand import DAG_ID, Stand, way_back_on
from sandbox.workload import WORKLOAD
from tests.prove.ledger import Ledger
from tpu_migration.clock import SystemClock
from tpu_migration.domain.phases import Phase
from tpu_migration.record import Record
from tpu_migration.restore import restore

NAME = "live"
RATE_RPS, TOKENS = 9.5, 680  # alike for all: each answer takes ten seconds and more, on GPU and on TPU
REPLICAS = 3  # a replica takes 64 at once, and a hundred are there always
RUN_S = 600.0
COMPONENTS = ("worker", "triggerer", "scheduler", "api-server")
PHASES = {"shift": Phase.SHIFTING, "soak": Phase.SOAKING, "decommission": Phase.DECOMMISSIONING}
# A worker has a task only until its first wait; a soak, which is all waiting, is the triggerer's alone.
KILLS = {f"{each} in {phase}" for each in COMPONENTS for phase in PHASES} - {"worker in soak"}
STREAMS_AT_ONCE = 100
STEPS = (10, 50, 100)
TASK_OF = {"shift": "shift", "soak": "shift", "decommission": "decommission"}


def prove(ledger: Ledger, streams: int) -> bool:
    """Run migrations until so many long streams have come through; True if none was hurt and each ended as it must."""
    if (known := ledger.get(NAME)).get("long_streams", 0) >= streams and not known["problems"]:
        print(f"live: proven already, {known['long_streams']} streams")
        return True
    figures = asyncio.run(_live(streams))
    ledger.put(NAME, figures)
    print("; ".join(f"{key} {value}" for key, value in figures.items() if key not in ("runs", "problems")), flush=True)
    for problem in figures["problems"]:
        print(f"BROKEN: {problem}")
    return not figures["problems"]


async def _live(streams: int) -> dict[str, Any]:
    directory = Path("out/live")
    shutil.rmtree(directory, ignore_errors=True)
    async with Stand(directory, replicas=REPLICAS) as stand:
        await stand.airflow.start()
        await stand.start_users(
            rate=RATE_RPS, output_tokens=TOKENS, more=("--spread", "0", "--natural-share", "0", "--prompt-tokens", "64")
        )
        live = _Live(stand)
        plays: list[Callable[[], Awaitable[None]]] = [
            *(lambda each=each: live.killing(each) for each in COMPONENTS),
            *(lambda each=each: live.sent_home_at(each) for each in STEPS),
        ]
        while plays or (live.long_streams < streams and not live.problems):
            carried = live.long_streams
            await (plays.pop(0) if plays else live.undisturbed)()
            print(f"live: {live.runs[-1]}, {live.long_streams} of {streams} long streams", flush=True)
            if live.long_streams == carried:
                live.problems.append(f"no long stream came through in {live.runs[-1]}")
        users = await stand.stop_users()
    hurt = [f"a stream was hurt: {each}" for each in users["failures"][:5]]
    hurt += [f"{users[each]} {each}" for each in ("failed", "truncated") if users[each]]
    if users["peak_streams"] < STREAMS_AT_ONCE:
        hurt.append(f"at most {users['peak_streams']} streams at once, fewer than {STREAMS_AT_ONCE}")
    if missed := sorted(KILLS - set(live.kills)):
        hurt.append(f"nothing was killed: {', '.join(missed)}")
    counted = {
        key: users[key] for key in ("requests", "long_streams", "failed", "truncated", "peak_streams", "p99_ttft_s")
    }
    return {**counted, "kills": live.kills, "runs": live.runs, "problems": [*live.problems, *hurt]}


class _Live:
    """One workload that goes to TPU and back, again and again."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.runs: list[str] = []
        self.kills: list[str] = []
        self.problems: list[str] = []

    @property
    def long_streams(self) -> int:
        return int(self.stand.users().get("long_streams", 0))

    async def undisturbed(self) -> None:
        """Migrate and come back."""
        await self._migrate("undisturbed", lambda run: asyncio.sleep(0))
        await self._back()

    async def killing(self, component: str) -> None:
        """Migrate while one of Airflow's processes is killed in each of the phases that count; come back."""
        name = f"kill-{component}"
        await self._migrate(name, lambda run: self._kill_in_each_phase(run, component))
        await self._back()

    async def sent_home_at(self, percent: int) -> None:
        """Migrate until users are at a step; then a person at a terminal sends everybody home."""
        name = f"home-at-{percent}"

        async def send_home(run: str) -> None:
            await self._until(run, lambda record: record.shift.percent == percent and record.shift.observed is not None)
            record = await self._record()
            await asyncio.to_thread(
                restore, self.stand.kube, record.namespace, WORKLOAD, actor="a person", reason=name, clock=SystemClock()
            )

        await self._migrate(name, send_home, expected=Phase.FALLEN_BACK)

    # ------------------------------------------------------------------- parts

    async def _migrate(
        self, name: str, meanwhile: Callable[[str], Awaitable[object]], expected: Phase = Phase.MIGRATED
    ) -> None:
        run, began = f"{name}-{len(self.runs)}", time.monotonic()
        conf = self.stand.conf(
            source_release="scale-to-zero",
            bake_s=10,
            soak_s=20,
            target_replicas=REPLICAS,
            source_peak_replicas=REPLICAS,
        )
        await self.stand.airflow.trigger_by_api(DAG_ID, conf, run_id=run)
        await meanwhile(run)
        state = await self.stand.airflow.wait_for_run(DAG_ID, run, RUN_S)
        record = await self._record()
        took = f"{run}: {state}, {record.phase}, {time.monotonic() - began:.0f} s"
        self.runs.append(took)
        if record.run_id != run or record.phase is not expected or (state == "success") != (expected is Phase.MIGRATED):
            self.problems.append(f"{took}, expected {expected}: {record.fallback}")

    async def _kill_in_each_phase(self, run: str, component: str) -> None:
        for where, phase in PHASES.items():
            if component == "worker":
                if f"worker in {where}" in KILLS and await self.stand.airflow.kill_worker(
                    DAG_ID, run, TASK_OF[where], RUN_S
                ):
                    self.kills.append(f"worker in {where}")
                continue
            await self._until(run, lambda record, phase=phase: record.phase is phase)
            await self.stand.airflow.kill(component)
            self.kills.append(f"{component} in {where}")
            await asyncio.sleep(2.0)
            await self.stand.airflow.start()

    async def _back(self) -> None:
        # Unproven: what counts here are the streams, and the load of a proof is felt by a machine that serves them all.
        run = f"back-{len(self.runs)}"
        await self.stand.airflow.trigger_by_api("gpu_fallback", way_back_on(self.stand.state, prove=False), run_id=run)
        state = await self.stand.airflow.wait_for_run("gpu_fallback", run, RUN_S)
        if state != "success" or (await self._record()).phase is not Phase.FALLEN_BACK:
            self.problems.append(f"{run} is {state}, {(await self._record()).phase}")

    async def _until(self, run: str, condition: Callable[[Record], bool]) -> None:
        async def holds() -> bool:
            record = await self.stand.record()
            if record is not None and record.run_id == run and not record.active:
                raise AssertionError(f"{run} ended {record.phase} before its time: {record.fallback}")
            return record is not None and record.run_id == run and condition(record)

        await self.stand.until(f"{run}: what it waits for", holds, RUN_S)

    async def _record(self) -> Record:
        record = await self.stand.record()
        assert record is not None
        return record
