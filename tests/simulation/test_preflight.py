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
from tpu_migration.errors import PermanentError
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
    assert {each.rpartition("/")[2] for each in writes} == {"selfsubjectaccessreviews"}
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


def test_a_migration_that_runs_already_is_told():
    terminal = Terminal(Scene())
    assert isinstance(terminal.scene.airflow()._task("preflight"), Done)
    with pytest.raises(PermanentError, match="is being migrated by run run-1"):
        terminal.preflight()
