"""Talk to the GKE API about node pools, telling the truth about operations.

An operation that is DONE can carry an error: Operation.Status has no failed value
(https://cloud.google.com/kubernetes-engine/docs/reference/rest/v1/projects.locations.operations).
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tpu_migration.domain.capacity import is_scarcity
from tpu_migration.domain.maintenance import Exclusion, Window
from tpu_migration.domain.node_pools import Accelerator, Pool, Taint, Wanted
from tpu_migration.domain.preflight import Cluster
from tpu_migration.errors import NoCapacityError, PermanentError, TransientError

CALL_TIMEOUT_S = 10.0


class ClusterBusyError(TransientError):
    """Report that the cluster's lock is held by another operation; wait for its end."""


@dataclass(frozen=True)
class Operation:
    """A long-running operation on the cluster."""

    name: str
    done: bool
    error: str
    kind: str = ""
    target: str = ""


@dataclass(frozen=True)
class Definition:
    """A node pool to make, in the API's own words; what they leave out is GKE's to choose."""

    message: Any  # google.cloud.container_v1.NodePool

    @classmethod
    def read(cls, body: Any) -> Definition:
        """Read a NodePool message, or a mapping with its fields; PermanentError for one that is none."""
        from google.cloud.container_v1 import NodePool
        from google.protobuf.json_format import ParseError

        try:
            message = body if isinstance(body, NodePool) else NodePool.from_json(json.dumps(body))
        except (ParseError, TypeError, ValueError) as error:
            raise PermanentError(f"the body is no node pool of the GKE API: {error}") from error
        if not message.name:
            raise PermanentError("the body names no node pool: give it a `name`")
        return cls(message)

    @property
    def name(self) -> str:
        """The pool's name."""
        return str(self.message.name)

    @property
    def shape(self) -> dict[str, str]:
        """What cannot be changed on a pool that is there, in words."""
        return _pool(self.message).shape

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `read` takes."""
        from google.protobuf.json_format import MessageToDict

        plain: dict[str, Any] = MessageToDict(type(self.message).pb(self.message), preserving_proto_field_name=True)
        return plain


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
        return _pool(pool)

    def list(self) -> list[Pool]:
        """Return every node pool of the cluster."""
        with _translated(f"list the node pools of {self._cluster}"):
            answer = self._client.list_node_pools(request={"parent": self._cluster}, retry=None, timeout=CALL_TIMEOUT_S)
        return [_pool(each) for each in answer.node_pools]

    def create(self, wanted: Wanted) -> str:
        """Ask for the pool and return the operation's name.

        Raises ClusterBusyError while another operation holds the cluster, NoCapacityError for a quota or a machine
        that this kind of capacity or this zone does not have, TransientError for a pool that is there by now.
        """
        self._before_mutation()
        try:
            with _translated(f"create node pool {wanted.name}"):
                operation = self._client.create_node_pool(
                    request={"parent": self._cluster, "node_pool": wanted.message},
                    retry=None,
                    timeout=CALL_TIMEOUT_S,
                )
        except PermanentError as error:
            if is_scarcity(str(error)):
                raise NoCapacityError(str(error)) from error
            raise
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
        window = found.maintenance_policy.window
        return Cluster(
            bool(found.autopilot.enabled),
            _windows(window),
            _exclusions(window),
            tuple(found.locations),
            found.current_master_version,
        )


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
        if isinstance(error, exceptions.AlreadyExists):  # an earlier create reached GKE after all: it is read again
            raise TransientError(text) from error
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


def _exclusions(found: Any) -> tuple[Exclusion, ...]:
    """Read the spans in which no node is upgraded: scope NO_UPGRADES (the default) or NO_MINOR_OR_NODE_UPGRADES.

    https://cloud.google.com/kubernetes-engine/docs/concepts/maintenance-windows-and-exclusions#exclusions
    """
    spans = found.maintenance_exclusions.values()
    return tuple(
        Exclusion(span.start_time, span.end_time)
        for span in spans
        if span.maintenance_exclusion_options.scope.name in ("NO_UPGRADES", "NO_MINOR_OR_NODE_UPGRADES")
    )


def _pool(found: Any) -> Pool:
    affinity, gpus = found.config.reservation_affinity, found.config.accelerators
    return Pool(
        name=found.name,
        status=type(found).Status(found.status).name,
        machine_type=found.config.machine_type,
        node_count=found.initial_node_count,
        labels=dict(found.config.labels),
        message=found.status_message or "; ".join(each.message for each in found.conditions),
        zones=tuple(found.locations),
        spot=bool(found.config.spot),
        reservation=affinity.values[0] if affinity.values else "",
        flex_start=bool(found.config.flex_start),
        gpus=Accelerator(gpus[0].accelerator_type, gpus[0].accelerator_count) if gpus else None,
        service_account=found.config.service_account,
        topology=found.placement_policy.tpu_topology,
        self_link=found.self_link,
        taints=tuple(Taint.of_gke(each.key, each.value, each.effect.name) for each in found.config.taints),
        max_nodes=found.autoscaling.max_node_count if found.autoscaling.enabled else 0,
        max_pods_per_node=found.max_pods_constraint.max_pods_per_node,
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
