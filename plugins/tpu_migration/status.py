"""Say in a few lines where a migration stands, from its record and what is observed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tpu_migration.answers import WAY_BACK
from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.clock import iso
from tpu_migration.domain.phases import AFTER_COMMIT
from tpu_migration.errors import PermanentError
from tpu_migration.history import Histories
from tpu_migration.record import Attempt, Record, told
from tpu_migration.restore import observed_percent, observed_safe_route


def observed_route(kube: Kubernetes, record: Record) -> dict[str, int]:
    """Return the share in per cent that each side has on the users' route right now."""
    percent = observed_percent(kube, record)
    return {record.source.service: 100 - percent, record.target: percent}


def safe_service(kube: Kubernetes, record: Record) -> str:
    """Return which Service is the safe route right now."""
    return record.target if observed_safe_route(kube, record).target_percent else record.source.service


def stage_table(record: Record, now: float | None = None) -> list[dict[str, Any]]:
    """Return the stages with their state and seconds, in the order they began."""
    now = time.time() if now is None else now
    return [
        {"stage": each.stage, "state": each.state, "seconds": round((each.ended or now) - each.started, 1)}
        for each in sorted(record.stages, key=lambda stage: stage.started)
    ]


def attempt_state(attempt: Attempt) -> str:
    """Say in a few words what became of an attempt at a node pool."""
    return attempt.error or ("its nodes are ready" if attempt.ended else "under way")


def _canaries(kube: Kubernetes, record: Record) -> list[str]:
    """Say when the workload was tried last, with what outcome, and what has drifted; and what people are asked."""
    try:
        history = Histories(kube, record.namespace, record.workload).read()
    except PermanentError as error:
        return [f"  canary     {error}"]
    lines = []
    if history.canaries:
        last = history.canaries[-1]
        of_this = "" if last.proof == record.run_id else f" (held to an earlier run, {last.proof})"
        lines.append(f"  canary     {iso(last.at)} {last.outcome}{of_this}: {last.sentence}")
        lines += [f"  drift      {finding}" for finding in last.findings]
    if history.asked and history.asked.back and record.phase in AFTER_COMMIT:
        lines.append(f"  approval   {WAY_BACK}: {history.asked.told} (run {history.asked.back} of gpu_fallback)")
    return lines


def describe(kube: Kubernetes, record: Record) -> str:
    """Return the record as a person reads it."""
    route: Mapping[str, int] = observed_route(kube, record)
    shares = ", ".join(f"{name} {share} %" for name, share in route.items())
    lines = [
        f"{record.workload}  {record.phase}  (run {record.run_id}, epoch {record.epoch})",
        f"  route      {shares}; safe: {safe_service(kube, record)}",
    ]
    for stage in stage_table(record):
        lines.append(f"  {stage['stage']:<13}{stage['state']:<9}{stage['seconds']:>8.1f} s")
    for each in record.attempts:
        lines.append(f"  node pool  {each.offer}: {attempt_state(each)} ({each.pool})")
    lines += [f"  approval   {asked.what}: {told(asked)}" for asked in record.approvals]
    if record.waiting:
        lines.append(f"  now        {record.waiting}")
    if record.verdict:
        lines.append(f"  verdict    {record.verdict['outcome']}: {record.verdict['sentence']}")
    lines += _canaries(kube, record)
    if record.fallback:
        lines.append(f"  fallback   {record.fallback.reason} (by {record.fallback.actor})")
    if record.way_back:
        lines.append(f"  way back   {record.source.scarcity}")
        lines += [f"             {command}" for command in record.way_back]
    return "\n".join(lines)
