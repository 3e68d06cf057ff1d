"""Play one long story on one sandbox and one real Airflow; the tests then say what must have come of it.

Three workloads share the stand, because starting Airflow for each would take longer than the runs:
`resumed` is shifting when all of Airflow is killed, and goes on when it is started again within the
lease; `slow` has TPUs too slow for the gate; `orphaned` is on TPU, soaking, when Airflow is killed
for good, and only the guard is left. A fourth, idle, is for what must be refused. At the end `resumed`,
which has migrated, is looked after and comes back to its GPUs.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from sandbox.airflow import FINAL_STATES, AirflowFailed
from sandbox.airflow_settings import GOOGLE_CONNECTION, google_environment
from sandbox.stand import DAG_ID, Stand, way_back_on
from sandbox.workload import workload_names
from tpu_migration.clients.kubernetes import HTTP_ROUTES
from tpu_migration.domain.phases import USERS_MAY_BE_ON_TARGET, Phase
from tpu_migration.domain.routing import epoch_annotation
from tpu_migration.record import Record
from tpu_migration.report.page import render_report
from tpu_migration.report.summary import summarise
from tpu_migration.status import observed_route

RESUMED, SLOW, ORPHANED, IDLE = workload_names(4)
LEASE_S = 60.0
RUN_S = 900.0  # a deadline, no wait: on a machine that others load, too, a migration takes minutes more
BACK = "back"  # the run of gpu_fallback

# What a person may get wrong, and the words that must help them.
BAD_INPUT: dict[str, dict[str, Any]] = {
    "workload": {"workload": "vllm-gemma4"},
    "route": {"workload": IDLE, "route": RESUMED},
    "cluster": {"cluster": "elsewhere"},
    "token": {"gcp_conn_id": "revoked"},
    "peak": {"workload": IDLE, "peak_rps": 0},
}


@dataclass
class Story:
    """What was seen."""

    records: dict[str, Record] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)  # name → success or failed
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    reports: dict[str, str] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)  # run → preflight's log
    pools: dict[str, bool] = field(default_factory=dict)  # workload → its TPU pool is still there
    states_while_waiting: dict[str, str | None] = field(default_factory=dict)
    running_while_waiting: int = -1
    route_before_refusal: dict[str, int] = field(default_factory=dict)
    route_after_refusal: dict[str, int] = field(default_factory=dict)
    asked: Record | None = None  # as it was while people were asked
    questions: dict[str, dict[str, Any]] = field(default_factory=dict)  # run → what people were asked
    route_back: dict[str, int] = field(default_factory=dict)
    guard_took_s: float = 0.0
    route_with_airflow_dead: dict[str, int] = field(default_factory=dict)


async def play(directory: Path) -> Story:
    """Play it."""
    story = Story()
    async with Stand(directory, workloads=4) as stand:
        await stand.fault("slow-tpu", {"workload": f"{SLOW}-tpu"})
        stand.airflow.env["AIRFLOW_CONN_REVOKED"] = _refused_connection(stand)
        await stand.airflow.start()
        for workload in (RESUMED, SLOW, ORPHANED):
            await stand.start_users(workload, rate=3.0, output_tokens=250)
        await _first_act(stand, story)
        await _second_act(stand, story)
        for workload in (RESUMED, SLOW, ORPHANED):
            await _note_end(stand, story, workload)
        await _third_act(stand, story)
    return story


def _refused_connection(stand: Stand) -> str:
    """Return a connection whose key is well made, and not the one that the cloud knows."""
    connection = json.loads(google_environment(stand.state)[GOOGLE_CONNECTION])
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    connection["extra"]["keyfile_dict"]["private_key"] = text.decode()
    return json.dumps(connection)


async def _first_act(stand: Stand, story: Story) -> None:
    """Two migrations shift and one warms up when Airflow is killed; it comes back, and they go on."""
    await migrate(stand, ORPHANED, soak_s=3000)
    await migrate(stand, RESUMED, approvals=["decommission"])
    await migrate(stand, SLOW)
    await asyncio.gather(
        reaches(stand, ORPHANED, USERS_MAY_BE_ON_TARGET), reaches(stand, RESUMED, USERS_MAY_BE_ON_TARGET)
    )
    await stand.airflow.kill()
    await asyncio.sleep(5.0)  # dead for a moment: what a node's restart or an upgrade takes at least
    await stand.airflow.start()
    await reaches(stand, ORPHANED, {Phase.SOAKING})
    await _refusals(stand, story)
    await _approve(stand, story, RESUMED)
    story.runs[RESUMED] = await end_of(stand, RESUMED)
    story.runs[SLOW] = await end_of(stand, SLOW)


async def _approve(stand: Stand, story: Story, workload: str) -> None:
    """Say yes in Airflow, as its UI does, once the run waits for people."""

    async def asked() -> bool:
        states = stand.airflow.task_states(DAG_ID, workload)
        if (ended := stand.airflow.run_state(DAG_ID, workload)) in ("success", "failed"):
            raise AssertionError(f"{workload} ended {ended} without a question: {await stand.record(workload)}")
        return (states.get("approve_decommission"), states.get("decommission")) == ("deferred", "deferred")

    await stand.until(f"the question about {workload}", asked, RUN_S)
    record = await record_of(stand, workload)
    story.asked = record
    said = {"reason": "all quiet"}
    await answer(stand, story.questions, DAG_ID, workload, "approve_decommission", "Approve", **said)


async def answer(
    stand: Stand, questions: dict[str, dict[str, Any]], dag_id: str, run: str, task: str, option: str, **form: str
) -> None:
    """Choose an option in Airflow, as its UI does, once the task has asked."""
    at = f"/dags/{dag_id}/dagRuns/{run}/taskInstances/{task}/-1/hitlDetails"

    async def asked() -> bool:
        try:
            questions[run] = await stand.airflow.api("GET", at)
        except AirflowFailed as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            if (ended := stand.airflow.run_state(dag_id, run)) in FINAL_STATES:
                raise AssertionError(f"run {run} ended {ended} and {task} never asked") from error
            return False
        # It is written before the task waits, and an answer in between would find nobody.
        return stand.airflow.task_states(dag_id, run).get(task) in ("deferred", "awaiting_input")

    await stand.until(f"the question of {task} in run {run}", asked, RUN_S)
    await stand.airflow.api("PATCH", at, {"chosen_options": [option], "params_input": form})


async def _refusals(stand: Stand, story: Story) -> None:
    """While one workload soaks on TPU, others try what must be refused."""
    record = await record_of(stand, ORPHANED)
    story.route_before_refusal = observed_route(stand.kube, record)
    await migrate(stand, ORPHANED, run="second")
    for name, changes in BAD_INPUT.items():
        await migrate(stand, run=name, **{"workload": IDLE, **changes})
    await stand.airflow.trigger_by_api(DAG_ID, {**stand.conf(IDLE), "workloads": "typo"}, run_id="unknown")
    for name in ("second", "unknown", *BAD_INPUT):
        story.runs[name] = await end_of(stand, name)
        story.logs[name] = stand.airflow.task_log(DAG_ID, name, "preflight")
    story.route_after_refusal = observed_route(stand.kube, record)
    story.states_while_waiting = stand.airflow.task_states(DAG_ID, ORPHANED)


async def _second_act(stand: Stand, story: Story) -> None:
    """Airflow dies for good with everybody of one workload on TPU; the guard is all that is left."""
    story.running_while_waiting = stand.airflow.rows("SELECT count(*) FROM task_instance WHERE state = 'running'")[0][0]
    await stand.airflow.kill()
    killed = time.monotonic()
    record = await record_of(stand, ORPHANED)

    async def on_gpu() -> bool:
        return observed_route(stand.kube, record)[record.target] == 0

    await stand.until("the guard's restore", on_gpu, LEASE_S + 30.0)
    story.guard_took_s = time.monotonic() - killed
    story.route_with_airflow_dead = observed_route(stand.kube, record)
    await stand.airflow.start()
    story.runs[ORPHANED] = await end_of(stand, ORPHANED)


async def _third_act(stand: Stand, story: Story) -> None:
    """One workload has migrated: it is looked after, other hands touch its route, and it comes back to its GPUs."""
    await stand.start_users(RESUMED, rate=3.0, output_tokens=250)
    await _watch(stand, story, "all-well")
    record = await record_of(stand, RESUMED)
    edit = {"metadata": {"annotations": {epoch_annotation(RESUMED): "999"}}}
    await asyncio.to_thread(stand.kube.patch, HTTP_ROUTES, record.source.route, record.namespace, edit)
    await _watch(stand, story, "other-hands")
    conf = way_back_on(stand.state, RESUMED)
    await stand.airflow.trigger_by_api("gpu_fallback", conf, run_id=BACK)
    story.runs[BACK] = str(await stand.airflow.wait_for_run("gpu_fallback", BACK, deadline_s=RUN_S))
    story.records[BACK], story.users[BACK] = await record_of(stand, RESUMED), await stand.stop_users(RESUMED)
    story.route_back = observed_route(stand.kube, record)
    story.pools[BACK] = bool(await asyncio.to_thread(nodes_of, stand, record.pool))


async def _watch(stand: Stand, story: Story, run: str) -> None:
    await stand.airflow.wait_for_dag("tpu_watch")
    await stand.airflow.api("PATCH", "/dags/tpu_watch", {"is_paused": False})
    await stand.airflow.trigger_by_api("tpu_watch", run_id=run)
    story.runs[run] = str(await stand.airflow.wait_for_run("tpu_watch", run, deadline_s=RUN_S))
    story.logs[run] = stand.airflow.task_log("tpu_watch", run, "watch")


async def _note_end(stand: Stand, story: Story, workload: str) -> None:
    users = await stand.stop_users(workload)
    record = await record_of(stand, workload)
    story.records[workload], story.users[workload] = record, users
    summary = summarise(stand.kube, record, users, engine=stand.state["engine"], seconds=0.0)
    story.summaries[workload] = summary
    story.reports[workload] = render_report(record, summary)
    nodes = await asyncio.to_thread(nodes_of, stand, record.pool)
    story.pools[workload] = bool(nodes)


def nodes_of(stand: Stand, pool: str) -> list[Any]:
    from tpu_migration.clients.kubernetes import NODES

    return stand.kube.list(NODES, labels=f"cloud.google.com/gke-nodepool={pool}")


async def migrate(stand: Stand, workload: str, run: str = "", **changes: Any) -> None:
    conf = stand.conf(workload, **{"peak_rps": 6, "source_release": "scale-to-zero", **changes})
    # As the UI does it; the command line takes five seconds to import Airflow (the demo uses that).
    await stand.airflow.trigger_by_api(DAG_ID, conf, run_id=run or workload)


async def record_of(stand: Stand, workload: str) -> Record:
    record = await stand.record(workload)
    assert record is not None, f"{workload} has no record"
    return record


async def reaches(stand: Stand, workload: str, phases: Any) -> None:
    async def reached() -> bool:
        record = await stand.record(workload)
        if record is not None and record.phase in (Phase.FALLEN_BACK, Phase.HELD):
            raise AssertionError(f"{workload} ended {record.phase}: {record.fallback}")
        return record is not None and record.phase in phases

    await stand.until(f"{workload} in {[str(each) for each in phases]}", reached, RUN_S)


async def end_of(stand: Stand, run: str) -> str:
    return str(await stand.airflow.wait_for_run(DAG_ID, run, deadline_s=RUN_S))
