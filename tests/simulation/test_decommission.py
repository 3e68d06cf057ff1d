"""GPUs are given up only when people let them go and nobody needs them; what brings them back is kept."""

from __future__ import annotations

import pytest

from sandbox.virtual_engine import EnginePod
from sandbox.workload import NAMESPACE, WORKLOAD
from tests.simulation.harness import Airflow, Calls, Killed, Phase, Scene
from tpu_migration.answers import answer
from tpu_migration.clients.kubernetes import DEPLOYMENTS, PDBS, Kubernetes
from tpu_migration.clients.vllm import Vllm
from tpu_migration.errors import PermanentError
from tpu_migration.restore import restore
from tpu_migration.stages import decommission
from tpu_migration.stages.approval import DECOMMISSION, SHIFT

TARGET = f"{WORKLOAD}-tpu"
HOUR_S = 3600.0


def say(scene: Scene, what: str, *, approved: bool, by: str = "Ada in Airflow", reason: str = "") -> None:
    answer(
        scene.client("admin"), NAMESPACE, WORKLOAD, what,
        approved=approved, by=by, reason=reason, clock=scene.world.clock,
    )  # fmt: skip


def asked(scene: Scene, what: str) -> bool:
    """Tell whether people are being asked right now."""
    entry = scene.world.api.store.get("configmaps", NAMESPACE, f"tpu-migration-{WORKLOAD}")
    return bool(entry) and scene.record.approval(what) is not None


def later(scene: Scene, what: str, seconds: float, act) -> None:
    """Do something so long after people were asked."""
    began: list[float] = []

    def due() -> bool:
        if not began and asked(scene, what):
            began.append(scene.world.clock.now())
        return bool(began) and scene.world.clock.now() >= began[0] + seconds

    scene.when(due, act)


def gpus(scene: Scene) -> int:
    return len(scene.world.traffic.ready_engines(WORKLOAD))


# ---------------------------------------------------------------------------------- approvals


def test_nothing_is_given_up_before_people_have_said_yes():
    scene = Scene(approvals=[DECOMMISSION])
    seen: list[int] = []

    def approve() -> None:
        seen.append(gpus(scene))
        assert scene.record.phase is Phase.COMMITTED
        assert "tpu-migration approve" in scene.record.waiting
        say(scene, DECOMMISSION, approved=True)

    later(scene, DECOMMISSION, 6 * HOUR_S, approve)
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    assert seen == [2], "the GPUs stand for as long as people think"
    assert scene.record.phase is Phase.MIGRATED
    assert "h100-pool" not in scene.pools()
    assert airflow.ended["restore"].result["decommission"] == "approved by Ada in Airflow"
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()


def test_a_no_keeps_the_gpus_and_ends_green():
    scene = Scene(approvals=[DECOMMISSION])
    later(scene, DECOMMISSION, 60.0, lambda: say(scene, DECOMMISSION, approved=False, reason="peak on Friday"))
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    assert scene.record.phase is Phase.MIGRATED
    kept = airflow.ended["decommission"].result["source"]
    assert kept == "kept, and scaled by its own HPA again (rejected by Ada in Airflow: peak on Friday)"
    assert gpus(scene) == 2
    assert "h100-pool" in scene.pools()
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()


def test_silence_is_a_no():
    scene = Scene(approvals=[DECOMMISSION], approval_timeout_s=2 * HOUR_S)
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    said = scene.record.approval(DECOMMISSION)
    assert (said.approved, said.by, said.reason) == (False, "nobody", "no answer within 2 hours")
    assert said.answered - said.asked == pytest.approx(2 * HOUR_S, abs=10.0)
    assert gpus(scene) == 2


def test_gpus_that_are_kept_need_no_word():
    scene = Scene(approvals=[DECOMMISSION], source_release="keep")
    assert scene.airflow().run().green
    assert scene.record.approvals == ()


def test_users_do_not_move_before_people_have_said_yes():
    scene = Scene(approvals=[SHIFT])

    def approve() -> None:
        assert scene.weights().get(TARGET, 0) == 0
        say(scene, SHIFT, approved=True)

    later(scene, SHIFT, HOUR_S, approve)
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    assert scene.record.phase is Phase.MIGRATED
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()


