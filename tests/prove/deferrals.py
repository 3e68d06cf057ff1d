"""One, twenty and two hundred migrations deferred on one real triggerer: how late a step begins, how much memory.

The triggers are the product's own, on records that its stages have made, over its own clients: see
`served_migrations` for the cluster behind them. They step on by themselves for two minutes after all have begun;
nothing may end meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sandbox.airflow import Airflow
from sandbox.airflow_settings import google_environment
from sandbox.supervisor import REST, Supervisor
from tests.bench.sandbox_figures import pss_kib
from tests.prove.ledger import ROOT, Ledger
from tests.prove.timed_trigger import STEPS_FILE

NAME = "deferrals"
FLEETS = ((1, 1), (20, 4), (200, 10))  # how many are deferred, and how many of them shift: those of docs/scale.md
LAG_LIMIT_S, MEMORY_LIMIT_MIB = 1.0, 600.0
MEASURED_S, BEGIN_WITHIN_S, SERVE_WITHIN_S = 120.0, 180.0, 120.0
_DAG, _RUN = "deferred", "all"


def prove(ledger: Ledger, fleets: Sequence[tuple[int, int]] = FLEETS) -> bool:
    """Measure each fleet once; tell, and note the figures."""
    return all([_prove(ledger, *each) for each in fleets])


def _prove(ledger: Ledger, migrations: int, shifting: int) -> bool:
    known, name = ledger.get(NAME), f"{migrations} deferred, {shifting} shifting"
    if known.get(name, {}).get("holds"):
        print(f"{NAME}: {name}: proven already")
        return True
    directory = ROOT / "out" / "prove" / NAME
    shutil.rmtree(directory, ignore_errors=True)
    figures = asyncio.run(_figures(directory, migrations, shifting))
    ledger.put(NAME, {**known, name: figures})
    told = "; ".join(f"{key} {value}" for key, value in figures.items() if key not in ("broken", "holds"))
    print(f"{NAME}: {name}: {told}", flush=True)
    for problem in figures["broken"]:
        print(f"{NAME}: BROKEN: {problem}")
    return bool(figures["holds"])


async def _figures(directory: Path, migrations: int, shifting: int) -> dict[str, Any]:
    steps = directory / "steps"
    served = directory / "served"
    async with Supervisor(directory / "logs") as supervisor:
        argv = [sys.executable, "-m", "tests.prove.served_migrations", str(served)]
        await supervisor.start(
            "served", [*argv, str(migrations - shifting), str(shifting)], cwd=ROOT, order=REST,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        await _until("the cluster is served", (served / "state.json").exists, SERVE_WITHIN_S)
        state = json.loads((served / "state.json").read_text())
        airflow = Airflow(
            directory / "airflow",
            dags=Path(__file__).parent / "dags",
            plugins=ROOT / "plugins",
            env={
                **google_environment(state),
                STEPS_FILE: str(steps),
                "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}",
                "TPU_MIGRATION_PROOF_COUNT": str(migrations),
                "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
            },
            supervisor=supervisor,
        )
        await airflow.start()
        try:
            return await _measure(airflow, served, steps, migrations, shifting)
        finally:
            await airflow.stop(grace_s=3.0)


async def _measure(airflow: Airflow, served: Path, steps: Path, migrations: int, shifting: int) -> dict[str, Any]:
    await airflow.trigger_by_api(_DAG, run_id=_RUN)
    triggerer = airflow.child("triggerer")
    assert triggerer is not None
    idle_mib = memory_mib(triggerer.pid)
    rows = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.prove.deferred_rows", str(served / "state.json"), _RUN, env=airflow.env, cwd=ROOT
    )
    if await rows.wait():
        raise RuntimeError(f"{_DAG} could not be deferred")
    began = time.time()
    # A new one's first step begins when it is made; by then each of them has its clients.
    await _until("all have begun", lambda: len(_running(airflow)) == migrations, BEGIN_WITHIN_S)
    await _until("each has made a step", lambda: len(_stepped(steps)) >= migrations, BEGIN_WITHIN_S)
    all_begun_s = time.time() - began
    start, calls_before = time.time(), _calls(served)
    cpu_before = _cpu_s(triggerer.pid)
    most_mib, most_rss_mib = 0.0, 0.0
    while time.time() - start < MEASURED_S:
        await asyncio.sleep(2.0)
        most_mib = max(most_mib, memory_mib(triggerer.pid))
        most_rss_mib = max(most_rss_mib, rss_mib(triggerer.pid))
    took_s = time.time() - start
    cpu_s, calls = _cpu_s(triggerer.pid) - cpu_before, _calls(served) - calls_before
    measured = [each for each in _steps(steps) if each.at >= start]
    found = {
        stage: [(each.lag_s, each.step_s) for each in measured if each.stage == stage] for stage in ("shift", "warm_up")
    }
    made = {
        stage: Counter(each.namespace for each in measured if each.stage == stage) for stage in ("shift", "warm_up")
    }
    shift_p99, wait_p99 = (_p99([lag for lag, _ in found[stage]]) for stage in ("shift", "warm_up"))
    broken = []
    if (alive := len(_running(airflow))) != migrations:
        broken.append(f"{migrations - alive} of {migrations} did not stay deferred: see {airflow.logs}")
    if (watched := sum(count >= took_s / 3 for count in made["shift"].values())) < shifting:
        broken.append(f"{shifting - watched} of the {shifting} that shift did not watch all the {took_s:.0f} s")
    if (waited := len(made["warm_up"])) < migrations - shifting:
        broken.append(f"{migrations - shifting - waited} of those that wait made no step in {took_s:.0f} s")
    if shift_p99 > LAG_LIMIT_S:
        broken.append(f"a step of a shift began {shift_p99:.2f} s late (p99), more than {LAG_LIMIT_S:g} s")
    if most_mib > MEMORY_LIMIT_MIB:
        broken.append(f"the triggerer took {most_mib:.0f} MiB, more than {MEMORY_LIMIT_MIB:g}")
    return {
        "measured_s": round(took_s),
        "steps_shifting": len(found["shift"]),
        "steps_waiting": len(found["warm_up"]),
        "lag_p99_s": round(shift_p99, 3),
        "lag_max_s": round(max((lag for lag, _ in found["shift"]), default=0.0), 3),
        "waiting_lag_p99_s": round(wait_p99, 3) if found["warm_up"] else None,
        "step_p99_s": round(_p99([step for _, step in found["shift"]]), 3),
        "memory_mib": round(most_mib, 1),
        "resident_mib": round(most_rss_mib, 1),
        "idle_memory_mib": round(idle_mib, 1),
        "all_begun_s": round(all_begun_s, 1),
        "calls_per_s": round(calls / took_s, 1),
        "triggerer_cores": round(cpu_s / took_s, 2),
        "broken": broken,
        "holds": not broken,
    }


def _running(airflow: Airflow) -> list[Any]:
    query = (
        "SELECT t.id FROM task_instance i JOIN trigger t ON i.trigger_id = t.id "
        "WHERE i.dag_id = ? AND i.state = 'deferred' AND t.triggerer_id IS NOT NULL"
    )
    return airflow.rows(query, (_DAG,))


class _Step(NamedTuple):
    """One line of `timed_trigger`: when it began in Unix seconds, how late that was and how long it took.

    Each migration has a namespace of its own, and the same workload in it.
    """

    at: float
    stage: str
    namespace: str
    lag_s: float
    step_s: float


def _steps(file: Path) -> list[_Step]:
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [_Step(float(at), stage, name, float(lag), float(step)) for at, stage, name, lag, step in lines]


def _stepped(file: Path) -> set[str]:
    return {each.namespace for each in _steps(file)} - {"-"}


def _calls(served: Path) -> int:
    return int((served / "calls").read_text().split()[0])


def _family(pid: int) -> list[int]:
    children = " ".join(each.read_text() for each in Path(f"/proc/{pid}/task").glob("*/children")).split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def memory_mib(pid: int) -> float:
    """Add up the proportional set sizes of a process and its children: what they share with each other counts once."""
    return sum(pss_kib(each) for each in _family(pid)) / 1024


def rss_mib(pid: int) -> float:
    """Add up the resident set sizes: what the processes share counts in each."""
    pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in _family(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _cpu_s(pid: int) -> float:
    ticks = 0
    for each in _family(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))] if values else float("inf")


async def _until(what: str, holds: Any, deadline_s: float) -> None:
    until = time.monotonic() + deadline_s
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {deadline_s:.0f} s")
        await asyncio.sleep(0.2)
