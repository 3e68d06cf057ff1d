"""Show a whole migration: real Airflow, real Envoy, real clients, an embedded cloud, users who must not notice.

    python -m sandbox.demo [--fault NAME] [--out DIR] [--airflow URL]

Exit 0 if users end up safe and the outcome is the expected one, 1 if not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from sandbox.airflow_api import AirflowFailed, RemoteAirflow
from sandbox.faults import Fault, describe
from sandbox.stand import DAG_ID, Stand, StandFailed
from sandbox.state import sandbox_runs_in
from tpu_migration.domain.phases import Phase
from tpu_migration.record import Record
from tpu_migration.report.page import render_report, report_data
from tpu_migration.report.summary import summarise
from tpu_migration.status import observed_route, stage_table

DEADLINE_S = 600.0
MIN_REQUESTS = 2000
FAULTS = {fault.name: fault for fault in describe()}
# How the demo must end, without a fault and with each one.
EXPECTED = {"": Phase.MIGRATED, **{name: fault.ends for name, fault in FAULTS.items()}}


def main(argv: list[str] | None = None) -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.demo", description=__doc__)
    parser.add_argument("--fault", default="", choices=sorted(EXPECTED), help="what goes wrong")
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--rate", type=float, default=12.0, help="users' requests a second")
    parser.add_argument("--hold", action="store_true", help="keep everything running at the end, to look around")
    parser.add_argument(
        "--airflow", default="", metavar="URL", help="an Airflow that runs already; AIRFLOW_PASSWORD is its admin's"
    )
    options = parser.parse_args(argv)
    if options.airflow and not os.environ.get("AIRFLOW_PASSWORD"):
        parser.error("--airflow needs the password of its admin in the environment, as AIRFLOW_PASSWORD")
    return asyncio.run(_supervised(options))


async def _supervised(options: argparse.Namespace) -> int:
    """Run the demo as a task that Ctrl-C and SIGTERM cancel, so that it always cleans up."""
    task = asyncio.ensure_future(_demo(options))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        print("\nstopped; everything that was started has been ended")
        return 130
    except (StandFailed, AirflowFailed) as error:
        print(f"\nthe demo could not run: {error}", file=sys.stderr)
        return 1


async def _demo(options: argparse.Namespace) -> int:
    started = time.monotonic()
    out: Path = options.out.resolve()
    work = out / "work"
    if sandbox_runs_in(work / "sandbox"):
        raise StandFailed(
            f"another demo runs in {out}: end it with Ctrl-C, or give this one a folder of its own (--out, OUT=)"
        )
    shutil.rmtree(work, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    for old in ("summary.json", "report.html", "report.json"):
        (out / old).unlink(missing_ok=True)
    say = Teller(started)
    say("starting the embedded cloud: Kubernetes API, GKE API, Envoy, two H100 nodes with vLLM")
    elsewhere = RemoteAirflow(options.airflow, os.environ["AIRFLOW_PASSWORD"]) if options.airflow else None
    async with Stand(work, airflow=elsewhere) as stand:
        say(f"cloud is up ({stand.state['api_url']}); starting Airflow")
        bane = Bane(FAULTS.get(options.fault), stand, say)
        await bane.look(None)
        await asyncio.gather(stand.airflow.start(), _users_begin(stand, options.rate, say))
        airflow = stand.airflow
        secret = "" if elsewhere else f"  user {airflow.user}  password {airflow.password}"
        say(f"Airflow is up: {airflow.url}{secret}")
        run_id = await airflow.trigger(DAG_ID, stand.conf())
        say(f"airflow dags trigger {DAG_ID} --run-id {run_id}")
        record, state = await _follow(stand, run_id, say, started, bane)
        users = await _enough_users(stand, say)
        record = await stand.record() or record
        summary = summarise(stand.kube, record, users, engine=stand.state["engine"], seconds=time.monotonic() - started)
        problems = _problems(bane, record, state, users)
        (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        (out / "report.html").write_text(render_report(record, summary))
        (out / "report.json").write_text(json.dumps(report_data(record, summary), indent=2) + "\n")
        _print_end(say, record, summary, out, problems)
        if options.hold:
            await stand.start_users(rate=options.rate)
            say(f"holding, with users as before, who are counted in {stand.users_file()}; Ctrl-C ends everything")
            await asyncio.Event().wait()
    return 1 if problems else 0


async def _users_begin(stand: Stand, rate: float, say: Teller) -> None:
    """Let users come once the Gateway answers: those before would count a cloud that is not up yet."""
    import aiohttp

    async def answers() -> bool:
        body = {"model": "gemma-3-27b-it", "prompt": "hello", "max_tokens": 1}
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.post(f"{stand.state['gateway_url']}/v1/completions", json=body) as answer,
            ):
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    await stand.until("the Gateway's first answer", answers, 60.0)
    await stand.start_users(rate=rate)
    say(f"users stream answers through {stand.state['gateway_url']} ({rate:g} requests a second)")


class Teller:
    """Print progress with the time since the start."""

    def __init__(self, started: float) -> None:
        self._started = started

    def __call__(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started:6.1f} s] {text}", flush=True)


class Bane:
    """The fault of a demo, or none: switched on in its phase."""

    def __init__(self, fault: Fault | None, stand: Stand, say: Teller) -> None:
        self.fault = fault
        self.began: float | None = None  # Unix seconds
        self._stand = stand
        self._say = say

    @property
    def deadline_s(self) -> float:
        return self.fault.takes_s if self.fault else DEADLINE_S

    async def look(self, record: Record | None) -> None:
        """Switch the fault on, if its time has come."""
        if self.fault is None or self.began is not None or not self._is_due(self.fault.begins, record):
            return
        await self._stand.fault(self.fault.name)
        self.began = time.time()
        self._say(f"fault {self.fault.name} is on: {self.fault.what}")

    @staticmethod
    def _is_due(phase: Phase | None, record: Record | None) -> bool:
        if phase is None or record is None:
            return phase is None
        # A shift has begun when the first weight is written, not when it is about to be.
        return record.phase is phase and (phase is not Phase.SHIFTING or record.shift.written is not None)

    def excuses(self, failure: dict[str, Any]) -> bool:
        """Tell whether a request failed by the fault itself, which nobody could have spared its user."""
        if self.fault is None or self.began is None or not self.fault.hurts_s:
            return False
        sent = failure["time"] - failure["after_s"]
        return bool(failure["time"] >= self.began and sent <= self.began + self.fault.hurts_s)


async def _follow(stand: Stand, run_id: str, say: Teller, started: float, bane: Bane) -> tuple[Record, str]:
    """Tell how the run goes until it ends."""
    told: tuple[Any, ...] = ()
    told_at = 0.0
    while True:
        state = await stand.airflow.state_of(DAG_ID, run_id)
        record = await stand.record()
        await bane.look(record)
        if record is not None:
            line = await asyncio.to_thread(_progress, stand, record)
            key = line[:2]
            if key != told or time.monotonic() - told_at > 5.0:
                say(" ".join(part for part in line if part))
                told, told_at = key, time.monotonic()
        if state in ("success", "failed"):
            if record is None:
                log = (await stand.airflow.log_of(DAG_ID, run_id, "preflight"))[-3000:]
                raise StandFailed(f"the run ended {state} without a record:\n{log}")
            return record, state
        if time.monotonic() - started > bane.deadline_s:
            raise StandFailed(f"the run did not end within {bane.deadline_s:.0f} s; it is {state}")
        await asyncio.sleep(0.5)


def _progress(stand: Stand, record: Record) -> tuple[str, str, str, str]:
    stages = stage_table(record)
    stage = stages[-1] if stages else {"stage": "preflight", "seconds": 0.0, "state": "running"}
    route = observed_route(stand.kube, record)
    users = stand.users()
    recent = users.get("recent") or {}
    p99 = recent.get("p99_ttft_s")
    counts = f"| GPU {route[record.source.service]:>3} % TPU {route[record.target]:>3} % | "
    if p99 is None:
        counts += "users: none yet"
    else:
        hurt = users["failed"] + users["truncated"]
        counts += f"{users['requests']} requests, {users['in_flight']} streaming, {hurt} failed, "
        counts += f"p99 TTFT {p99 * 1000:.0f} ms"
    return f"{stage['stage']:<12}", str(record.phase), counts, f"| {record.waiting}" if record.waiting else ""


async def _enough_users(stand: Stand, say: Teller) -> dict[str, Any]:
    """Let users stay until two thousand requests were made on what the migration left, then end their last answers."""

    async def enough() -> bool:
        return int(stand.users().get("requests", 0)) >= MIN_REQUESTS

    if not await enough():
        say(f"the run has ended; users stay until {MIN_REQUESTS} requests were made")
        await stand.until(f"{MIN_REQUESTS} requests", enough, 240.0)
    return await stand.stop_users()


def _problems(bane: Bane, record: Record, state: str, users: dict[str, Any]) -> list[str]:
    """Return what is not as it should be."""
    problems = []
    expected = EXPECTED[bane.fault.name if bane.fault else ""]
    wanted_state = "success" if expected is Phase.MIGRATED else "failed"
    if record.phase is not expected:
        problems.append(f"phase {record.phase}, expected {expected}")
    if state != wanted_state:
        problems.append(f"the DAG run is {state}, expected {wanted_state}")
    if bane.fault and bane.began is None:
        problems.append(f"the run never came to {bane.fault.begins}, where fault {bane.fault.name} was to begin")
    if record.phase is Phase.FALLEN_BACK and not any(stage.state == "failed" for stage in record.stages):
        problems.append("no stage says why it fell back")
    hurt = [each for each in users["failures"] if not bane.excuses(each)]
    if hurt:
        problems.append(f"{len(hurt)} of {users['requests']} user requests failed or were cut, first: {hurt[0]}")
    if users["requests"] < MIN_REQUESTS:
        problems.append(f"only {users['requests']} requests were made")
    return problems


def _print_end(say: Teller, record: Record, summary: dict[str, Any], out: Path, problems: list[str]) -> None:
    print()
    for stage in summary["stages"]:
        print(f"  {stage['stage']:<13}{stage['state']:<9}{stage['seconds']:>7.1f} s")
    verdict, users, fallback = record.verdict, summary["users"], summary["fallback"]
    if verdict:
        print(f"\n  gate: {verdict['outcome']}")
        for check in verdict["checks"]:
            print(f"    {check['outcome']:<13}{check['sentence']}")
    if fallback:
        print(f"\n  fallback: {fallback['reason']}")
    route = ", ".join(f"{name} {share} %" for name, share in summary["route"].items())
    print(f"\n  {summary['workload']} is {summary['phase']}: {route} (engines are {summary['engine']})")
    print(
        f"  users: {users['requests']} requests, {users['failed']} failed, {users['truncated']} cut short, "
        f"{users['peak_streams']} streams at the peak, p99 TTFT {users['p99_ttft_s']} s\n"
    )
    say(f"summary {out / 'summary.json'}   report {out / 'report.html'}")
    for problem in problems:
        say(f"NOT AS EXPECTED: {problem}")


if __name__ == "__main__":
    sys.exit(main())
