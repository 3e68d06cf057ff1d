"""Turn the cloud's plain state into the API's messages."""

from __future__ import annotations

import datetime
from typing import Any

from google.cloud import container_v1
from google.rpc import status_pb2

VERSION = "1.36.1-gke.1000"


def stamp(seconds: float | None) -> str:
    """Return an RFC 3339 time, "" for none."""
    if seconds is None:
        return ""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def pool_message(pool: dict[str, Any], self_link: str) -> container_v1.NodePool:
    """Return the NodePool message of a stored pool."""
    message = container_v1.NodePool.from_json(pool["spec"])
    message.locations = pool["zones"]
    message.status = container_v1.NodePool.Status[pool["status"]]
    message.status_message = pool["status_message"]
    message.conditions = [_condition(condition) for condition in pool["conditions"]]
    message.initial_node_count = pool["count"]
    message.self_link = self_link
    message.version = VERSION
    message.etag = pool["etag"]
    return message


def operation_message(operation: dict[str, Any], location: str, base_link: str) -> container_v1.Operation:
    """Return the Operation message of a stored operation."""
    message = container_v1.Operation(
        name=operation["name"],
        zone=location,
        location=location,
        operation_type=container_v1.Operation.Type[operation["type"]],
        status=container_v1.Operation.Status[operation["status"]],
        detail=operation["detail"],
        start_time=stamp(operation["start"]),
        end_time=stamp(operation["end"]),
        self_link=f"{base_link}/operations/{operation['name']}",
        target_link=f"{base_link}/clusters/{operation['cluster']}/nodePools/{operation['pool']}",
        nodepool_conditions=[_condition(condition) for condition in operation["conditions"]],
    )
    message.progress = container_v1.OperationProgress(
        name=operation["name"],
        status=message.status,
        metrics=[
            container_v1.OperationProgress.Metric(name="NODES_TOTAL", int_value=operation["nodes_total"]),
            container_v1.OperationProgress.Metric(name="NODES_DONE", int_value=operation["nodes_done"]),
        ],
    )
    if operation["error"]:
        message.error = status_pb2.Status(**operation["error"])
        message.status_message = operation["error"]["message"]  # deprecated by Google, still filled in
    return message


def _condition(condition: dict[str, Any]) -> container_v1.StatusCondition:
    return container_v1.StatusCondition(
        code=container_v1.StatusCondition.Code(condition["code"]), message=condition["message"]
    )
