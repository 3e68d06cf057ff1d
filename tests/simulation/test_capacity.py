"""Get TPUs where the first offer has none: every attempt is told, and none leaves anything behind."""

from __future__ import annotations

import pytest

from tests.simulation.harness import Calls, Killed, Phase, Scene
from tpu_migration.stages.base import Failed

TWO = ("on-demand@us-west4-a=1200", "spot@us-west4-b")


def scene_with(*offers: str, **more):
    return Scene(capacity_plan=list(offers), capacity_budget_s=7200, **more)


def test_a_stockout_in_the_first_zone_is_cleared_away_and_the_second_carries_the_migration():
    scene = scene_with(*TWO)
    scene.world.faults.set("stockout", {"zone": "us-west4-a"})
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    first, second = scene.record.attempts
    assert (first.offer, second.offer) == ("on-demand in us-west4-a", "spot in us-west4-b")
    assert "not ready after 12" in first.error
    assert first.ended
    assert not second.error
    assert scene.record.phase is Phase.MIGRATED
    assert scene.record.pool == second.pool
    assert scene.pools() == {"default-pool", second.pool}
    scene.assert_nobody_noticed()


@pytest.mark.parametrize("fault", ["stockout", "late-stockout", "quota", "pool-stuck"])
def test_when_every_offer_fails_each_is_told_and_nothing_is_left(fault):
    scene = scene_with(*TWO)
    scene.world.faults.set(fault, {})
    airflow = scene.airflow().run()
    failed = airflow.ended["provision"]
    assert isinstance(failed, Failed)
    for each in ("on-demand in us-west4-a", "spot in us-west4-b", "`capacity_plan`"):
        assert each in failed.reason
    assert all(each.error and each.ended for each in scene.record.attempts)
    scene.world.advance(300.0)
    scene.assert_nothing_left()
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()


def test_what_the_total_budget_left_untried_is_named():
    scene = Scene(capacity_plan=["on-demand@us-west4-a=900", "spot@us-west4-b"], capacity_budget_s=600)
    scene.world.faults.set("pool-stuck", {})
    failed = scene.airflow().run().ended["provision"]
    assert isinstance(failed, Failed)
    assert "Not tried: spot in us-west4-b" in failed.reason


def test_an_existing_pool_is_used_and_never_deleted():
    scene = Scene(tpu_pool="our-tpus", stop_after="gate")
    core = scene.world.gke
    from google.cloud import container_v1

    config = container_v1.NodeConfig(machine_type="ct5lp-hightpu-8t")
    core.add_running_pool(
        container_v1.NodePool(name="our-tpus", initial_node_count=2, config=config, locations=["us-west4-a"])
    )
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    assert scene.record.attempts == ()
    assert "our-tpus" in scene.pools()


@pytest.mark.parametrize(
    ("pool", "told"), [("none-such", "the cluster has no such node pool"), ("h100-pool", "its machine type is a3")]
)
def test_an_existing_pool_that_will_not_do_is_refused(pool, told):
    failed = Scene(tpu_pool=pool).airflow().run().ended["provision"]
    assert isinstance(failed, Failed)
    assert told in failed.reason


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_call_to_gke_and_run_again_it_makes_exactly_one_pool(after):
    scene = scene_with(*TWO)
    scene.world.faults.set("quota", {"capacity": "on-demand"})
    calls = Calls()
    scene.airflow(calls=calls).run()
    at = [number for number, each in enumerate(calls.trace, 1) if each.startswith("GKE") and "cluster" not in each]
    forward = [number for number in at if calls.trace[number - 1] != "GKE delete_node_pool"] or at
    seen: set[str] = set()
    for number in forward:
        what = calls.trace[number - 1]
        if what in seen and "create" not in what:  # one of each polling call, and every create
            continue
        seen.add(what)
        scene = scene_with(*TWO)
        scene.world.faults.set("quota", {"capacity": "on-demand"})
        killed = scene.airflow(calls=Calls(kill_at=number, after=after))
        with pytest.raises(Killed):
            killed.run()
        again = scene.goes_on(killed)
        assert again.green, (what, again.reasons())
        assert scene.pools() == {"default-pool", scene.record.pool}, what
        scene.assert_nobody_noticed()
