"""Find node pools that outlived their run, and delete them where nobody can still need them.

A pool says by its labels whose it is and until when. Past that time it goes only if its record, the nodes and what runs
on them have all been read and none speaks for it: what cannot be read counts as needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.kubernetes import Kubernetes, Object
from tpu_migration.clock import Clock, SystemClock, iso
from tpu_migration.domain.node_pools import Pool
from tpu_migration.domain.phases import AFTER_COMMIT, Phase
from tpu_migration.errors import PermanentError
from tpu_migration.names import (
    POOL_EXPIRES_LABEL,
    POOL_NAMESPACE_LABEL,
    POOL_RUN_LABEL,
    POOL_WORKLOAD_LABEL,
    run_hash,
)
from tpu_migration.record import Record, RecordError
from tpu_migration.records import all_records
from tpu_migration.stages.base import Done, Waiting
from tpu_migration.stages.objects import full_name, running_on
from tpu_migration.stages.pool import POOL_LABEL
from tpu_migration.stages.pool_alone import RemovePool

STAYS, UNKNOWN, GOES, GONE, REMAINS = "stays", "unknown", "goes", "gone", "remains"
_TIME_LIMIT_S = 1800.0  # for one deletion: a minute, unless other operations hold the cluster

Records = Mapping[str, Record | RecordError]


@dataclass(frozen=True)
class Verdict:
    """What becomes of a pool, and why. `state` is one of STAYS, UNKNOWN, GOES, GONE, REMAINS; ages in seconds."""

    pool: str
    namespace: str
    workload: str
    run: str
    state: str
    why: str
    age_s: float | None = None  # of its oldest node; None: it has none
    expired_s: float | None = None  # negative: so long to go


def judge(pool: Pool, records: Records, running: list[str], now: float) -> tuple[str, str]:
    """Return GOES or STAYS, and why, for a pool of ours whose surroundings have been read.

    `records` are those of its namespace by workload, `running` names the pods on its nodes.
    """
    record = records.get(pool.labels[POOL_WORKLOAD_LABEL])
    if isinstance(record, RecordError):
        return UNKNOWN, f"the record of its workload cannot be read: {record}"
    if record is not None and (why := _speaks_for(record, pool)):
        return STAYS, why
    if running:
        more = f" and {len(running) - 3} more" if len(running) > 3 else ""
        return STAYS, f"in use: {', '.join(running[:3])}{more}"
    if pool.status == "STOPPING":
        return STAYS, "is being deleted already"
    since = f"past its time since {iso(float(pool.labels[POOL_EXPIRES_LABEL]))}"
    if record is None:
        return GOES, f"{since}; no record, nothing runs on it"
    return GOES, f"{since}; run {record.run_id} is {record.phase}, nothing runs on it"


def _speaks_for(record: Record, pool: Pool) -> str:
    """Return why a record needs a pool; empty: it does not."""
    named = pool.name == record.pool or pool.name in {each.pool for each in record.attempts}
    if not named and run_hash(record.run_id) != pool.labels.get(POOL_RUN_LABEL):
        return ""
    if record.phase in AFTER_COMMIT:
        return f"its migration is {record.phase}: users are on it"
    if record.active:
        return f"run {record.run_id} is {record.phase}"
    if record.phase is Phase.HELD:
        return f"run {record.run_id} holds it for a closer look: end that as the runbook says under 'A held run'"
    return ""


class Janitor:
    """Look at the node pools of one cluster. `kube` must be of the same cluster."""

    def __init__(self, kube: Kubernetes, pools: NodePools, clock: Clock | None = None) -> None:
        self._kube, self._pools = kube, pools
        self._clock = clock or SystemClock()

    def look(self) -> list[Verdict]:
        """Return a verdict for every pool that carries our labels; change nothing. Raises TransientError."""
        ours = [each for each in self._pools.list() if POOL_RUN_LABEL in each.labels]
        return [self._verdict(each) for each in sorted(ours, key=lambda pool: pool.name)]

    def sweep(
        self, sleep: Callable[[float], object] = time.sleep, say: Callable[[str], object] = lambda line: None
    ) -> list[Verdict]:
        """Delete what goes, one after the other, each looked at again just before; return what has become of all."""
        return [self._remove(each, sleep, say) if each.state == GOES else each for each in self.look()]

    def _remove(self, before: Verdict, sleep: Callable[[float], object], say: Callable[[str], object]) -> Verdict:
        found = self._pools.get(before.pool)
        if found is None:
            return replace(before, state=GONE, why="somebody else deleted it meanwhile")
        verdict = self._verdict(found)
        if verdict.state != GOES:
            return verdict
        work = RemovePool(self._pools, found.name, self._clock.now() + _TIME_LIMIT_S, clock=self._clock)
        told = ""
        while isinstance(outcome := work.step(), Waiting):
            if outcome.why != told:
                say(outcome.why)
                told = outcome.why
            sleep(outcome.seconds)
        if isinstance(outcome, Done):
            return replace(verdict, state=GONE, why=f"deleted: {verdict.why}")
        return replace(verdict, state=REMAINS, why=outcome.reason)

    def _verdict(self, pool: Pool) -> Verdict:
        now, labels = self._clock.now(), pool.labels
        namespace, workload = labels.get(POOL_NAMESPACE_LABEL, ""), labels.get(POOL_WORKLOAD_LABEL, "")
        verdict = Verdict(pool.name, namespace, workload, labels[POOL_RUN_LABEL], UNKNOWN, "")
        expires = labels.get(POOL_EXPIRES_LABEL, "")
        if not (expires.isdigit() and namespace and workload):
            return replace(verdict, why=f"its labels are not whole: {', '.join(_lacking(labels))}")
        verdict = replace(verdict, expired_s=now - float(expires))
        try:
            nodes = self._kube.list(k8s.NODES, labels=f"{POOL_LABEL}={pool.name}")
            verdict = replace(verdict, age_s=_age_s(nodes, now))
            if float(expires) > now:
                return replace(verdict, state=STAYS, why=f"its run may take until {iso(float(expires))}")
            records = all_records(self._kube, namespace)
            running = [full_name(pod) for node in nodes for pod in running_on(self._kube, node["metadata"]["name"])]
        except PermanentError as error:
            return replace(verdict, why=str(error))
        state, why = judge(pool, records, running, now)
        return replace(verdict, state=state, why=why)


def _lacking(labels: Mapping[str, str]) -> list[str]:
    needed = (POOL_NAMESPACE_LABEL, POOL_WORKLOAD_LABEL, POOL_EXPIRES_LABEL)
    return [f"{each}={labels.get(each, '')!r}" for each in needed]


def _age_s(nodes: list[Object], now: float) -> float | None:
    made = [each["metadata"].get("creationTimestamp") for each in nodes]
    began = [datetime.fromisoformat(each).timestamp() for each in made if each]
    return now - min(began) if began else None
