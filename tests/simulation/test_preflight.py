"""Preflight on a live workload: what stops it stops it before anything is made, and secrets stay where they are."""

from __future__ import annotations

import argparse
import json
import logging

import pytest

from sandbox.workload import NAMESPACE, WORKLOAD
from sandbox.world import CLUSTER, LOCATION, PROJECT
from tests.simulation.harness import Calls, Scene
from tpu_migration import preflight_cli
from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.clients.prometheus import Peak
from tpu_migration.clients.transport import Response
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.names import record_name
from tpu_migration.stages.base import Done, Failed

PLANTED = "hf_plantedPLANTEDplanted"


def own(scene: Scene, resource: str) -> None:
    """Let Argo CD own an object."""
    body = {"metadata": {"annotations": {"argocd.argoproj.io/tracking-id": f"llm:{resource}"}}}
    scene.world.client.patch(resource, NAMESPACE, WORKLOAD, body)


def assert_nothing_was_made(scene: Scene) -> None:
    assert scene.world.client.get("configmaps", NAMESPACE, record_name(WORKLOAD)) is None
    scene.assert_nothing_left()
    scene.assert_nobody_noticed()


def test_every_blocker_and_its_remedy_is_told_at_once_before_anything_is_made():
    scene = Scene(source_release="delete-pool")
    for resource in ("httproutes", "deployments"):
        own(scene, resource)
    scene.world.client.delete("secrets", NAMESPACE, "huggingface")
    airflow = scene.airflow()
    outcome = airflow._task("preflight")
    assert isinstance(outcome, Failed)
    for part in (
        f"HTTPRoute {WORKLOAD}: Argo CD owns it",
        "route_owner_consents",
        f"Deployment {WORKLOAD}: Argo CD owns it",
        "source_release=keep",
        "Secret huggingface",
        "does not exist",
    ):
        assert part in outcome.reason
    assert_nothing_was_made(scene)


def test_a_route_whose_owner_lets_weights_be_is_migrated():
    scene = Scene(source_release="keep", route_owner_consents=True)
    own(scene, "httproutes")
    assert isinstance(scene.airflow()._task("preflight"), Done)


def test_a_secret_in_plain_text_gets_into_no_record_no_result_and_no_log(caplog):
    scene = Scene()
    found = scene.world.client.get("deployments", NAMESPACE, WORKLOAD)
    container = found["spec"]["template"]["spec"]["containers"][0]
    container["env"].append({"name": "WANDB_API_KEY", "value": PLANTED})
    scene.world.client.update("deployments", found)
    scene.world.advance(600.0)
    with caplog.at_level(logging.DEBUG):
        outcome = scene.airflow()._task("preflight")
    assert isinstance(outcome, Done), outcome
    assert "literal-secret" in outcome.result["findings"]
    assert "WANDB_API_KEY" in caplog.text
    record = scene.world.client.get("configmaps", NAMESPACE, record_name(WORKLOAD))
    for text in (json.dumps(outcome.result), json.dumps(record), caplog.text):
        assert PLANTED not in text


def test_a_namespace_that_sends_its_pods_to_a_compute_class_is_refused_before_anything_is_made():
    scene = Scene()
    labels = {"cloud.google.com/default-compute-class": "tpus"}
    scene.world.client.patch("namespaces", None, NAMESPACE, {"metadata": {"labels": labels}})
    outcome = scene.airflow()._task("preflight")
    assert isinstance(outcome, Failed)
    assert "to ComputeClass tpus" in outcome.reason
    assert_nothing_was_made(scene)


def test_a_role_that_may_not_read_the_namespace_leaves_that_check_out_and_says_so(caplog):
    scene = Scene()
    airflow = scene.airflow()
    transport = scene.world.transport

    def refusing(before, after, user=None):
        send = transport(before, after, user)

        def answer(method, path, **more):
            if path == f"/api/v1/namespaces/{NAMESPACE}":
                return Response(403, b'{"message": "forbidden"}')
            return send(method, path, **more)

        return answer

    scene.world.transport = refusing
    with caplog.at_level(logging.INFO):
        assert isinstance(airflow._task("preflight"), Done)
    assert f"the labels of namespace {NAMESPACE} may not be read" in caplog.text


def test_a_control_plane_that_makes_no_such_tpus_is_refused_before_anything_is_made(monkeypatch):
    monkeypatch.setattr("sandbox.gke.messages.VERSION", "1.26.3-gke.1000")
    scene = Scene()
    outcome = scene.airflow()._task("preflight")
    assert isinstance(outcome, Failed)
    assert "its control plane runs GKE 1.26.3-gke.1000; tpu-v5e-8 needs 1.27.2-gke.2100" in outcome.reason
    assert_nothing_was_made(scene)


