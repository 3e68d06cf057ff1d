"""Talk to the GKE API about node pools, telling the truth about operations.

An operation that is DONE can carry an error: Operation.Status has no failed value
(https://cloud.google.com/kubernetes-engine/docs/reference/rest/v1/projects.locations.operations).
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpu_migration.domain.maintenance import Window
from tpu_migration.domain.preflight import Cluster
from tpu_migration.errors import PermanentError, TransientError

CALL_TIMEOUT_S = 10.0


class ClusterBusyError(TransientError):
    """Report that the cluster's lock is held by another operation; wait for its end."""


@dataclass(frozen=True)
class PoolSpec:
    """A single-host node pool to make. A multi-host slice is another shape and not made here."""

    name: str
    machine_type: str
    node_count: int
    zone: str
    labels: Mapping[str, str]
    spot: bool = False
    reservation: str = ""
    max_pods_per_node: int = 32  # the default of 110 risks IP_SPACE_EXHAUSTED_WITH_DETAILS


@dataclass(frozen=True)
class Pool:
    """A node pool as GKE sees it."""

    name: str
    status: str
    machine_type: str
    node_count: int
    labels: Mapping[str, str]
    message: str = ""


@dataclass(frozen=True)
class Operation:
    """A long-running operation on the cluster."""

    name: str
    done: bool
    error: str
    kind: str = ""
    target: str = ""


class NodePools:
    """Create, read and delete the node pools of one cluster.

    `client` is a `google.cloud.container_v1.ClusterManagerClient`. Nothing is retried here: the
    caller reads before it repeats, because a lost answer may hide a pool that was made.
    """

    def __init__(
        self,
        client: Any,
        project_id: str,
        location: str,
        cluster: str,
        before_mutation: Callable[[], None] = lambda: None,
    ) -> None:
        self._names = (project_id, location, cluster)
        self._before_mutation = before_mutation
        self._client = client
        self._location = f"projects/{project_id}/locations/{location}"
        self._cluster = f"{self._location}/clusters/{cluster}"

    def fenced(self, before_mutation: Callable[[], None]) -> NodePools:
        """Return a client that calls `before_mutation` before each change; it raises to forbid one."""
        return NodePools(self._client, *self._names, before_mutation)

    def get(self, name: str) -> Pool | None:
        """Return the pool, or None if GKE says that it does not exist."""
        from google.api_core import exceptions

        try:
            with _translated(f"read node pool {name}"):
                pool = self._client.get_node_pool(
                    request={"name": f"{self._cluster}/nodePools/{name}"}, retry=None, timeout=CALL_TIMEOUT_S
                )
        except _Missing as error:
            if not isinstance(error.__cause__, exceptions.NotFound):
                raise
            return None
        return Pool(
            name=pool.name,
            status=type(pool).Status(pool.status).name,
            machine_type=pool.config.machine_type,
            node_count=pool.initial_node_count,
            labels=dict(pool.config.labels),
            message=pool.status_message or "; ".join(c.message for c in pool.conditions),
        )

    def create(self, spec: PoolSpec) -> str:
        """Ask for the pool and return the operation's name.

        Raises ClusterBusyError while another operation holds the cluster.
        """
        self._before_mutation()
        with _translated(f"create node pool {spec.name}"):
            operation = self._client.create_node_pool(
                request={"parent": self._cluster, "node_pool": node_pool(spec)},
                retry=None,
                timeout=CALL_TIMEOUT_S,
            )
        return str(operation.name)

    def delete(self, name: str) -> str | None:
        """Ask for the pool's deletion and return the operation's name; None if it was not there."""
        self._before_mutation()
        try:
            with _translated(f"delete node pool {name}"):
                operation = self._client.delete_node_pool(
                    request={"name": f"{self._cluster}/nodePools/{name}"}, retry=None, timeout=CALL_TIMEOUT_S
                )
        except _Missing:
            return None
        return str(operation.name)

    def operation(self, name: str) -> Operation:
        """Read an operation; its `error` says what went wrong even when it is DONE."""
        with _translated(f"read operation {name}"):
            found = self._client.get_operation(
                request={"name": f"{self._location}/operations/{name}"}, retry=None, timeout=CALL_TIMEOUT_S
            )
        return _operation(found)

    def running_operations(self, pool: str) -> Sequence[Operation]:
        """Return the unfinished operations on a pool, so that a lost answer is found again."""
        with _translated("list operations"):
            answer = self._client.list_operations(
                request={"parent": self._location}, retry=None, timeout=CALL_TIMEOUT_S
            )
        found = [_operation(each) for each in answer.operations]
        return [each for each in found if not each.done and each.target.endswith(f"/nodePools/{pool}")]

    def cancel(self, operation: str) -> None:
        """Ask GKE to stop an operation; what it has made already stays and must be deleted."""
        self._before_mutation()
        with _translated(f"cancel operation {operation}"):
            self._client.cancel_operation(
                request={"name": f"{self._location}/operations/{operation}"},
                retry=None,
                timeout=CALL_TIMEOUT_S,
            )

    def cluster(self) -> Cluster:
        """Read the cluster, so that a wrong name or a refused token shows before anything is made."""
        with _translated(f"read cluster {self._cluster}"):
            found = self._client.get_cluster(request={"name": self._cluster}, retry=None, timeout=CALL_TIMEOUT_S)
        return Cluster(autopilot=bool(found.autopilot.enabled), windows=_windows(found.maintenance_policy.window))


