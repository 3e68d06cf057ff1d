"""Hold the right to work on a migration, and know when it is lost."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tpu_migration.clients.kubernetes import LEASES, Kubernetes, Object
from tpu_migration.clock import Clock, micro_time
from tpu_migration.errors import ConflictError, NotHolderError, TransientError
from tpu_migration.names import MANAGED_BY, WORKLOAD_LABEL, record_name

DURATION_S = 60.0
RENEW_EVERY_S = 10.0
# A worker that could not renew stops writing this long before others may take its lease for
# expired: two call timeouts, so that a write already sent has ended by then.
STOP_BEFORE_S = 20.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Who works on a migration."""

    run_id: str
    task: str
    attempt: int = 1
    nonce: str = ""

    def __str__(self) -> str:
        return f"{self.run_id}|{self.task}|{self.attempt}|{self.nonce}"

    @classmethod
    def parse(cls, identity: str) -> Holder:
        """Read a holderIdentity; a foreign one becomes a run id of its own."""
        run_id, _, rest = identity.partition("|")
        task, _, rest = rest.partition("|")
        attempt, _, nonce = rest.partition("|")
        return cls(run_id, task, int(attempt) if attempt.isdigit() else 0, nonce)


@dataclass(frozen=True)
class Found:
    """A lease as it was at one look; what takes it by this look is refused if anybody wrote it since."""

    lease: Object | None
    holder: Holder | None  # None: nobody

    @classmethod
    def of(cls, lease: Object | None) -> Found:
        """Read who holds it."""
        identity = (lease["spec"].get("holderIdentity") if lease else None) or ""
        return cls(lease, Holder.parse(identity) if identity else None)

    @property
    def beat(self) -> str:
        """What changes with each renewal."""
        return f"{self.holder} {self.lease['spec'].get('renewTime')}" if self.lease else ""