class Terminal:
    """A person at a terminal, whose calls are written down."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.calls = scene, Calls()

    def preflight(self, *more: str, google: bool = True) -> int:
        parser = argparse.ArgumentParser()
        preflight_cli.add_arguments(parser)
        names = {"project-id": PROJECT, "location": LOCATION, "cluster": CLUSTER}
        names |= {"namespace": NAMESPACE, "workload": WORKLOAD}
        words = [f"--{name}={value}" for name, value in names.items()]
        given = ["--param=peak_rps=4", "--param=source_peak_replicas=2", *more]
        world, calls = self.scene.world, self.calls
        kube = Kubernetes(world.transport(calls.before, calls.done, "admin"), sleep=world.advance)
        client = world.cluster_manager(calls.before, calls.done) if google else None
        return preflight_cli.main(parser.parse_args([*words, *given]), kube, client, world.clock)


def test_a_person_sees_the_page_beforehand_and_nothing_is_written(capsys):
    terminal = Terminal(Scene())
    assert terminal.preflight() == 0
    assert capsys.readouterr().out.startswith(f"READY: {WORKLOAD}")
    writes = [each for each in terminal.calls.trace if not each.startswith(("GET", "GKE get"))]
    assert {each.rpartition("/")[2] for each in writes} == {"selfsubjectaccessreviews", "selfsubjectrulesreviews"}
    assert_nothing_was_made(terminal.scene)


def test_a_person_sees_what_blocks_and_the_exit_status_says_so(capsys):
    terminal = Terminal(Scene())
    own(terminal.scene, "httproutes")
    assert terminal.preflight() == 1
    assert capsys.readouterr().out.startswith(f"BLOCKED: {WORKLOAD}")


def test_without_credentials_the_gke_part_is_told_as_not_checked(capsys, monkeypatch):
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, "/nonexistent")
    assert Terminal(Scene()).preflight(google=False) == 0
    page = capsys.readouterr().out
    assert "not checked: GKE" in page
    assert "kind of cluster, " not in page.partition("not checked")[0]


def test_bad_parameters_are_bad_input(capsys):
    assert Terminal(Scene()).preflight("--param=target=tpu-v4") == 2
    assert "target='tpu-v4'" in capsys.readouterr().err


def test_a_migration_that_runs_already_is_told(capsys):
    terminal = Terminal(Scene())
    assert isinstance(terminal.scene.airflow()._task("preflight"), Done)
    assert terminal.preflight() == 1
    assert "is being migrated by run run-1" in capsys.readouterr().out.replace("\n           ", " ")


class Monitoring:
    """A metrics server of which only the answer matters."""

    url = "https://prometheus.example"

    def __init__(self, answer: Peak | Exception) -> None:
        self.answer = answer

    def peak(self, namespace: str, workload: str, now: float) -> Peak:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_a_peak_that_monitoring_remembers_carries_a_whole_migration():
    scene = Scene(peak_rps=0, prometheus_url="https://prometheus.example")
    found = Monitoring(Peak(4.0, scene.world.clock.now() - 3600, 14 * 86_400))
    airflow = scene.airflow()
    airflow.monitoring = found
    assert airflow.run().green
    assert scene.record.notes["peak"]["rps"] == 4.0
    assert "highest of 14 days" in scene.record.notes["peak"]["told_by"]
    assert "compile_at_start" in scene.record.notes["gaps"], "what is given up is kept for the feature watch"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Peak(4.0, 1.0, 3600.0), "remembers only 1.0 h"),
        (PermanentError("knows no request"), "knows no request"),
        (TransientError("does not answer"), "the peak cannot be read: does not answer; give peak_rps"),
    ],
)
def test_a_peak_that_is_not_known_is_never_guessed(answer, told):
    scene = Scene(peak_rps=0, prometheus_url="https://prometheus.example")
    airflow = scene.airflow()
    airflow.monitoring = Monitoring(answer)
    outcome = airflow._task("preflight")
    assert isinstance(outcome, Failed)
    assert told in outcome.reason
    assert_nothing_was_made(scene)


def test_what_can_be_judged_by_itself_is_told_in_one_message():
    scene = Scene(guard=False, peak_rps=0, target_replicas=1, tpu_zone="us-west4-z")
    role = scene.world.client.get("roles", NAMESPACE, "tpu-migration")
    role["rules"] = [each for each in role["rules"] if "jobs" not in each["resources"]]
    scene.world.client.update("roles", role)
    scene.world.client.delete("deployments", NAMESPACE, WORKLOAD)
    scene.world.advance(30.0)
    outcome = scene.airflow()._task("preflight")
    assert isinstance(outcome, Failed)
    for part in ("no guard runs", "peak_rps is not given", "target_replicas=1", "there is no such", "create jobs"):
        assert part in outcome.reason


@pytest.mark.parametrize(
    ("mode", "place", "told"),
    [
        ("ReadWriteOnce", "/root/.cache/huggingface", "emptyDir"),
        ("ReadWriteMany", "/root/.cache/huggingface", "persistentVolumeClaim"),
        ("ReadWriteMany", "/weights", "persistentVolumeClaim"),
        ("ReadWriteOnce", "/weights", "no TPU pod can mount it"),
    ],
)
def test_a_claim_of_one_node_stops_the_run_unless_it_only_caches(mode, place, told):
    scene = Scene()
    claim = {"metadata": {"name": "hub", "namespace": NAMESPACE}}
    spec = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}
    scene.world.client.create("persistentvolumeclaims", {**claim, "spec": spec})
    found = scene.world.client.get("deployments", NAMESPACE, WORKLOAD)
    pod = found["spec"]["template"]["spec"]
    pod["volumes"].append({"name": "hub", "persistentVolumeClaim": {"claimName": "hub"}})
    pod["containers"][0]["volumeMounts"].append({"name": "hub", "mountPath": place})
    scene.world.client.update("deployments", found)
    scene.world.advance(600.0)
    airflow = scene.airflow()
    outcome = airflow._task("preflight")
    if isinstance(outcome, Failed):
        assert told in outcome.reason
        assert_nothing_was_made(scene)
        return
    for stage in ("provision", "deploy"):
        assert isinstance(airflow._task(stage), Done)
    made = scene.world.client.get("deployments", NAMESPACE, f"{WORKLOAD}-tpu")["spec"]["template"]["spec"]["volumes"]
    assert told in next(each for each in made if each["name"] == "hub")
