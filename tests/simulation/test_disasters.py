"""Disasters that were thought up or met once, each as a scene that must end well."""

from __future__ import annotations

import pytest

from sandbox.api.messages import ApiError
from sandbox.virtual_engine import EnginePod
from sandbox.workload import NAMESPACE, WORKLOAD
from tests.simulation.harness import Calls, Killed, Phase, Scene
from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.domain.routing import epoch_annotation
from tpu_migration.lease import DURATION_S
from tpu_migration.restore import restore

TARGET = f"{WORKLOAD}-tpu"


def engines(scene: Scene, *, tpu: bool) -> list[EnginePod]:
    return [pod for pod in scene.world.pods.values() if isinstance(pod, EnginePod) and pod.is_tpu is tpu]


def route_of(scene: Scene) -> dict:
    return scene.world.client.get("httproutes", NAMESPACE, WORKLOAD)


def test_a_source_that_flickers_in_mid_shift_gets_its_users_back_and_the_tpus_wait_for_that():
    scene = Scene()

    def blink():
        for engine in engines(scene, tpu=False):
            engine.started = scene.world.clock.now() - engine.boot_s + 8.0  # not Ready for eight seconds

    scene.when_percent(10, blink)
    scene.airflow().run()
    assert scene.record.phase is Phase.FALLEN_BACK
    scene.assert_users_on_gpu()
    scene.assert_nothing_left()


def test_a_restore_at_a_small_share_waits_for_the_gateway_before_the_tpu_pods_end():
    scene = Scene(steps=[2, 100])
    kube = Kubernetes(scene.world.transport(lambda *_: None, lambda *_: None))
    scene.when_percent(
        2, lambda: restore(kube, NAMESPACE, WORKLOAD, actor="ada", reason="odd", clock=scene.world.clock)
    )
    scene.airflow().run()
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()


def test_a_second_route_to_the_source_is_refused_because_its_users_would_be_left_behind():
    scene = Scene()
    other = route_of(scene)
    other["metadata"] = {"name": "other", "namespace": NAMESPACE}
    other["spec"]["rules"][0]["matches"] = [{"path": {"type": "PathPrefix", "value": "/internal"}}]
    scene.world.client.create("httproutes", other)
    airflow = scene.airflow(route=WORKLOAD).run()
    assert f"besides {WORKLOAD}, HTTPRoute other sends users to {WORKLOAD}" in airflow.reasons()


def test_a_webhook_that_lets_no_tpu_pod_in_is_named_when_the_wait_for_pods_ends():
    scene = Scene()

    def refuse(plural: str, obj: dict) -> None:
        if plural == "pods" and "vllm-tpu" in obj["spec"]["containers"][0]["image"]:
            raise ApiError(403, "Forbidden", "the team's quota is spent")

    scene.world.api.writer.admit = refuse
    airflow = scene.airflow().run()
    assert "no pod can be made: the team's quota is spent" in airflow.reasons()
    scene.assert_users_on_gpu()
    scene.assert_nothing_left()


def test_an_epoch_that_somebody_made_unreadable_blocks_no_restore():
    scene = Scene()

    def scribble():
        scene.world.client.patch(
            "httproutes", NAMESPACE, WORKLOAD, {"metadata": {"annotations": {epoch_annotation(WORKLOAD): "x"}}}
        )

    scene.when_percent(50, scribble)
    scene.airflow().run()
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()


def test_a_pool_that_appears_after_the_teardown_looked_is_deleted_too():
    scene = Scene()
    whole = Scene().airflow(calls=(calls := Calls()))
    whole.run()
    create = calls.trace.index("GKE create_node_pool") + 1
    airflow = scene.airflow(calls=Calls(kill_at=create))
    with pytest.raises(Killed):
        airflow.run()
    airflow.calls.kill_at = None
    late = airflow.current.context.pools._client  # the call that was under way, and lands late

    def land() -> None:
        spec = {"name": airflow.current.context.names.pool(), "initial_node_count": 2}
        spec |= {"config": {"machine_type": "ct5lp-hightpu-8t"}, "locations": ["us-west4-a"]}
        parent = f"{airflow.current.context.pools._cluster}"
        late.create_node_pool(request={"parent": parent, "node_pool": spec})

    soon = scene.world.clock.now() + 6.0
    scene.when(lambda: scene.world.clock.now() >= soon, land)
    airflow.ended["provision"] = airflow._task("restore")
    assert scene.record.phase is Phase.FALLEN_BACK
    scene.assert_nothing_left()


def test_killed_between_the_snapshot_and_the_record_the_route_is_left_alone():
    whole = Scene().airflow(calls=(calls := Calls()))
    whole.run()
    snapshot = next(i for i, call in enumerate(calls.trace) if call.startswith("POST") and call.endswith("/secrets"))
    scene = Scene()
    airflow = scene.airflow(calls=Calls(kill_at=snapshot + 1, after=True))
    with pytest.raises(Killed):
        airflow.run()
    airflow.calls.kill_at = None
    before = route_of(scene)
    airflow._task("restore")
    assert route_of(scene) == before
    second = scene.airflow("run-2").run()
    assert second.green, second.reasons()


