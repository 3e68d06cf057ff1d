"""The janitor deletes what a run left behind and nothing that anybody could still need."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import pytest
from google.cloud import container_v1

from sandbox.workload import NAMESPACE, WORKLOAD
from sandbox.world import CLUSTER, LOCATION, PROJECT
from tests.simulation.harness import Calls, Killed, Phase, Scene
from tpu_migration import janitor_cli
from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.clients.transport import Response
from tpu_migration.errors import TransientError
from tpu_migration.janitor import GOES, GONE, STAYS, UNKNOWN, Janitor
from tpu_migration.names import (
    POOL_EXPIRES_LABEL,
    POOL_NAMESPACE_LABEL,
    POOL_RUN_LABEL,
    POOL_WORKLOAD_LABEL,
    record_name,
    run_hash,
)
from tpu_migration.records import Records

DAYS = 30 * 86_400.0


class Broom:
    """The janitor at a terminal, at a time of its own: a month later, no world has to live through it."""

    def __init__(self, scene: Scene, later_s: float = DAYS, transport=None) -> None:
        world, self.scene, self.calls = scene.world, scene, Calls()
        self._later_s = later_s
        kube = Kubernetes(
            transport or world.transport(self.calls.before, self.calls.done, "admin"), sleep=world.advance
        )
        client = world.cluster_manager(self.calls.before, self.calls.done)
        self.janitor = Janitor(kube, NodePools(client, PROJECT, LOCATION, CLUSTER), self)

    def now(self) -> float:
        return self.scene.world.clock.now() + self._later_s

    def monotonic(self) -> float:
        return self.scene.world.clock.monotonic()

    def sweep(self):
        return {each.pool: each for each in self.janitor.sweep(self.scene.world.advance)}

    def look(self):
        return {each.pool: each for each in self.janitor.look()}

    def run(self, *words: str) -> int:
        parser = argparse.ArgumentParser()
        janitor_cli.add_arguments(parser)
        args = parser.parse_args([f"--project-id={PROJECT}", f"--location={LOCATION}", f"--cluster={CLUSTER}", *words])
        return janitor_cli.main(args, lambda _: self.janitor, self.scene.world.advance)

    @property
    def writes(self) -> list[str]:
        return [each for each in self.calls.trace if not each.startswith(("GET", "GKE get", "GKE list"))]


def forgotten(scene: Scene, name: str = "tpu-old", **changes: str | None) -> str:
    """Let a pool be there that an old run left."""
    labels = {POOL_RUN_LABEL: run_hash("old"), POOL_NAMESPACE_LABEL: NAMESPACE, POOL_WORKLOAD_LABEL: WORKLOAD}
    labels[POOL_EXPIRES_LABEL] = f"{scene.world.clock.now():.0f}"
    labels |= {key.replace("_", "-"): value for key, value in changes.items()}
    labels = {key: value for key, value in labels.items() if value is not None}
    config = container_v1.NodeConfig(machine_type="ct5lp-hightpu-8t", labels=labels)
    pool = container_v1.NodePool(name=name, initial_node_count=1, config=config, locations=["us-west4-a"])
    scene.world.gke.add_running_pool(pool)
    scene.world.advance(5.0)
    return name


def test_a_pool_that_nobody_speaks_for_is_told_first_and_deleted_only_when_asked(capsys):
    scene = Scene()
    name = forgotten(scene)
    broom = Broom(scene)
    assert broom.run() == 1
    told = capsys.readouterr().out
    assert name in told
    assert "goes" in told
    assert "no record, nothing runs on it" in told
    assert broom.writes == []
    assert broom.run("--delete") == 0
    assert name not in scene.pools()
    assert scene.pools() == {"default-pool", "h100-pool"}
    assert "gone" in capsys.readouterr().out
    assert broom.run() == 0
    assert capsys.readouterr().out == "no node pool carries the labels of a migration\n"


def test_the_pool_of_a_migrated_workload_is_never_touched_whatever_its_label_says():
    scene = Scene()
    assert scene.airflow().run().green
    (verdict,) = Broom(scene).sweep().values()
    assert verdict.state == STAYS
    assert verdict.why == "its migration is migrated: users are on it"
    assert verdict.expired_s > 0
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()


def test_users_whose_record_is_gone_keep_their_pool_for_their_pods_run_on_it():
    scene = Scene()
    assert scene.airflow().run().green
    scene.world.client.delete("configmaps", NAMESPACE, record_name(WORKLOAD))
    (verdict,) = Broom(scene).sweep().values()
    assert verdict.state == STAYS
    assert verdict.why.startswith(f"in use: {NAMESPACE}/{WORKLOAD}-tpu-")
    scene.assert_users_on_tpu()


def test_a_run_that_is_under_way_keeps_its_pool_even_past_its_time():
    scene = Scene()
    airflow = scene.airflow(calls=Calls())
    scene.when(lambda: len(scene.pools()) > 2, lambda: setattr(airflow.calls, "kill_at", airflow.calls.count + 1))
    with pytest.raises(Killed):
        airflow.run()
    (verdict,) = Broom(scene).look().values()
    assert (verdict.state, verdict.why) == (STAYS, "run run-1 is planned")
    (early,) = Broom(scene, later_s=0.0).look().values()
    assert early.state == STAYS
    assert early.why.startswith("its run may take until ")


@pytest.mark.parametrize(
    ("phase", "state"),
    [
        (Phase.HELD, STAYS),
        (Phase.COMMITTED, STAYS),
        (Phase.DECOMMISSIONING, STAYS),
        (Phase.FALLING_BACK, STAYS),
        (Phase.FALLEN_BACK, GOES),
        (Phase.REJECTED, GOES),
        (Phase.PROVEN, GOES),
    ],
)
def test_the_record_of_its_run_decides_by_its_phase(phase, state):
    scene = Scene()
    airflow = scene.airflow()
    airflow.ended["preflight"] = airflow._task("preflight")
    Records(scene.client("admin"), NAMESPACE, WORKLOAD).force(lambda record: replace(record, phase=phase))
    name = forgotten(scene, tpu_migration_run=run_hash("run-1"))
    assert Broom(scene).look()[name].state == state


def test_the_record_of_another_run_does_not_keep_an_old_runs_pool():
    scene = Scene()
    assert scene.airflow().run().green
    name = forgotten(scene)
    found = Broom(scene).sweep()
    assert found[name].state == GONE
    assert [each.state for each in found.values()].count(STAYS) == 1
    scene.assert_users_on_tpu()


def test_what_cannot_be_read_counts_as_needed(capsys):
    scene = Scene()
    damaged = {"name": record_name(WORKLOAD), "namespace": NAMESPACE}
    damaged["labels"] = {"tpu-migration/record": "true", "tpu-migration/workload": WORKLOAD}
    scene.world.client.create("configmaps", {"metadata": damaged, "data": {"record.json": "{"}})
    name = forgotten(scene)
    broom = Broom(scene)
    verdict = broom.sweep()[name]
    assert verdict.state == UNKNOWN
    assert "the record is damaged" in verdict.why
    assert broom.run("--delete", "--format=json") == 1
    assert json.loads(capsys.readouterr().out)[0]["state"] == UNKNOWN
    assert name in scene.pools()


@pytest.mark.parametrize("path", ["/configmaps", "/pods", "/nodes"])
def test_rights_that_are_missing_keep_a_pool_and_are_named(path):
    scene = Scene()
    name = forgotten(scene)
    send = scene.world.transport(lambda *_: None, lambda *_: None, "admin")

    def refusing(method, where, **more):
        return Response(403, b'{"message": "forbidden"}') if where.endswith(path) else send(method, where, **more)

    verdict = Broom(scene, transport=refusing).sweep()[name]
    assert verdict.state == UNKNOWN
    assert "grant the right" in verdict.why
    assert name in scene.pools()


def test_an_api_that_does_not_answer_ends_the_janitor_before_it_deletes():
    scene = Scene()
    forgotten(scene)

    def silent(method, path, **more):
        raise TransientError("no answer")

    with pytest.raises(TransientError):
        Broom(scene, transport=silent).sweep()
    assert "tpu-old" in scene.pools()


@pytest.mark.parametrize(
    "change",
    [{"tpu_migration_expires": "soon"}, {"tpu_migration_expires": None}, {"tpu_migration_namespace": None}],
    ids=["expires-soon", "no-expiry", "no-namespace"],
)
def test_labels_that_are_not_whole_keep_a_pool(change):
    scene = Scene()
    name = forgotten(scene, **change)
    verdict = Broom(scene).sweep()[name]
    assert verdict.state == UNKNOWN
    assert "its labels are not whole" in verdict.why


def test_a_pool_that_somebody_begins_to_use_before_its_turn_stays():
    scene = Scene()
    names = [forgotten(scene, "tpu-a"), forgotten(scene, "tpu-b")]
    broom = Broom(scene)
    node = next(n["metadata"]["name"] for n in scene.world.client.list("nodes") if "tpu-b" in n["metadata"]["name"])
    pod = {
        "metadata": {"name": "late", "namespace": NAMESPACE},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "busybox"}]},
    }
    scene.when(lambda: names[0] not in scene.pools(), lambda: scene.world.client.create("pods", pod))
    found = broom.sweep()
    assert found["tpu-a"].state == GONE
    assert (found["tpu-b"].state, found["tpu-b"].why) == (STAYS, f"in use: {NAMESPACE}/late")


def test_pools_without_our_labels_are_none_of_its_business():
    assert Broom(Scene()).look() == {}