class Lease:
    """The Lease of one workload's migration, as one worker sees it.

    A newer worker of the same run takes it at once; a worker of another run never does.
    """

    def __init__(
        self, kube: Kubernetes, namespace: str, workload: str, holder: Holder, clock: Clock, name: str = ""
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name or record_name(workload)
        self._workload = workload
        self.holder = Holder(holder.run_id, holder.task, holder.attempt, holder.nonce or uuid.uuid4().hex[:12])
        self._clock = clock
        self._renewed: float | None = None  # monotonic, taken before the call was sent
        self._lost = ""
        self.replaced = False  # a newer worker of the same run has it: that one goes on
        self._lock = threading.Lock()
        self._first_beat: tuple[str, float] | None = None

    @property
    def taken(self) -> bool:
        """Tell whether this worker ever had the lease; it may have lost it since."""
        return self._renewed is not None

    def look(self) -> Found:
        """Read the lease as it is now."""
        return Found.of(self._kube.get(LEASES, self._name, self._namespace))

    def is_mine(self) -> bool:
        """Tell whether this very worker holds the lease right now."""
        return str(self.look().holder or "") == str(self.holder)

    def still_for(self, found: Found) -> float | None:
        """Return for how many seconds a lease in other hands has stood still, on this worker's own clock.

        None if it has moved since it was first asked about: its holder is alive, and the count begins anew.
        """
        now = self._clock.monotonic()
        if self._first_beat is None:
            self._first_beat = found.beat, now
        beat, since = self._first_beat
        if beat != found.beat:
            self._first_beat = None
            return None
        return now - since

    def acquire(
        self, as_found: Found | None = None, *, from_the_dead: bool = False, begins_the_run: bool = False
    ) -> None:
        """Take the lease; NotHolderError names the other run that holds it.

        `as_found` is an earlier look of this worker: whatever it has read since is no older than that, and
        ConflictError says that somebody wrote the lease in between. `from_the_dead` takes it from another run,
        too: the caller has seen it stand still for a whole lease. `begins_the_run` is for the first task of a
        run: any other task of it is further on, and keeps the lease.
        """
        sent = self._clock.monotonic()
        found = (as_found or self.look()).lease
        if found is None:
            self._kube.create(self._object())
        else:
            current = Holder.parse(found["spec"].get("holderIdentity") or "")
            if current.run_id not in ("", self.holder.run_id) and not from_the_dead:
                raise NotHolderError(
                    f"{self._workload} is being worked on by run {current.run_id} ({current.task}); "
                    "wait for its end, or send users home with "
                    f"`tpu-migration restore {self._workload}` and start again"
                )
            if begins_the_run and current.run_id == self.holder.run_id and current.task != self.holder.task:
                raise NotHolderError(
                    f"{self._workload}: {current.task} of this run holds the lease, so {self.holder.task} is over; "
                    "this worker of it was cut off for a while, and stops"
                )
            if self._is_older_than(current):
                self.replaced = True
                raise NotHolderError(
                    f"{self._workload}: try {current.attempt} of {current.task} holds the lease; this is try "
                    f"{self.holder.attempt}, and stops"
                )
            self._kube.replace(self._object(found))
        self._renewed = sent

    def _is_older_than(self, other: Holder) -> bool:
        mine = self.holder
        return (other.run_id, other.task) == (mine.run_id, mine.task) and other.attempt > mine.attempt

    def renew_if_due(self) -> None:
        """Renew when ten seconds have passed; a lease found in other hands is lost for good."""
        with self._lock:
            if self._lost or self._renewed is None:
                return
            sent = self._clock.monotonic()
            if sent - self._renewed < RENEW_EVERY_S:
                return
            try:
                found = self._kube.get(LEASES, self._name, self._namespace)
                if self._is_lost(found) or found is None:
                    return
                self._kube.replace(self._object(found))
                self._renewed = sent
            except ConflictError:
                return  # somebody wrote it in between: the next look tells who
            except TransientError as error:
                log.warning("could not renew the lease of %s: %s", self._workload, error)

    def _is_lost(self, found: Object | None) -> bool:
        """Tell whether the lease is in other hands, and remember in whose."""
        identity = (found["spec"].get("holderIdentity") if found else None) or ""
        if identity == str(self.holder):
            return False
        self._lost = f"the lease is held by {identity or 'nobody'} now"
        self.replaced = Holder.parse(identity).run_id == self.holder.run_id
        return True

    def taken_over(self) -> bool:
        """Ask the server whether a newer worker of the same run holds the lease; raises TransientError unanswered."""
        return self._is_lost(self._kube.get(LEASES, self._name, self._namespace)) and self.replaced

    def check(self) -> None:
        """Raise NotHolderError unless this worker may change things right now; asked before each change.

        The lease is read each time: a newer worker of the same run takes it at once, and this one
        must not write for the ten seconds until its next renewal would tell.
        """
        if self._lost:
            raise NotHolderError(f"{self._workload}: {self._lost}; this worker stops")
        if self._renewed is None:
            raise NotHolderError(f"{self._workload}: the lease was never taken")
        age = self._clock.monotonic() - self._renewed
        if age > DURATION_S - STOP_BEFORE_S:
            raise NotHolderError(
                f"{self._workload}: the lease was last renewed {age:.0f} s ago; this worker stops before others "
                "may take it for dead"
            )
        found = self._kube.get(LEASES, self._name, self._namespace)
        if self._is_lost(found):
            raise NotHolderError(f"{self._workload}: {self._lost}; this worker stops")

    def release(self) -> None:
        """Give the lease back at the end of a run; one that is in other hands is left alone.

        Those of a newer worker of the same run are other hands, too: it is in the middle of its work.
        """
        found = self._kube.get(LEASES, self._name, self._namespace)
        if found and found["spec"].get("holderIdentity") == str(self.holder):
            found["spec"]["holderIdentity"] = ""
            found["spec"]["renewTime"] = micro_time(self._clock.now())
            self._kube.replace(found)
        self._lost = "it was given back"

    def _object(self, found: Object | None = None) -> Object:
        now = micro_time(self._clock.now())
        mine = found is not None and found["spec"].get("holderIdentity") == str(self.holder)
        spec = {
            "holderIdentity": str(self.holder),
            "leaseDurationSeconds": int(DURATION_S),
            "acquireTime": found["spec"].get("acquireTime", now) if found and mine else now,
            "renewTime": now,
        }
        metadata = (
            found["metadata"]
            if found
            else {
                "name": self._name,
                "namespace": self._namespace,
                "labels": {**MANAGED_BY, WORKLOAD_LABEL: self._workload},
            }
        )
        return {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata, "spec": spec}


@contextmanager
def renewing(lease: Lease) -> Iterator[None]:
    """Renew the lease beside the work, not by its steps: a slow step must not cost the lease."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(1.0):
            try:
                lease.renew_if_due()
            except Exception:
                # Whatever it was, the next try may win; a thread that ends loses the lease for sure.
                log.exception("could not renew the lease")

    thread = threading.Thread(target=loop, name="lease-renewal", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
