"""Play what comes after a migration: it is looked after, degrades, people are asked, and its GPUs come back.

`migrated` has moved. A scheduled canary falls into a blackout. Later its TPUs begin to compile in the middle of
requests: the canary fails, people refuse to go back, Airflow loses its database, and what the canary found still is
in the cluster and brings the GPUs back. Beside that two more migrations ask people before any user moves: one is
refused, and one gets no answer.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox.airflow import FINAL_STATES
from sandbox.airflow_settings import FLEET, google_environment
from sandbox.stand import DAG_ID, Stand
from sandbox.workload import ROOT, workload_names
from tests.e2e.story import RUN_S, answer, end_of, migrate, nodes_of, record_of
from tests.unit.test_feature_watch import publish
from tpu_migration.clients.kubernetes import HTTP_ROUTES
from tpu_migration.domain.routing import epoch_annotation
from tpu_migration.history import Histories, History
from tpu_migration.record import Record
from tpu_migration.status import observed_route

MIGRATED, REFUSED, SILENT = workload_names(3)
CANARY_SCHEDULE = "TPU_MIGRATION_CANARY_SCHEDULE"
CANARIES, FEATURES, WATCH, FALLBACK = "tpu_canary_revalidation", "tpu_feature_watch", "tpu_watch", "gpu_fallback"
SICK = "sick"  # the canary that finds something
BACK = f"canary__{MIGRATED}__{SICK}"  # the run of gpu_fallback that it starts
BEFORE, AFTER = "before the reset", "after the reset"
CANARY_S = 900.0  # two looks, two minutes apart, each after up to a minute of watching and with up to three of load
# Most of the time an engine computes nothing: users wait for seconds, and every answer comes whole.
COMPILING = {"workload": f"{MIGRATED}-tpu", "every_s": 10, "stall_s": 8}


@dataclass
class Afterwards:
    """What was seen; by run or workload, if not said otherwise."""

    runs: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, dict[str, str | None]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    routes: dict[str, dict[str, int]] = field(default_factory=dict)
    pools: dict[str, bool] = field(default_factory=dict)
    questions: dict[str, dict[str, Any]] = field(default_factory=dict)
    canaries: list[tuple[str, str]] = field(default_factory=list)  # run id and kind of each that the schedule made
    histories: dict[str, History] = field(default_factory=dict)  # when → as it was in the cluster
    events: list[Any] = field(default_factory=list)  # of the asset of feature news
    runs_after_the_reset: int = -1


async def play(directory: Path) -> Afterwards:
    """Play it."""
    story = Afterwards()
    async with Stand(directory, workloads=3) as stand:
        env = stand.airflow.env
        env[CANARY_SCHEDULE] = "* * * * *"
        del env[FLEET]  # it changes in the course of the story, and a variable of the environment cannot
        await stand.airflow.start()
        await tell_fleet(stand)
        await stand.start_users(MIGRATED, rate=3.0, output_tokens=250)
        await migrate(stand, MIGRATED)
        story.runs[MIGRATED] = await end_of(stand, MIGRATED)
        assert story.runs[MIGRATED] == "success", await record_of(stand, MIGRATED)
        await _all_is_well(stand, story)
        await stand.airflow.stop()
        env[CANARY_SCHEDULE] = ""  # the scheduled ones have been seen; whatever comes is asked for
        await stand.airflow.start()
        await migrate(stand, REFUSED, approvals=["shift"])
        await migrate(stand, SILENT, approvals=["shift"], approval_timeout_s=60)
        await asyncio.gather(_refused(stand, story), _silent(stand, story))
        await _degrades(stand, story)
    return story


async def _all_is_well(stand: Stand, story: Afterwards) -> None:
    """A canary falls into a blackout on its schedule, and the matrices are seen for the first time."""
    publish(stand.directory / "matrices")
    await _in_a_blackout(stand, story)
    await _run(stand, story, WATCH, "all-well", log_of="watch")
    await _run(stand, story, FEATURES, "matrices-1")


async def _degrades(stand: Stand, story: Afterwards) -> None:
    """Users wait too long on the TPUs, other hands touch the route, and a matrix changes."""
    record = await record_of(stand, MIGRATED)
    edit = {"metadata": {"annotations": {epoch_annotation(MIGRATED): "999"}}}
    await asyncio.to_thread(stand.kube.patch, HTTP_ROUTES, record.source.route, record.namespace, edit)
    publish(stand.directory / "matrices", gemma="❌ Failing")
    await _run(stand, story, WATCH, "other-hands", log_of="watch")
    await _run(stand, story, FEATURES, "matrices-2")
    await stand.fault("recompile", COMPILING)
    await _degraded(stand, story)
    query = "SELECT e.extra FROM asset_event e JOIN asset a ON a.id = e.asset_id WHERE a.name = ?"
    story.events = [json.loads(extra) for (extra,) in stand.airflow.rows(query, ("tpu-inference-support-matrices",))]
    await _airflow_forgets(stand, story)
    await _come_back(stand, story)


# ------------------------------------------------------------------------------------------ canaries


async def _in_a_blackout(stand: Stand, story: Afterwards) -> None:
    """Let the scheduler itself start canaries in the middle of a blackout; they go on until `_degraded` begins."""
    start = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    await tell_fleet(stand, blackouts=[{"start": start.isoformat(), "hours": 24}])
    await _unpause(stand, CANARIES)

    async def one_is_over() -> bool:
        return any(state in FINAL_STATES for _, _, state in _canary_runs(stand))

    await stand.until("the first scheduled canary", one_is_over, RUN_S)


def _canary_runs(stand: Stand) -> list[tuple[str, str, str]]:
    """Return id, kind and state of each."""
    query = "SELECT run_id, run_type, state FROM dag_run WHERE dag_id = ?"
    return [(run, kind, state) for run, kind, state in stand.airflow.rows(query, (CANARIES,))]


async def _degraded(stand: Stand, story: Afterwards) -> None:
    """A canary measures beside users who wait too long; people are asked, and refuse to go back."""
    await stand.until("the end of all scheduled canaries", lambda: _unscheduled(stand), RUN_S)
    for run, kind, state in _canary_runs(stand):
        story.canaries.append((run, kind))
        story.tasks[run], story.runs[run] = stand.airflow.task_states(CANARIES, run), state
    await tell_fleet(stand, on_fail="ask")
    await _canary(stand, story, BEFORE)
    await answer(stand, story.questions, FALLBACK, BACK, "ask", "Reject")
    story.runs["no"] = await stand.airflow.wait_for_run(FALLBACK, BACK, deadline_s=RUN_S)
    story.tasks["no"] = stand.airflow.task_states(FALLBACK, BACK)
    story.routes["no"] = observed_route(stand.kube, await record_of(stand, MIGRATED))


async def _unscheduled(stand: Stand) -> bool:
    """Tell whether Airflow has read that they have no schedule any more, and none goes on."""
    known = stand.airflow.rows("SELECT timetable_summary FROM dag WHERE dag_id = ?", (CANARIES,))
    return known == [("None",)] and all(state in FINAL_STATES for _, _, state in _canary_runs(stand))


async def _canary(stand: Stand, story: Afterwards, when: str) -> None:
    await _run(stand, story, CANARIES, SICK, deadline_s=CANARY_S)
    story.tasks[when], story.runs[when] = stand.airflow.task_states(CANARIES, SICK), story.runs[SICK]
    story.logs[when] = stand.airflow.task_log(CANARIES, SICK, "workload.canary")
    story.histories[when] = await asyncio.to_thread(_history, stand)


async def _airflow_forgets(stand: Stand, story: Afterwards) -> None:
    await stand.airflow.forget_everything()
    story.runs_after_the_reset = stand.airflow.rows("SELECT count(*) FROM dag_run")[0][0]
    story.logs["status"] = await _status(stand)
    await stand.airflow.start()


async def _status(stand: Stand) -> str:
    """Return what a person at a terminal is told."""
    argv = [sys.executable, "-m", "tpu_migration.cli", "status", MIGRATED, "--namespace", stand.state["namespace"]]
    log = stand.supervisor.logs / "status.log"
    env = {**os.environ, "KUBECONFIG": str(stand.state["kubeconfig"])}
    child = await stand.supervisor.start("status", argv, env=env, cwd=ROOT, log=log)
    code = await child.wait()
    stand.supervisor.forget(child)
    assert code == 0, log.read_text()
    return log.read_text()


async def _come_back(stand: Stand, story: Afterwards) -> None:
    """The same canary again, by an Airflow that knows nothing: what it found is in the cluster, and acted upon."""
    record = await record_of(stand, MIGRATED)
    await tell_fleet(stand, on_fail="auto")
    await _canary(stand, story, AFTER)
    story.runs[BACK] = await stand.airflow.wait_for_run(FALLBACK, BACK, deadline_s=RUN_S)
    story.records[BACK], story.users[BACK] = await record_of(stand, MIGRATED), await stand.stop_users(MIGRATED)
    story.routes[BACK] = observed_route(stand.kube, record)
    story.pools[BACK] = bool(await asyncio.to_thread(nodes_of, stand, record.pool))


def _history(stand: Stand) -> History:
    return Histories(stand.kube, stand.state["namespace"], MIGRATED).read()


# ------------------------------------------------------------------------------------------- people


async def _refused(stand: Stand, story: Afterwards) -> None:
    await answer(stand, story.questions, DAG_ID, REFUSED, "approve_shift", "Reject", reason="not this week")
    await _note(stand, story, REFUSED)


async def _silent(stand: Stand, story: Afterwards) -> None:
    await _note(stand, story, SILENT)


async def _note(stand: Stand, story: Afterwards, workload: str) -> None:
    story.runs[workload] = await end_of(stand, workload)
    record = await record_of(stand, workload)
    story.records[workload], story.routes[workload] = record, observed_route(stand.kube, record)
    story.pools[workload] = bool(await asyncio.to_thread(nodes_of, stand, record.pool))


# ------------------------------------------------------------------------------------------ airflow


async def tell_fleet(stand: Stand, **place: Any) -> None:
    """Say where to look, what follows on a failure, and when not to look."""
    (known,) = json.loads(google_environment(stand.state)[FLEET])
    variables = {
        "tpu_migration_fleet": [{**known, **place}],
        "tpu_migration_matrices": {"source": str(stand.directory / "matrices")},
    }
    entities = [{"key": key, "value": json.dumps(value)} for key, value in variables.items()]
    create = {"action": "create", "action_on_existence": "overwrite", "entities": entities}
    said = await stand.airflow.api("PATCH", "/variables", {"actions": [create]})
    assert not said["create"]["errors"], said


async def _unpause(stand: Stand, dag_id: str) -> None:
    await stand.airflow.wait_for_dag(dag_id)
    await stand.airflow.api("PATCH", f"/dags/{dag_id}", {"is_paused": False})


async def _run(
    stand: Stand, story: Afterwards, dag_id: str, run: str, *, log_of: str = "", deadline_s: float = RUN_S
) -> None:
    await _unpause(stand, dag_id)
    await stand.airflow.trigger_by_api(dag_id, run_id=run)
    story.runs[run] = await stand.airflow.wait_for_run(dag_id, run, deadline_s=deadline_s)
    if log_of:
        story.logs[run] = stand.airflow.task_log(dag_id, run, log_of)
