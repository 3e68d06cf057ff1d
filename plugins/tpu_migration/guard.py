"""Keep the dead man's switch: when a migration's worker dies, send users to the safe route.

Runs in the cluster, two replicas, off accelerator and spot nodes. It trusts its own clock only:
a lease is dead when its renewTime has not changed for a whole lease as seen from here. Two
guards never fight: each restore raises the epoch, and whoever comes second finds it done.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
from dataclasses import dataclass, field
from typing import Any

from tpu_migration import rights
from tpu_migration.clients.kubernetes import DEPLOYMENTS, LEASES, Kubernetes
from tpu_migration.clock import Clock, SystemClock, micro_time
from tpu_migration.domain.phases import AFTER_COMMIT, ENDED, Phase
from tpu_migration.errors import ConflictError, MigrationError, PermanentError
from tpu_migration.exposition import render, serve
from tpu_migration.lease import DURATION_S
from tpu_migration.names import GUARD_LEASE, MANAGED_BY, SCHEMA_ANNOTATION, record_name
from tpu_migration.record import SCHEMA_VERSION, Record, RecordError
from tpu_migration.records import all_records
from tpu_migration.restore import observed_percent, observed_safe_route, restore

TICK_S = 1.0
# Before the first weight no user depends on the worker: a slow hand-over between two tasks is not a death.
IDLE_LIMIT_S = 1800.0
_BLIND_S = 10.0  # what stood still while the guard itself could not look proves nothing
BEAT_EVERY_S = 5.0

MANIFEST = "guard.yaml"  # grants what it needs, and no more
RIGHTS_EVERY_S = 600.0
NO_USER_DEPENDS = frozenset({Phase.PLANNED, Phase.PROVISIONED, Phase.DEPLOYED, Phase.WARM, Phase.GATED})

log = logging.getLogger(__name__)


@dataclass
class Guard:
    """Watch every migration of a namespace.

    `seen` maps a workload to what its lease and its record's epoch last said, and when that changed.
    A restore, by whomever, raises the epoch, and so begins the count anew for every guard.
    """

    kube: Kubernetes
    namespace: str
    clock: Clock
    identity: str = "guard"
    seen: dict[str, tuple[str, float]] = field(default_factory=dict)
    records: dict[str, Record | RecordError] = field(default_factory=dict)  # as last read
    lacking: tuple[str, ...] = ()  # rights
    _restored_unreadable: dict[str, str] = field(default_factory=dict)
    _beaten: float = float("-inf")
    _asked: float = float("-inf")
    _looked: float = float("-inf")

    def tick(self) -> list[str]:
        """Look at every migration, and return the workloads that were restored.

        Beats, unless it could not help: what leans on its heartbeat must not begin then.
        """
        records = self.records = all_records(self.kube, self.namespace)
        if not self.lacking:
            self._beat()
        now = self.clock.monotonic()
        if now - self._looked > _BLIND_S:
            self.seen.clear()
        self._looked = now
        rescued = []
        for workload, record in records.items():
            try:
                if self._is_left_alone(workload, record) and self._help(workload, record):
                    rescued.append(workload)
            except Exception:
                # One workload's trouble, whatever it is, must not keep the guard from the others.
                log.exception("could not help %s, will try again", workload)
        return rescued

    def ask_for_rights(self) -> None:
        """See now and then what it may not do; while there is anything, it does not beat, and helps as it can."""
        now = self.clock.monotonic()
        if now - self._asked < (TICK_S * 10 if self.lacking else RIGHTS_EVERY_S):
            return
        lacking = tuple(map(str, rights.lacking(self.kube, self.namespace, rights.granted_by(MANIFEST))))
        if lacking:
            log.error(
                "the guard's service account lacks rights in namespace %s: %s; until it has them it gives no sign of "
                "life, and no user is moved; apply include/manifests/guard.yaml", self.namespace, ", ".join(lacking)
            )  # fmt: skip
        self.lacking, self._asked = lacking, now

    def _is_left_alone(self, workload: str, record: Record | RecordError) -> bool:
        """Tell whether a migration's lease has stood still for too long, seen from here."""
        phase = str(record.phase)
        if phase in ENDED:
            self.seen.pop(workload, None)
            return False
        lease = self.kube.get(LEASES, record_name(workload), self.namespace)
        spec = lease["spec"] if lease else {}
        epoch = record.epoch if isinstance(record, Record) else "unreadable"
        value = f"{spec.get('holderIdentity')} {spec.get('renewTime')} {epoch}"
        last, since = self.seen.get(workload, ("", 0.0))
        now = self.clock.monotonic()
        if value != last:
            self.seen[workload] = (value, now)
            return False
        return now - since > (IDLE_LIMIT_S if phase in NO_USER_DEPENDS else DURATION_S)

    def _help(self, workload: str, record: Record | RecordError) -> bool:
        """Do what is due for a migration that nobody works on; True if its users were sent elsewhere."""
        if isinstance(record, RecordError):
            return record.phase not in AFTER_COMMIT and self._help_unreadable(workload, record)
        if record.phase is Phase.FALLING_BACK:
            self._end_target(record)
            return False
        if (
            record.phase in AFTER_COMMIT
            and observed_percent(self.kube, record) == observed_safe_route(self.kube, record).target_percent
        ):
            return False  # users are where they should be; what is left to do is for people
        self._restore(
            workload,
            f"nobody works on it, in phase {record.phase}: the lease has stood still for {self._age_s(workload):.0f} s "
            "(Airflow is dead or cut off)",
        )
        return True

    def _age_s(self, workload: str) -> float:
        return self.clock.monotonic() - self.seen[workload][1]

    def _help_unreadable(self, workload: str, error: RecordError) -> bool:
        """Restore from the snapshot, once for each state of the lease: nothing in the record can say it was done."""
        state = self.seen[workload][0]
        if self._restored_unreadable.get(workload) == state:
            return False
        self._restore(workload, f"{error}, and nobody works on it")
        self._restored_unreadable[workload] = state
        return True

    def _restore(self, workload: str, reason: str) -> None:
        actor = f"the guard {self.identity}"
        done = restore(self.kube, self.namespace, workload, actor=actor, reason=reason, clock=self.clock)
        log.warning("%s: %s", workload, done.reason)

    def _end_target(self, record: Record) -> None:
        """Scale the TPU pods to 0, a whole lease after the route was restored.

        Never in the same breath: the Gateway takes up to a minute to follow, and users that it
        still sends to the target would meet nobody.
        """
        percent, safe = observed_percent(self.kube, record), observed_safe_route(self.kube, record)
        if percent or safe.target_percent == 100:
            if safe.target_percent in (0, 100) and safe.target_percent != percent:
                self._restore(record.workload, f"the source has changed ({safe.reason})")
            return  # users are on the target, or have to be: it is not to be touched
        target = self.kube.get(DEPLOYMENTS, record.target, self.namespace)
        if target and target["spec"].get("replicas", 1):
            log.warning("%s: nobody came back; scaling the TPU pods to 0", record.workload)
            self.kube.scale(record.target, self.namespace, 0)

    def _beat(self) -> None:
        now = self.clock.monotonic()
        if now - self._beaten < BEAT_EVERY_S:
            return
        found = self.kube.get(LEASES, GUARD_LEASE, self.namespace)
        metadata: dict[str, Any] = found["metadata"] if found else {"name": GUARD_LEASE, "namespace": self.namespace}
        metadata["labels"] = dict(MANAGED_BY)
        metadata["annotations"] = {**(metadata.get("annotations") or {}), SCHEMA_ANNOTATION: str(SCHEMA_VERSION)}
        lease = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": metadata,
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": int(BEAT_EVERY_S * 4),
                "renewTime": micro_time(self.clock.now()),
            },
        }
        try:
            self.kube.replace(lease) if found else self.kube.create(lease)
        except ConflictError:
            log.debug("the other guard was quicker")
        self._beaten = now


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the guard's arguments."""
    parser.add_argument("--namespace", required=True, help="whose migrations it guards")
    parser.add_argument("--identity", default="guard", help="who writes the heartbeat, e.g. the pod's name")
    parser.add_argument("--metrics-port", type=int, default=0, help="serve /metrics on $POD_IP; 0: do not")
    parser.add_argument("--once", action="store_true", help="look once and exit; a dead lease needs two looks")


def run(kube: Kubernetes, namespace: str, identity: str, *, once: bool, metrics_port: int = 0) -> int:
    """Tick until told to stop."""
    guard = Guard(kube, namespace, SystemClock(), identity)
    if metrics_port:
        serve(os.environ.get("POD_IP") or "127.0.0.1", metrics_port, lambda: render(guard.records))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.is_set():
        try:
            guard.ask_for_rights()
            guard.tick()
        except PermanentError as error:
            log.error("%s", error)
            if once:
                return 1
        except MigrationError as error:
            log.warning("the API does not answer, trying again: %s", error)
        if once:
            return 0
        stop.wait(TICK_S)
    return 0
