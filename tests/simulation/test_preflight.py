"""Preflight on a live workload: what stops it stops it before anything is made, and secrets stay where they are."""

from __future__ import annotations

import json
import logging

from sandbox.workload import NAMESPACE, WORKLOAD
from tests.simulation.harness import Scene
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
