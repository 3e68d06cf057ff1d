"""Decide how a rollout goes on: pure arithmetic of ReplicaSet sizes and of a Deployment's conditions."""

from __future__ import annotations

import math

from sandbox.api.messages import Object
from sandbox.api.times import seconds, stamp

from .base import condition


def resolve(value: int | str, of: int, up: bool) -> int:
    """Return an absolute number from one that may be a percentage of `of`."""
    if isinstance(value, int):
        return value
    share = int(value.rstrip("%")) * of / 100
    return math.ceil(share) if up else math.floor(share)


def limits(spec: Object) -> tuple[int, int]:
    """Return how many pods a rollout may have too many, and how many too few."""
    rolling = spec["strategy"].get("rollingUpdate")
    if spec["strategy"]["type"] == "Recreate" or not rolling:
        return 0, 0
    surge = resolve(rolling["maxSurge"], spec["replicas"], True)
    unavailable = resolve(rolling["maxUnavailable"], spec["replicas"], False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return surge, min(unavailable, spec["replicas"])


def total(sets: list[Object], field: str) -> int:
    """Sum a field of the status of ReplicaSets."""
    return sum(s["status"].get(field, 0) for s in sets)


def next_sizes(spec: Object, new: Object | None, old: list[Object], paused: bool) -> dict[str, int]:
    """Return the sizes that ReplicaSets are to have next, by name."""
    active_old = [s for s in old if s["spec"]["replicas"]]
    if new is None:
        if spec["strategy"]["type"] == "Recreate" and not paused:
            return {s["metadata"]["name"]: 0 for s in active_old}
        # A paused Deployment still follows its size, on the template that it has.
        return {active_old[0]["metadata"]["name"]: spec["replicas"]} if len(active_old) == 1 else {}
    name = new["metadata"]["name"]
    if not active_old:
        return {name: spec["replicas"]}
    if paused:
        return {}
    if spec["strategy"]["type"] == "Recreate":
        return {s["metadata"]["name"]: 0 for s in active_old} | {name: new["spec"]["replicas"]}
    sizes = {name: _grown(spec, new, active_old)}
    return sizes | _shrunk(spec, new, active_old)


def first_size(spec: Object, old: list[Object]) -> int:
    """Return the size that a new ReplicaSet is made with."""
    if spec["strategy"]["type"] == "Recreate":
        return int(spec["replicas"])
    return _grown(spec, {"spec": {"replicas": 0}}, old)


def rescaled(spec: Object, new: Object | None, old: list[Object], before: dict[str, int]) -> dict[str, int]:
    """Return the sizes after the Deployment itself was resized: in the middle of a rollout, in proportion.

    `before` holds, by name, how many pods the rollout could have had in all before the change.
    """
    sets = [*old, *([new] if new else [])]
    active = [s for s in sets if s["spec"]["replicas"]]
    if len(active) == 1 or spec["strategy"]["type"] == "Recreate":
        return {active[0]["metadata"]["name"]: spec["replicas"]}
    surge, _ = limits(spec)
    allowed = spec["replicas"] + surge if spec["replicas"] else 0
    to_add = allowed - sum(s["spec"]["replicas"] for s in active)
    # Larger sets first; of equals the newer grows first, the older shrinks first.
    ordered = sorted(active, key=lambda s: s["metadata"]["creationTimestamp"], reverse=to_add > 0)
    ordered.sort(key=lambda s: -s["spec"]["replicas"])
    sizes: dict[str, int] = {}
    added = 0
    for each in ordered:
        size, name = each["spec"]["replicas"], each["metadata"]["name"]
        share = _share(size, spec["replicas"], allowed, before.get(name) or size)
        left = to_add - added
        step = min(share, left) if to_add > 0 else max(share, left)
        sizes[name] = size + (step if to_add else 0)
        added += step if to_add else 0
    if ordered and to_add != added:
        name = ordered[0]["metadata"]["name"]
        sizes[name] = max(0, sizes[name] + to_add - added)
    return sizes


def _share(size: int, replicas: int, allowed: int, before: int) -> int:
    return -size if replicas == 0 else math.floor(size * allowed / before + 0.5) - size


def _grown(spec: Object, new: Object, old: list[Object]) -> int:
    wanted, size = spec["replicas"], new["spec"]["replicas"]
    if size >= wanted:
        return wanted
    surge, _ = limits(spec)
    room = wanted + surge - size - sum(s["spec"]["replicas"] for s in old)
    return size + max(0, min(room, wanted - size))


def _shrunk(spec: Object, new: Object, old: list[Object]) -> dict[str, int]:
    _, unavailable = limits(spec)
    floor = spec["replicas"] - unavailable
    missing_new = new["spec"]["replicas"] - new["status"].get("availableReplicas", 0)
    spare = new["spec"]["replicas"] + sum(s["spec"]["replicas"] for s in old) - floor - missing_new
    sizes = {s["metadata"]["name"]: s["spec"]["replicas"] for s in old}
    oldest_first = sorted(old, key=lambda s: (s["metadata"]["creationTimestamp"], s["metadata"]["name"]))
    # First what serves nobody, then as many of the serving as the floor allows.
    for each in oldest_first:
        name = each["metadata"]["name"]
        broken = each["spec"]["replicas"] - each["status"].get("availableReplicas", 0)
        cut = max(0, min(broken, spare))
        sizes[name] -= cut
        spare -= cut
    serving = total([new, *old], "availableReplicas") - floor
    for each in oldest_first:
        name = each["metadata"]["name"]
        cut = max(0, min(sizes[name], serving, spare))
        sizes[name] -= cut
        serving -= cut
        spare -= cut
    return sizes


def availability(conditions: list[Object], spec: Object, available: int, now: str) -> list[Object]:
    """Return conditions with Available brought up to date."""
    _, unavailable = limits(spec)
    if available >= spec["replicas"] - unavailable:
        text = "Deployment has minimum availability."
        return condition(conditions, "Available", "True", "MinimumReplicasAvailable", text, now)
    text = "Deployment does not have minimum availability."
    return condition(conditions, "Available", "False", "MinimumReplicasUnavailable", text, now)


def failing(conditions: list[Object], sets: list[Object], now: str) -> list[Object]:
    """Return conditions with the first ReplicaFailure that a ReplicaSet reports; without one where none does."""
    for each in sets:
        for found in each["status"].get("conditions", ()):
            if found["type"] == "ReplicaFailure":
                return condition(conditions, "ReplicaFailure", "True", found["reason"], found["message"], now)
    return [each for each in conditions if each["type"] != "ReplicaFailure"]


def created(conditions: list[Object], name: str, now: str) -> list[Object]:
    """Return conditions that tell of a ReplicaSet just made."""
    text = f'Created new replica set "{name}"'
    return condition(conditions, "Progressing", "True", "NewReplicaSetCreated", text, now)


def progressing(
    conditions: list[Object],
    spec: Object,
    counts: dict[str, int],
    old: Object,
    name: str,
    now_s: float,
) -> list[Object]:
    """Return conditions with Progressing brought up to date, by the clock."""
    now = stamp(now_s)
    current = next((c for c in conditions if c["type"] == "Progressing"), None)
    if spec.get("paused"):
        text = "Deployment is paused"
        return condition(conditions, "Progressing", "Unknown", "DeploymentPaused", text, now)
    if not name:
        return conditions
    done = current is not None and current["reason"] == "NewReplicaSetAvailable"
    if done and counts["replicas"] == counts["updatedReplicas"] and f'"{name}"' in current["message"]:
        return conditions
    wanted = spec["replicas"]
    if counts["updatedReplicas"] == counts["replicas"] == counts["availableReplicas"] == wanted:
        text = f'ReplicaSet "{name}" has successfully progressed.'
        return condition(conditions, "Progressing", "True", "NewReplicaSetAvailable", text, now)
    if current is None or _moved(counts, old) or (done and f'"{name}"' not in current["message"]):
        text = f'ReplicaSet "{name}" is progressing.'
        moved = condition(conditions, "Progressing", "True", "ReplicaSetUpdated", text, now)
        # Each step forward restarts the deadline, though nothing else about the condition changes.
        return [{**c, "lastUpdateTime": now} if c["type"] == "Progressing" else c for c in moved]
    deadline = spec.get("progressDeadlineSeconds", 600)
    if current["status"] == "True" and not done and now_s > seconds(current["lastUpdateTime"]) + deadline:
        text = f'ReplicaSet "{name}" has timed out progressing.'
        return condition(conditions, "Progressing", "False", "ProgressDeadlineExceeded", text, now)
    return conditions


def _moved(counts: dict[str, int], old: Object) -> bool:
    def before(field: str) -> int:
        return old.get(field, 0)

    return (
        counts["updatedReplicas"] > before("updatedReplicas")
        or counts["replicas"] - counts["updatedReplicas"] < before("replicas") - before("updatedReplicas")
        or counts["readyReplicas"] > before("readyReplicas")
        or counts["availableReplicas"] > before("availableReplicas")
    )
