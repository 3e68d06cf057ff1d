"""Prove docker-compose.yaml: a migration through Airflow on Celery, Redis and PostgreSQL, with the wheel installed.

The file's own commands run as processes (see `compose_stack`). The sandbox's service migrates its workload with users
on it. Then every slot of the default queue is taken, a run is marked as failed, and its way back must start at once. At
last the folders plugins/ and include/ are taken away, as on managed Airflow, and the GPUs are brought back by the wheel
alone, while the triggerer that waits for them is killed and another goes on. Nowhere may a secret have been written.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import platform
import shutil
import time
from pathlib import Path
from typing import Any

from deployment.make_env import values as new_values
from sandbox.airflow_api import RemoteAirflow
from sandbox.stand import DAG_ID, conf_on, way_back_on
from sandbox.workload import WORKLOAD
from tests.prove.compose_stack import Stack, StackFailed, make_environment, what_is_missing
from tests.prove.ledger import ROOT, Ledger

NAME = "celery_stack"
MIGRATION_S = 900.0
START_LIMIT_S = 5.0
START_WITHIN_S = 60.0
GOES_ON_LIMIT_S = 20.0  # the threshold of 8 s, and the beats of two seconds around it
BUSY = Path(__file__).with_name("busy_dag.py")
TRIGGERER = "sandbox-triggerer"
BACK_ID = "gpu_fallback"
_BEHIND = "behind"  # the run that waits for a slot


def prove(ledger: Ledger) -> bool:
    """Run it if it was not; tell, and note the figures."""
    if ledger.get(NAME).get("holds"):
        print(f"{NAME}: proven already")
        return True
    if missing := what_is_missing():
        print(f"{NAME}: skipped, {missing}")
        ledger.put(NAME, {"skipped": missing})
        return True
    directory = ROOT / "out" / "prove" / NAME
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    try:
        figures = asyncio.run(_figures(directory))
    except StackFailed as error:
        figures = {"broken": [str(error)]}
    figures["holds"] = not figures["broken"]
    ledger.put(NAME, figures)
    for problem in figures["broken"]:
        print(f"{NAME}: BROKEN: {problem}")
    if figures["holds"]:
        print(
            f"{NAME}: migrated in {figures['migration_s']:.0f} s; with all slots taken a restore starts after "
            f"{figures['restore_starts_s']:.2f} s; a killed triggerer's stage goes on after "
            f"{figures['triggerer_goes_on_s']:.1f} s; back by the wheel alone; "
            f"no secret in {figures['searched']} places"
        )
    return bool(figures["holds"])


async def _figures(directory: Path) -> dict[str, Any]:
    binaries = await asyncio.to_thread(make_environment, directory)
    values = new_values()
    async with Stack(directory, binaries, values, [BUSY], "sandbox") as stack:
        airflow = RemoteAirflow(stack.url, values["AIRFLOW_PASSWORD"])
        began = time.monotonic()
        summary = await _migrated(stack)
        figures: dict[str, Any] = {"migration_s": time.monotonic() - began, "summary": summary}
        figures["healthy"] = {n: await stack.healthy(n) for n, each in stack.services.items() if each.health}
        state = json.loads((stack.cloud / "work" / "sandbox" / "state.json").read_text())
        figures |= await _restore_while_busy(stack, airflow, state)
        figures |= await _back_by_the_wheel_alone(stack, airflow, state)
        figures["leaks"] = await asyncio.to_thread(_leaks, stack, values, state)
        figures |= {"searched": len(stack.written()) + 1, "python": platform.python_version()}
    figures["broken"] = _problems(figures, binaries.parent)
    return figures


async def _migrated(stack: Stack) -> dict[str, Any]:
    """Wait for the end of the sandbox's own migration; return its summary."""
    file, until = stack.cloud / "summary.json", time.monotonic() + MIGRATION_S
    while not file.exists():
        ended = [
            name for name in stack.services if name != "airflow-init" and not stack.supervisor.children[name].running
        ]
        if ended or time.monotonic() > until:
            raise StackFailed("\n".join(f"{each}:\n{stack.tail(each)}" for each in ["sandbox", *ended]))
        await asyncio.sleep(1.0)
    return dict(json.loads(file.read_text()))


async def _restore_while_busy(stack: Stack, airflow: RemoteAirflow, state: dict[str, Any]) -> dict[str, Any]:
    """Take every slot of the default queue, mark a run as failed, and see when its restore starts."""
    command = stack.services["sandbox-worker"].command
    slots, release = int(command[command.index("--concurrency") + 1]), stack.directory / "release"
    busy = await airflow.trigger("busy", {"slots": slots, "until": str(release)})
    await _until(airflow, "busy", busy, lambda tasks: _holding(tasks) == slots)
    await airflow.trigger(DAG_ID, conf_on(state), run_id=_BEHIND)
    await _until(airflow, DAG_ID, _BEHIND, lambda tasks: tasks["preflight"]["state"] == "queued")
    marked = dt.datetime.now(dt.UTC)
    await airflow.api("PATCH", f"/dags/{DAG_ID}/dagRuns/{_BEHIND}", {"state": "failed"})
    tasks = await _until(airflow, DAG_ID, _BEHIND, lambda tasks: tasks["restore"]["start_date"])
    still = _holding(await airflow.tasks("busy", busy))
    release.touch()
    await _until(airflow, "busy", busy, lambda tasks: all(each["end_date"] for each in tasks.values()))
    at = f"/dags/busy/dagRuns/{busy}/taskInstances/{{}}/xcomEntries/return_value?map_index={{}}"
    return {
        "slots": slots,
        "slots_still_taken": still,
        "restore_starts_s": (dt.datetime.fromisoformat(tasks["restore"]["start_date"]) - marked).total_seconds(),
        "restore_queue": tasks["restore"]["queue"],
        "package": (await airflow.api("GET", at.format("hold", 0)))["value"],
        "package_of_urgent": (await airflow.api("GET", at.format("urgent", -1)))["value"],
    }