def test_a_no_to_the_shift_releases_the_tpu_and_ends_green():
    scene = Scene(approvals=[SHIFT, DECOMMISSION])
    later(scene, SHIFT, 60.0, lambda: say(scene, SHIFT, approved=False))
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    assert scene.record.phase is Phase.REJECTED
    assert airflow.ended["restore"].result["shift"] == "rejected by Ada in Airflow"
    assert "rejected the shift" in airflow.ended["decommission"].result["skipped"]
    scene.assert_users_on_gpu()
    scene.assert_nothing_left()
    scene.assert_nobody_noticed()
    again = scene.airflow("run-2", approvals=[]).run()
    assert again.green, again.reasons()
    assert scene.record.run_id == "run-2", "a rejected migration can be begun again"


def test_the_first_answer_counts_and_a_later_one_hears_so():
    scene = Scene(approvals=[DECOMMISSION])
    heard: list[str] = []

    def both() -> None:
        say(scene, DECOMMISSION, approved=False, by="Ada")
        with pytest.raises(PermanentError) as refused:
            say(scene, DECOMMISSION, approved=True, by="Bob")
        heard.append(str(refused.value))

    later(scene, DECOMMISSION, 30.0, both)
    scene.airflow().run()
    assert heard == [f"decommission of {WORKLOAD} is rejected by Ada already"]
    assert gpus(scene) == 2


@pytest.mark.parametrize("what", [SHIFT, DECOMMISSION])
@pytest.mark.parametrize("when", [5.0, 90.0])
def test_killed_while_people_think_it_asks_once_and_goes_on(what, when):
    scene = Scene(approvals=[SHIFT, DECOMMISSION])
    calls = Calls()
    other = DECOMMISSION if what == SHIFT else SHIFT
    later(scene, other, 1.0, lambda: say(scene, other, approved=True))
    later(scene, what, when, lambda: setattr(calls, "kill_at", calls.count + 1))
    killed = scene.airflow(calls=calls)
    with pytest.raises(Killed):
        killed.run()
    first = scene.record.approval(what)
    scene.world.advance(12.0)
    later(scene, what, when + 60.0, lambda: say(scene, what, approved=True))
    again = scene.goes_on(killed)
    assert again.green, again.reasons()
    assert scene.record.approval(what).asked == first.asked, "the time for an answer does not begin anew"
    scene.assert_nobody_noticed()


def test_tpus_that_die_while_people_think_send_users_back_to_the_gpus_that_still_stand():
    scene = Scene(approvals=[DECOMMISSION])

    def kill_tpus() -> None:
        none = {"spec": {"replicas": 0}}
        scene.world.client.patch("deployments", NAMESPACE, TARGET, none, subresource="scale")

    later(scene, DECOMMISSION, HOUR_S, kill_tpus)
    airflow = scene.airflow().run()
    assert not airflow.green
    assert "nothing is given up" in airflow.ended["decommission"].reason
    assert gpus(scene) == 2
    scene.world.advance(30.0)
    assert scene.weights().get(TARGET, 0) == 0
    assert scene.weights()[WORKLOAD] > 0


# ----------------------------------------------------------------------------------- refusals


def ended(scene: Scene) -> Airflow:
    airflow = scene.airflow().run()
    assert gpus(scene) == 2, "nothing was given up"
    assert "h100-pool" in scene.pools()
    return airflow


def test_a_target_without_a_disruption_budget_keeps_the_gpus():
    scene = Scene()

    def delete() -> None:
        kube = scene.client("admin")
        for each in kube.list(PDBS, NAMESPACE):
            if each["metadata"]["name"].startswith(TARGET):
                kube.delete(PDBS, each["metadata"]["name"], NAMESPACE)

    scene.when(lambda: scene.world.traffic.weights().get(WORKLOAD, 1) == 0, delete)
    airflow = ended(scene)
    assert "no PodDisruptionBudget covers the pods of" in airflow.ended["decommission"].reason
    assert scene.record.source_capacity == 2


def test_a_target_that_is_ready_and_answers_nothing_keeps_the_gpus(monkeypatch):
    class Silent(Vllm):
        def complete(self, *_):
            return 0

    monkeypatch.setattr(decommission, "Vllm", Silent)
    airflow = ended(Scene())
    assert "is ready and completes nothing" in airflow.ended["decommission"].reason


