"""Make the plain, JSON-ready entries of a cloud's state."""

from __future__ import annotations

import json
from typing import Any

from google.cloud import container_v1


def new_pool(pool: container_v1.NodePool, zones: list[str], status: str, etag: str) -> dict[str, Any]:
    """Return the entry of a node pool without nodes, with what GKE fills in where nothing is asked."""
    spec = container_v1.NodePool(pool)
    spec.config.machine_type = spec.config.machine_type or "e2-standard-8"
    spec.config.disk_size_gb = spec.config.disk_size_gb or 100
    spec.config.image_type = spec.config.image_type or "COS_CONTAINERD"
    spec.config.service_account = spec.config.service_account or "default"
    return {
        "spec": text_of(spec),
        "zones": zones,
        "count": pool.initial_node_count,
        "status": status,
        "status_message": "",
        "conditions": [],
        "nodes": {},
        "cordoned": False,
        "appears_in": None,
        "appears_count": 0,
        "growing": None,
        "etag": etag,
    }


def new_operation(name: str, kind: str, cluster: str, pool: str, target: int, nodes: int, now: float) -> dict[str, Any]:
    """Return the entry of an operation that begins at `now` (Unix seconds) and will have touched `nodes`."""
    return {
        "name": name,
        "type": kind,
        "cluster": cluster,
        "pool": pool,
        "target": target,
        "status": "PENDING",
        "start": now,
        "end": None,
        "elapsed": 0.0,
        "got_machines_at": None,
        "retried": False,
        "late": None,
        "detail": "",
        "error": None,
        "conditions": [],
        "nodes_total": nodes,
        "nodes_done": 0,
    }


def spec_of(pool: dict[str, Any]) -> container_v1.NodePool:
    """Return what a stored pool was asked to be."""
    return container_v1.NodePool.from_json(pool["spec"])


def text_of(spec: container_v1.NodePool) -> str:
    """Return what a pool is asked to be, as it is stored."""
    return json.dumps(json.loads(container_v1.NodePool.to_json(spec)), separators=(",", ":"))