async def _back_by_the_wheel_alone(stack: Stack, airflow: RemoteAirflow, state: dict[str, Any]) -> dict[str, Any]:
    """Bring the GPUs back without the folders that are mounted, by two triggerers of which one is killed meanwhile."""
    stack.unmount()
    await stack.supervisor.stop(TRIGGERER)
    names = {}
    for again in (False, True):
        (number,) = await _new_triggerer(stack, airflow, again=again)
        names[number] = f"{TRIGGERER}-2" if again else TRIGGERER
    run = await airflow.trigger(BACK_ID, way_back_on(state, prove=False))

    def its_triggerer(tasks: dict[str, Any]) -> int | None:
        job = tasks[BACK_ID]["triggerer_job"] if tasks[BACK_ID]["state"] == "deferred" else None
        return int(job["id"]) if job else None

    carrier = its_triggerer(await _until(airflow, BACK_ID, run, its_triggerer))
    killed = time.monotonic()
    await stack.supervisor.children[names[carrier]].kill()
    await _until(airflow, BACK_ID, run, lambda tasks: its_triggerer(tasks) not in (carrier, None))
    goes_on_s = time.monotonic() - killed
    ended = await _until(airflow, BACK_ID, run, lambda tasks: tasks[BACK_ID]["end_date"], MIGRATION_S)
    return {"triggerer_goes_on_s": goes_on_s, "back": ended[BACK_ID]["state"]}


async def _new_triggerer(stack: Stack, airflow: RemoteAirflow, *, again: bool) -> set[int]:
    """Start a triggerer; return the number that Airflow gives it."""

    async def numbers() -> set[int]:
        found = await airflow.api("GET", "/jobs?job_type=TriggererJob&order_by=-id")
        return {int(each["id"]) for each in found["jobs"]}

    before, until = await numbers(), time.monotonic() + START_WITHIN_S
    await stack.run(TRIGGERER, again=again)
    while not (new := await numbers() - before):
        if time.monotonic() > until:
            raise StackFailed(f"no new triggerer within {START_WITHIN_S:.0f} s:\n{stack.tail(TRIGGERER)}")
        await asyncio.sleep(0.2)
    return new


def _leaks(stack: Stack, values: dict[str, str], state: dict[str, Any]) -> list[str]:
    """Return where a secret was written: any log, or the database, whose connections are encrypted."""
    key = json.loads(Path(state["service_account_key_file"]).read_text())["private_key"].splitlines()[3]
    secrets = {**{name: value for name, value in values.items() if name != "COMPOSE_PROFILES"}, "private_key": key}
    texts = {str(file): file.read_text(errors="replace") for file in stack.written()} | {"the database": stack.dump()}
    if WORKLOAD not in texts["the database"]:
        raise StackFailed("the dump does not even name the workload: no secret could be found in it")
    return [f"{name} in {place}" for place, text in texts.items() for name, value in secrets.items() if value in text]


def _holding(tasks: dict[str, dict[str, Any]]) -> int:
    return sum(1 for name, each in tasks.items() if name.startswith("hold[") and each["state"] == "running")


async def _until(airflow: RemoteAirflow, dag_id: str, run_id: str, condition: Any, deadline_s: float = 120.0) -> Any:
    """Return a run's tasks once a condition on them holds."""
    until = time.monotonic() + deadline_s
    while not condition(tasks := await airflow.tasks(dag_id, run_id)):
        if time.monotonic() > until:
            raise StackFailed(f"{dag_id} {run_id}: { ({name: each['state'] for name, each in tasks.items()}) }")
        await asyncio.sleep(0.2)
    return tasks


def _problems(figures: dict[str, Any], environment: Path) -> list[str]:
    """Return what is not as it must be."""
    summary, users = figures["summary"], figures["summary"]["users"]
    starts, goes_on = figures["restore_starts_s"], figures["triggerer_goes_on_s"]
    checks = {
        f"the workload is {summary['phase']}": summary["phase"] == "migrated",
        f"users were hurt: {users}": not users["failed"] and not users["truncated"],
        **{
            f"a worker imports {each}, not the wheel": Path(each).is_relative_to(environment / "lib")
            for each in (figures["package"], figures["package_of_urgent"])
        },
        f"only {figures['slots_still_taken']} of {figures['slots']} slots were taken": figures["slots_still_taken"]
        == figures["slots"],
        f"restore was on the queue {figures['restore_queue']}": figures["restore_queue"] != "default",
        f"without the folders the GPUs' way back is {figures['back']}": figures["back"] == "success",
        f"a killed triggerer's stage went on after {goes_on:.0f} s (limit {GOES_ON_LIMIT_S:g} s)": goes_on
        <= GOES_ON_LIMIT_S,
        f"secrets were written: {', '.join(figures['leaks'][:5])}": not figures["leaks"],
        f"restore started after {starts:.1f} s (limit {START_LIMIT_S:g} s)": starts <= START_LIMIT_S,
    }
    return [problem for problem, holds in checks.items() if not holds]