def node_pool(spec: PoolSpec) -> dict[str, Any]:
    """Return the NodePool message of a single-host pool.

    placementPolicy is left out: GKE refuses it for a single host
    (https://cloud.google.com/kubernetes-engine/docs/how-to/tpus#create-node-pool).
    """
    config: dict[str, Any] = {
        "machine_type": spec.machine_type,
        "labels": dict(spec.labels),
        "spot": spec.spot,
        "workload_metadata_config": {"mode": "GKE_METADATA"},
        "shielded_instance_config": {"enable_secure_boot": True, "enable_integrity_monitoring": True},
    }
    if spec.reservation:
        config["reservation_affinity"] = {
            "consume_reservation_type": "SPECIFIC_RESERVATION",
            "key": "compute.googleapis.com/reservation-name",
            "values": [spec.reservation],
        }
    return {
        "name": spec.name,
        "initial_node_count": spec.node_count,
        "config": config,
        "locations": [spec.zone],
        "max_pods_constraint": {"max_pods_per_node": spec.max_pods_per_node},
        "management": {"auto_upgrade": True, "auto_repair": True},
    }


class _Missing(PermanentError):
    """Report a resource that GKE does not have."""


class _translated:
    """Turn Google's errors into permanent and transient ones that name the call and the remedy."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from google.api_core import exceptions
        from google.auth import exceptions as auth

        if error is None:
            return
        text = f"cannot {self._what}: {error}"
        if isinstance(error, exceptions.NotFound):
            raise _Missing(text) from error
        if isinstance(error, exceptions.Unauthenticated | exceptions.Forbidden):
            raise PermanentError(
                f"{text}: check the connection's service account and its role on the cluster"
            ) from error
        if isinstance(error, auth.RefreshError):
            raise PermanentError(f"{text}: Google refuses the connection's service-account key") from error
        if isinstance(error, exceptions.FailedPrecondition | exceptions.BadRequest) and (
            "incompatible operation" in str(error)
        ):
            raise ClusterBusyError(text) from error
        if isinstance(
            error,
            exceptions.ServerError | exceptions.TooManyRequests | exceptions.RetryError | auth.TransportError,
        ):
            raise TransientError(text) from error
        if isinstance(error, exceptions.GoogleAPICallError):
            raise PermanentError(text) from error


def _windows(found: Any) -> tuple[Window, ...]:
    """Read a MaintenanceWindow: daily at HH:MM UTC for PTnHnMnS, or recurring by RRULE; there is one at most."""
    recurring = found.recurring_window
    if recurring.recurrence:
        start, end = recurring.window.start_time, recurring.window.end_time
        return (Window(start, end - start, recurring.recurrence),)
    daily = found.daily_maintenance_window
    if not daily.start_time:
        return ()
    hour, minute = map(int, daily.start_time.split(":"))
    length = {unit: int(number) for number, unit in re.findall(r"(\d+)([HM])", daily.duration or "PT4H")}
    return (
        Window(
            dt.datetime(2000, 1, 1, hour, minute, tzinfo=dt.UTC),
            dt.timedelta(hours=length.get("H", 0), minutes=length.get("M", 0)),
        ),
    )


def _operation(found: Any) -> Operation:
    done = type(found).Status(found.status).name == "DONE"
    error = found.error.message if found.error and (found.error.code or found.error.message) else ""
    return Operation(
        name=found.name,
        done=done,
        error=error,
        kind=type(found).Type(found.operation_type).name,
        target=found.target_link,
    )
