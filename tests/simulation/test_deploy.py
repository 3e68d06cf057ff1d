"""deploy_all beside live GPUs and back: it moves nobody to TPU, and makes one pool however often it dies."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest

from sandbox.workload import NAMESPACE, WORKLOAD
from tests.simulation.deploying import (
    TPU,
    backends,
    calls_of,
    deploy,
    tpu_pools,
)
from tests.simulation.harness import Calls, Killed, Scene
from tpu_migration.domain.phases import Phase
from tpu_migration.domain.plan import Plan
from tpu_migration.lease import Holder, Lease
from tpu_migration.records import Records


def test_beside_live_gpus_the_tpu_gets_warm_and_no_user_is_moved(capsys):
    scene = Scene()
    assert deploy(scene) == 0
    told = capsys.readouterr().out
    assert "warm beside the GPUs; no user was moved" in told
    (line,) = [each for each in told.splitlines() if "airflow dags trigger" in each]
    *command, conf = shlex.split(line)
    assert command == ["airflow", "dags", "trigger", "tpu_migration", "--conf"]
    assert Plan.from_params(json.loads(conf)).hash == scene.record.plan_hash
    assert scene.record.phase is Phase.HELD
    assert backends(scene).get(TPU, 0) == 0
    assert len(scene.world.traffic.ready_engines(TPU)) == 2
    scene.world.advance(3600.0, tick_s=5.0)  # the guard lets it be
    assert len(scene.world.traffic.ready_engines(TPU)) == 2
    scene.assert_nobody_noticed()


def test_a_migration_may_follow_at_once_and_makes_a_target_of_its_own():
    scene = Scene()
    assert deploy(scene) == 0
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()
    assert len(tpu_pools(scene)) == 1


def test_a_migration_that_is_refused_leaves_what_stands_warm(capsys):
    scene = Scene()
    assert deploy(scene) == 0
    refused = scene.airflow(peak_rps=0).run()
    assert "peak_rps" in refused.reasons()
    assert scene.record.phase is Phase.HELD
    assert len(scene.world.traffic.ready_engines(TPU)) == 2


def test_a_target_that_the_gate_could_not_decide_on_is_never_taken_for_one_that_only_was_made_warm():
    scene = Scene()
    assert deploy(scene) == 0
    Records(scene.client("admin"), NAMESPACE, WORKLOAD).force(
        lambda record: replace(record, verdict={"outcome": "inconclusive", "sentence": "too few requests"})
    )
    refused = scene.airflow().run()
    assert "held for a closer look" in refused.reasons()
    assert scene.record.phase is Phase.HELD


def test_what_it_made_warm_is_taken_back_and_a_migration_may_follow():
    scene = Scene()
    assert deploy(scene) == 0
    assert deploy(scene, "--accelerator", "gpu") == 0
    assert scene.record.phase is Phase.FALLEN_BACK
    scene.assert_users_on_gpu()
    scene.assert_nothing_left()
    assert scene.airflow().run().green
    scene.assert_nobody_noticed()


def test_a_second_call_finds_what_stands_and_makes_nothing():
    scene = Scene()
    assert deploy(scene) == 0
    pools = scene.pools()
    assert deploy(scene) == 0
    assert scene.pools() == pools


@pytest.mark.parametrize("part", range(1, 12))
def test_a_terminal_that_is_closed_in_mid_run_makes_one_pool_in_all(part):
    scene = Scene()
    with pytest.raises(Killed):
        deploy(scene, calls=Calls(kill_at=calls_of(Scene) * part // 12, after=bool(part % 2)))
    assert deploy(scene) == 0
    assert len(tpu_pools(scene)) == 1
    assert len(scene.world.traffic.ready_engines(TPU)) == 2
    scene.assert_nobody_noticed()


def test_ctrl_c_gives_the_lease_back_and_says_what_stands(capsys):
    scene = Scene()

    def interrupt():
        if tpu_pools(scene):
            raise KeyboardInterrupt

    assert deploy(scene, during=interrupt) == 1
    told = capsys.readouterr().err
    assert f"node pool {tpu_pools(scene)[0]}" in told
    assert "is planned; the guard takes the TPU pods away" in told
    assert "The same command goes on" in told
    lease = Lease(scene.client("admin"), NAMESPACE, WORKLOAD, Holder("x", "y"), scene.world.clock)
    assert lease.look().holder is None
    before = scene.world.clock.now()
    assert deploy(scene, "--accelerator=gpu") == 0
    assert scene.world.clock.now() - before < 1800
    scene.assert_users_on_gpu()
    scene.assert_nothing_left()


def test_a_stage_that_fails_gives_the_tpus_back(capsys):
    scene = Scene()
    scene.world.faults.set("quota")
    assert deploy(scene) == 1
    assert "provision failed" in capsys.readouterr().out
    scene.assert_users_on_gpu()
    scene.assert_nothing_left()


@pytest.mark.parametrize("words", [(), ("--accelerator=gpu",)])
def test_a_run_that_lives_is_named_and_nothing_is_touched(words, capsys):
    scene = Scene()
    airflow = scene.airflow()
    for stage in ("preflight", "provision"):
        airflow._task(stage)
    lease = Lease(scene.client("admin"), NAMESPACE, WORKLOAD, Holder("run-1", "deploy"), scene.world.clock)
    lease.acquire()
    pools = scene.pools()
    assert deploy(scene, *words, during=lease.renew_if_due) == 1
    assert "run run-1" in capsys.readouterr().out
    assert (scene.record.run_id, scene.record.phase, scene.pools()) == ("run-1", Phase.PROVISIONED, pools)


@pytest.mark.parametrize("words", [(), ("--accelerator=gpu",)])
def test_another_terminal_that_works_on_it_is_not_disturbed(words, capsys):
    scene = Scene()
    with pytest.raises(Killed):
        deploy(scene, calls=Calls(kill_at=120))
    holder = Lease(scene.client("admin"), NAMESPACE, WORKLOAD, Holder(scene.record.run_id, "x"), scene.world.clock)
    holder.acquire()
    phase = scene.record.phase
    assert deploy(scene, *words, during=holder.renew_if_due) == 1
    assert f"worked on by run {scene.record.run_id}" in capsys.readouterr().out
    assert scene.record.phase is phase


def test_a_migration_whose_airflow_died_is_taken_back():
    scene = Scene()
    with pytest.raises(Killed):
        scene.airflow(calls=Calls(kill_at=400)).run()
    assert deploy(scene, "--accelerator=gpu") == 0
    assert scene.record.phase is Phase.FALLEN_BACK
    scene.assert_users_on_gpu()
    scene.assert_nothing_left()
    scene.assert_nobody_noticed()


@pytest.mark.parametrize("release", ["keep", "scale-to-zero", "delete-pool"])
def test_after_the_commit_gpus_are_made_whole_before_users_come_back(release):
    scene = Scene(source_release=release)
    assert scene.airflow().run().green
    seen = []
    scene.when(
        lambda: scene.weights().get(WORKLOAD, 0) > 0,
        lambda: seen.append(len(scene.world.traffic.ready_engines(WORKLOAD))),
    )
    assert deploy(scene, "--accelerator=gpu") == 0
    assert seen == [2]
    assert scene.record.phase is Phase.FALLEN_BACK
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()
    assert tpu_pools(scene) == []
    assert scene.leftovers() == []
    again = scene.airflow("run-2").run()
    assert again.green, again.reasons()
    scene.assert_nobody_noticed()


def migrated() -> Scene:
    scene = Scene(source_release="delete-pool")
    assert scene.airflow().run().green
    return scene


@pytest.mark.parametrize("part", range(1, 9))
def test_a_way_back_that_is_cut_off_anywhere_is_finished_by_the_same_command(part):
    scene = migrated()
    with pytest.raises(Killed):
        deploy(scene, "--accelerator=gpu", calls=Calls(kill_at=calls_of(migrated, "--accelerator=gpu") * part // 9))
    scene.assert_nobody_noticed()
    assert deploy(scene, "--accelerator=gpu") == 0
    assert scene.record.phase is Phase.FALLEN_BACK
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()
    assert len(scene.pools()) == 2


def test_gpus_that_never_come_leave_users_on_the_tpu(capsys):
    scene = Scene(source_release="delete-pool")
    assert scene.airflow().run().green
    scene.world.faults.set("stockout", {"machine": "a3"})
    assert deploy(scene, "--accelerator=gpu") == 1
    assert "way_back failed: node pool vllm-gemma3-27b-h100" in capsys.readouterr().out
    assert scene.record.phase is Phase.MIGRATED
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()
    scene.world.faults.clear()
    assert deploy(scene, "--accelerator=gpu") == 0
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()


def test_machines_on_which_the_source_would_never_start_are_refused_before_anything_is_made(capsys):
    scene = Scene(source_release="delete-pool")
    assert scene.airflow().run().green
    pools = scene.pools()
    assert deploy(scene, "--accelerator=gpu", "--profile=legacy_gpu") == 1
    assert "want 1 nvidia-h100-80gb each" in capsys.readouterr().out
    assert scene.pools() == pools
    scene.assert_users_on_tpu()