def test_another_program_on_the_gpus_node_pool_keeps_it_and_is_named():
    scene = Scene()
    node = next(
        each["metadata"]["name"]
        for each in scene.world.client.list("nodes")
        if each["metadata"]["labels"]["cloud.google.com/gke-nodepool"] == "h100-pool"
    )
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "batch-job", "namespace": NAMESPACE},
        "spec": {"nodeName": node, "containers": [{"name": "train", "image": "train:1"}]},
    }  # fmt: skip
    scene.world.client.create("pods", pod)
    airflow = scene.airflow().run()
    assert f"node pool h100-pool is kept: {NAMESPACE}/batch-job run on it" in airflow.ended["decommission"].reason
    assert "h100-pool" in scene.pools()
    scene.assert_users_on_tpu()
    scene.assert_nobody_noticed()


# ------------------------------------------------------------------------------- the way back


@pytest.mark.parametrize("release", ["keep", "scale-to-zero", "delete-pool"])
def test_the_way_back_is_written_down_as_commands_before_anything_goes(release):
    scene = Scene(source_release=release)
    airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    back = scene.record.way_back
    assert back[-1] == (
        "tpu-migration deploy --accelerator gpu --project-id sandbox-project --location us-west4 --cluster sandbox "
        f"--namespace {NAMESPACE} --workload {WORKLOAD}"
    )
    result = airflow.ended["decommission"].result
    assert result["way_back"] == list(back)
    assert "may not be there again" in result["mind"]
    if release == "delete-pool":
        assert back[0].startswith("gcloud container node-pools create h100-pool --project=sandbox-project")
        assert "--machine-type=a3-highgpu-1g --num-nodes=2 --node-locations=us-west4-a" in back[0]
    else:
        assert len(back) == 1


# -------------------------------------------------------------------------- after a fall-back


def test_what_the_target_said_last_is_kept_before_it_is_released():
    scene = Scene()
    scene.world.faults.set("slow-tpu")
    airflow = scene.airflow().run()
    assert not airflow.green
    scene.assert_nothing_left()
    kept = scene.world.client.get("configmaps", NAMESPACE, f"tpu-migration-{WORKLOAD}-diagnostics")
    data = kept["data"]
    assert data["run"] == "run-1"
    assert "TPOT" in data["why"]
    assert TARGET in data["pods"]
    assert "google.com/tpu" in data["nodes"]
    assert any(key.startswith("log.") and "Finished XLA compilation" in text for key, text in data.items())
    assert any(key.startswith("metrics.") and "vllm:" in text for key, text in data.items())
    assert f"ConfigMap tpu-migration-{WORKLOAD}-diagnostics" in airflow.ended["restore"].reason


def test_diagnostics_that_cannot_be_written_hold_up_nothing(monkeypatch):
    scene = Scene()
    scene.world.faults.set("slow-tpu")
    create = Kubernetes.create

    def refuse(self, obj, **more):
        if obj["metadata"]["name"].endswith("-diagnostics"):
            raise PermanentError("configmaps is forbidden")
        return create(self, obj, **more)

    monkeypatch.setattr(Kubernetes, "create", refuse)
    scene.airflow().run()
    assert scene.record.phase is Phase.FALLEN_BACK
    scene.assert_users_on_gpu()
    scene.assert_nothing_left()


def test_tpus_are_kept_for_a_diagnosis_where_the_plan_says_so_and_a_later_run_ends_them():
    scene = Scene(on_fallback="keep")
    scene.world.faults.set("slow-tpu")
    airflow = scene.airflow().run()
    assert not airflow.green
    assert scene.record.phase is Phase.HELD
    reason = airflow.ended["restore"].reason
    assert "The TPU is kept, as the plan says" in reason
    assert scene.record.pool in reason
    assert scene.client("admin").get(DEPLOYMENTS, TARGET, NAMESPACE)["spec"]["replicas"] == 2
    assert scene.record.pool in scene.pools()
    assert any(isinstance(pod, EnginePod) and pod.is_tpu for pod in scene.world.pods.values())
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()

    restore(scene.client("admin"), NAMESPACE, WORKLOAD, actor="a person", reason="seen enough", clock=scene.world.clock)
    scene.world.faults.clear("slow-tpu")
    scene.world.advance(90.0)
    second = scene.airflow("run-2").run()
    assert second.green, second.reasons()
    scene.assert_users_on_tpu()
    assert len([pool for pool in scene.pools() if pool.startswith("tpu-")]) == 1