def test_a_slow_hand_over_between_two_tasks_is_no_death():
    scene = Scene()
    airflow = scene.airflow()
    for name in ("preflight", "provision", "deploy", "warm_up", "gate"):
        airflow.ended[name] = airflow._task(name)
        scene.world.advance(3 * DURATION_S)
    airflow.run()
    assert airflow.green, airflow.reasons()
    assert scene.rescued == []


def test_time_in_which_nobody_watched_is_no_soak():
    scene = Scene(soak_s=200, guard=False)
    scene.guard_beats_on()
    airflow = scene.airflow(calls=Calls())
    scene.when_percent(100, lambda: setattr(airflow.calls, "kill_at", airflow.calls.count + 60))
    with pytest.raises(Killed):
        airflow.run()
    scene.world.advance(3600.0)
    airflow.calls.kill_at = None
    began = scene.world.clock.now()
    airflow.ended["shift"] = airflow._task("shift")
    assert scene.world.clock.now() - began >= 200


def test_a_target_that_is_changed_after_the_gate_is_left():
    scene = Scene(soak_s=600)

    def change():
        body = {"spec": {"template": {"metadata": {"annotations": {"rollout": "unmeasured"}}}}}
        scene.world.client.patch("deployments", NAMESPACE, TARGET, body)

    scene.when_percent(100, change)
    scene.airflow().run()
    assert scene.record.phase is Phase.FALLEN_BACK
    assert "is not the one that passed the gate any more" in scene.record.fallback.reason
    scene.assert_users_on_gpu()


def test_gpus_are_not_given_up_while_a_target_replica_is_missing():
    scene = Scene()
    airflow = scene.airflow()
    for name in ("preflight", "provision", "deploy", "warm_up", "gate", "shift"):
        airflow.ended[name] = airflow._task(name)
    engine = engines(scene, tpu=True)[0]
    engine.started = scene.world.clock.now() - engine.boot_s + 300.0  # restarts, and takes five minutes
    began = scene.world.clock.now()
    airflow.run()
    assert airflow.green, airflow.reasons()
    assert scene.world.clock.now() - began >= 300.0
    assert any("nothing is given up before all are" in each for each in airflow.said)


def test_a_rule_that_somebody_adds_in_mid_shift_stays():
    scene = Scene()
    rule = {
        "matches": [{"path": {"type": "Exact", "value": "/new"}}],
        "backendRefs": [{"name": WORKLOAD, "port": 8000, "weight": 0}],
    }

    def add():
        route = route_of(scene)
        route["spec"]["rules"].append(rule)
        scene.world.client.update("httproutes", route)

    scene.when_percent(10, add)
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    assert [each["matches"][0]["path"]["value"] for each in route_of(scene)["spec"]["rules"]] == ["/", "/new"]


def test_a_migrated_workload_whose_record_becomes_unreadable_is_left_where_it_is():
    scene = Scene()
    assert scene.airflow().run().green
    scene.world.client.patch(
        "configmaps", NAMESPACE, f"tpu-migration-{WORKLOAD}", {"data": {"record.json": '{"schema_version": 2}'}}
    )
    scene.world.advance(400.0)
    assert scene.rescued == []
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()


def test_an_autoscaler_that_sleeps_at_night_makes_the_peak_a_question_to_people():
    airflow = Scene(source_peak_replicas=0).airflow().run()
    assert "its autoscaler may take it to 4: give source_peak_replicas" in airflow.reasons()


def test_a_guard_that_is_away_for_a_while_holds_the_commit_and_sends_nobody_home():
    scene = Scene(soak_s=60, guard=False)
    beats = scene.guard_beats_on()
    away: list[float] = []

    def leave() -> None:
        scene.world.on_tick.remove(beats)
        away.append(scene.world.clock.now())

    scene.when_percent(100, leave)
    scene.when(
        lambda: bool(away) and scene.world.clock.now() > away[0] + 300.0,
        lambda: scene.world.on_tick.append(beats),
    )
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    assert any("soaking, held: the guard" in each for each in airflow.said)
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()


def test_a_target_whose_log_is_silent_proves_nothing(monkeypatch):
    monkeypatch.setattr(EnginePod, "log", lambda self: [])
    airflow = Scene().airflow().run()
    assert "tells of no compiled program" in airflow.reasons()
    assert not airflow.green


def test_a_tpu_that_gives_other_answers_never_gets_a_user():
    scene = Scene(policy="chat", peak_rps=40)
    scene.world.faults.set("wrong-answers")
    airflow = scene.airflow().run()
    assert "positions with another likeliest token" in airflow.reasons()
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()
    scene.assert_nothing_left()


def test_clients_that_need_what_the_tpu_loses_stay_on_the_gpu():
    scene = Scene(policy="chat", peak_rps=40, client_features=["seed"])
    assert "clients need seed (refused)" in scene.airflow().run().reasons()
    scene.assert_users_on_gpu()
