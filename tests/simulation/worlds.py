"""Tell whether two moments of virtual worlds are the same, so that what follows from them is played once."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from sandbox.world import World
from tests.simulation.harness import Airflow, Scene
from tpu_migration.stages.base import Failed


def digest(scene: Scene, airflow: Airflow) -> bytes:
    """Return a digest of everything that decides what follows once the orchestrator's memory is lost.

    The time, every object in the API with its versions and times, GKE's node pools and operations, what runs in
    the pods, what the Gateway has taken up, the seeded random state, what each guard has seen, and what Airflow
    knows of the run's tasks. The orchestrator's own memory is left out on purpose: it dies.
    """
    world = scene.world
    state = (
        world.clock.now(),
        world.gke.state,
        [(uid, _state(pod)) for uid, pod in world.pods.items()],
        sorted(world.nodes_off),
        _state(world.traffic),
        world.random.getstate(),
        [_state(guard) for guard in scene.guards],
        airflow.attempt,
        airflow.current.stage.name if airflow.current else "",
        [(name, outcome.reason if isinstance(outcome, Failed) else "") for name, outcome in airflow.ended.items()],
    )
    return blake2b(_objects(world) + repr(state).encode(), digest_size=16).digest()


def _objects(world: World) -> bytes:
    found = blake2b()
    for resource in world.api.registry.resources:
        for entry in world.api.store.list(resource.plural):
            found.update(entry.json)
    return found.digest()


def _state(part: Any) -> dict[str, Any]:
    """Return a part's own values; the world that it knows is looked at by itself."""
    return {name: value for name, value in vars(part).items() if name not in ("world", "_world", "kube", "clock")}
