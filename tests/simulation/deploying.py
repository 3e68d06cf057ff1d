"""Call deploy_all on a virtual world, as a person at a terminal would."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache

from sandbox.workload import NAMESPACE, WORKLOAD
from sandbox.world import CLUSTER, LOCATION, PROJECT
from tests.simulation.harness import Calls, Scene
from tpu_migration import deploy_cli
from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.deploying import Tools
from tpu_migration.errors import MigrationError
from tpu_migration.lease import Lease

TPU = f"{WORKLOAD}-tpu"
PARAMS = [
    "peak_rps=4", "source_peak_replicas=2", "policy=demo", "steps=[10,50,100]", "bake_s=20", "soak_s=60",
]  # fmt: skip


def deploy(scene: Scene, *words: str, calls: Calls | None = None, during: Callable[[], object] = lambda: None) -> int:
    """Run the command as a person would; `during` happens at each pause."""
    parser = argparse.ArgumentParser()
    deploy_cli.add_arguments(parser)
    where = [f"--project-id={PROJECT}", f"--location={LOCATION}", f"--cluster={CLUSTER}", f"--namespace={NAMESPACE}"]
    given = parser.parse_args([*where, *(f"--param={each}" for each in PARAMS), *words])
    calls = calls or Calls()

    def pause(seconds: float) -> None:
        scene.world.advance(seconds, tick_s=1.0 if seconds <= 3.0 else 5.0)
        for lease in leases:
            lease.renew_if_due()
        during()

    leases: list[Lease] = []

    def keeping(lease: Lease) -> nullcontext[None]:
        leases[:] = [lease]
        return nullcontext()

    def connect(plan: object) -> Tools:
        kube = Kubernetes(scene.world.transport(calls.before, calls.done, "admin"), sleep=scene.world.advance)
        pools = NodePools(scene.world.cluster_manager(calls.before, calls.done), PROJECT, LOCATION, CLUSTER)
        return Tools(kube, pools, scene.world.clock, {"sleep": pause, "keeping": keeping})

    try:
        return deploy_cli.main(given, connect)
    except MigrationError as error:  # as the command line itself does
        print(error)
        return 1


def empty_of_workloads(scene: Scene) -> None:
    """Let the cluster be one that serves nobody yet; its Gateway stands."""
    for resource in ("horizontalpodautoscalers", "deployments", "services", "poddisruptionbudgets", "httproutes",
                     "healthcheckpolicies", "gcpbackendpolicies", "podmonitorings"):  # fmt: skip
        scene.world.client.delete(resource, NAMESPACE, WORKLOAD)
    scene.world.advance(240.0)
    scene.world.traffic.violations.clear()


def new_cluster() -> Scene:
    scene = Scene()
    empty_of_workloads(scene)
    return scene


def tpu_pools(scene: Scene) -> list[str]:
    return sorted(name for name in scene.pools() if name.startswith("tpu-"))


def backends(scene: Scene) -> dict[str, int]:
    route = scene.world.client.get("httproutes", NAMESPACE, WORKLOAD)
    return {ref["name"]: ref["weight"] for ref in route["spec"]["rules"][0]["backendRefs"]}


@cache
def calls_of(make: Callable[[], Scene], *words: str) -> int:
    calls = Calls()
    assert deploy(make(), *words, calls=calls) == 0
    return calls.count


def on_tpu() -> Scene:
    scene = new_cluster()
    assert deploy(scene) == 0
    scene.world.advance(60.0)
    scene.world.traffic.violations.clear()
    return scene
