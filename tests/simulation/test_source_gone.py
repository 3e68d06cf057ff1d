"""The way back may go while users are on it, or lose a rule to other hands: users go to whoever serves."""

from __future__ import annotations

from sandbox.virtual_traffic import Traffic
from sandbox.workload import NAMESPACE, WORKLOAD
from tests.simulation.harness import Phase, Scene
from tests.simulation.test_half_a_source import HalfGone, cordon, end_replicas
from tests.simulation.witness import TARGET
from tpu_migration.drift import drifts

FOLLOWS_S = 45.0  # a pod that is gone, a look, and the Gateway


class Gone(HalfGone):
    """A source of which the second replica goes, too, once half of the users stay on the target."""

    def __init__(self, **plan):
        super().__init__(**plan)
        self.wiped_at = 0.0
        self.meanwhile(self.wipe)

    def wipe(self):
        self.wiped_at = self.world.clock.now()
        end_replicas(self.world)

    def assert_all_were_served(self):
        hurt = [each for each in self.world.traffic.violations if each.at > self.wiped_at + FOLLOWS_S]
        assert not hurt, hurt[:3]
        assert (0, 100) in self.seen
        assert self.seen[-1] == (2, 0)


def test_all_go_to_the_target_when_the_rest_of_the_source_goes_and_home_when_it_is_back():
    gone = Gone()
    gone.scene.airflow().run()
    gone.assert_all_were_served()
    gone.scene.assert_users_on_gpu()
    gone.scene.assert_nothing_left()


def test_with_airflow_dead_the_guard_does_so():
    gone = Gone(guards=2)
    gone.left_dead()
    # As long as a lease, the margin of a guard and its look, nobody can know.
    late = [each for each in gone.world.traffic.violations if each.at > gone.wiped_at + 80.0 + FOLLOWS_S]
    assert not late, late[:3]
    assert gone.seen[-1] == (2, 0)


def test_a_tpu_is_kept_when_the_source_goes_after_everybody_went_home():
    scene = Scene(steps=[50, 100], bake_s=60, soak_s=120)
    world, wiped = scene.world, []

    def take_the_source():
        cordon(world, True)
        end_replicas(world)
        wiped.append(world.clock.now())

    def edit():
        route = world.client.get("httproutes", NAMESPACE, WORKLOAD)
        for rule in route["spec"]["rules"]:
            for each in rule["backendRefs"]:
                each["weight"] = 61 if each["name"] == TARGET else 39
        world.client.update("httproutes", route)
        gone_at = world.clock.now() + 12
        scene.when(lambda: world.clock.now() >= gone_at, take_the_source)

    scene.when_percent(100, edit)
    scene.airflow().run()
    late = [each for each in world.traffic.violations if each.at > wiped[0] + FOLLOWS_S]
    assert not late, late[:3]
    assert scene.weights()[TARGET] == 100
    assert len(world.traffic.ready_engines(TARGET)) == 2
    assert scene.record.phase is Phase.FALLING_BACK


def _send_a_rule_to_the_source(scene, *, added):
    route = scene.world.client.get("httproutes", NAMESPACE, WORKLOAD)
    if added:
        ref = {"name": WORKLOAD, "port": route["spec"]["rules"][0]["backendRefs"][0]["port"]}
        matches = [{"path": {"type": "PathPrefix", "value": "/batch"}}]
        route["spec"]["rules"].append({"matches": matches, "backendRefs": [ref]})
    else:
        for ref in route["spec"]["rules"][1]["backendRefs"]:
            ref["weight"] = int(ref["name"] == WORKLOAD)
    scene.world.client.update("httproutes", route)


def test_a_rule_of_the_route_that_somebody_gives_back_to_the_source_is_a_breach():
    scene = Scene(soak_s=120)
    route = scene.world.client.get("httproutes", NAMESPACE, WORKLOAD)
    matches = [{"path": {"type": "PathPrefix", "value": "/v1/embeddings"}}]
    route["spec"]["rules"].append({**route["spec"]["rules"][0], "matches": matches})
    scene.world.client.update("httproutes", route)
    scene.world.advance(30)
    scene.when_percent(100, lambda: _send_a_rule_to_the_source(scene, added=False))
    airflow = scene.airflow().run()
    assert "gives the target 0 to 100 %, by its rules," in airflow.reasons()
    assert scene.record.phase is Phase.FALLEN_BACK


def test_gpus_stay_while_a_rule_that_came_later_sends_users_to_them_and_the_drift_is_told():
    scene = Scene(soak_s=120)
    scene.when_percent(100, lambda: _send_a_rule_to_the_source(scene, added=True))
    airflow = scene.airflow().run()
    assert f"still sends users to {WORKLOAD}: point it at {TARGET} first" in airflow.reasons()
    assert "h100-pool" in scene.pools()
    assert len(scene.world.traffic.ready_engines(WORKLOAD)) == 2
    assert any("has a rule that still sends users" in each for each in drifts(scene.client("admin"), scene.record))


def test_gpus_stay_while_users_are_not_answered_on_their_own_way(monkeypatch):
    scene, fails = Scene(), []
    send = Traffic.send

    def refused_on_the_target(traffic, backends, seconds):
        if fails and TARGET in backends:
            return "the load balancer answers 502 for the target"
        return send(traffic, backends, seconds)

    monkeypatch.setattr(Traffic, "send", refused_on_the_target)
    scene.when(lambda: scene.weights().get(WORKLOAD) == 0 and _phase(scene) is Phase.COMMITTED, lambda: fails.append(1))
    airflow = scene.airflow().run()
    assert "no answers on the users' way (503), for 5 minutes: nothing more is given up" in airflow.reasons()
    assert scene.record.source_capacity == 2, "it may have to serve yet"
    assert "h100-pool" in scene.pools()
    assert len(scene.world.traffic.ready_engines(WORKLOAD)) == 2


def _phase(scene):
    entry = scene.world.api.store.get("configmaps", NAMESPACE, f"tpu-migration-{WORKLOAD}")
    return Phase(entry.obj["data"]["phase"]) if entry else None


def test_an_hpa_whose_minimum_somebody_lowered_is_raised_once_more_so_that_all_can_come_home():
    scene = Scene(steps=[50, 100], bake_s=60, soak_s=300)
    world = scene.world
    (hpa,) = world.client.list("horizontalpodautoscalers", NAMESPACE)

    def lower():
        world.client.patch("horizontalpodautoscalers", NAMESPACE, hpa["metadata"]["name"], {"spec": {"minReplicas": 1}})
        world.client.patch("deployments", NAMESPACE, WORKLOAD, {"spec": {"replicas": 1}})

    scene.when_percent(100, lower)
    airflow = scene.airflow().run()
    assert "1 of the source's 2 replicas are ready and carry 50 %" in airflow.reasons()
    scene.assert_users_on_gpu()
    scene.assert_nothing_left()
