"""Secrets that are planted in and around a workload get nowhere that others read: not by going well, not by failing."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from sandbox.workload import NAMESPACE, WORKLOAD
from tests.simulation.harness import Airflow, Scene
from tests.simulation.test_notices import heard  # noqa: F401 (a fixture)
from tpu_migration.clients.kubernetes import Response
from tpu_migration.names import MANAGED_BY, record_name
from tpu_migration.report.page import render_report, report_data
from tpu_migration.report.summary import summarise
from tpu_migration.stages.base import Done, Failed
from tpu_migration.status import describe

# Each with a part that nothing masks halfway, and that occurs nowhere else.
IN_A_SECRET = "hf_PLANTEDinAsecret1"
IN_THE_ENVIRONMENT = "hf_PLANTEDinTHEenvironment2"
IN_AN_ARGUMENT = "PLANTEDapiKEY3"
IN_A_CONFIG_MAP = "PLANTEDserviceACCOUNTkey4"
IN_A_LOG = "PLANTEDbearerTOKEN5"
A_PROMPT = "PLANTED my doctor told me 6"
AN_ANSWER = "PLANTED take two of these 7"
IN_AN_ANSWER_OF_THE_API = "ya29.PLANTEDaccessTOKEN8"
PLANTED = (
    IN_A_SECRET, IN_THE_ENVIRONMENT, IN_AN_ARGUMENT, IN_A_CONFIG_MAP, IN_A_LOG, A_PROMPT, AN_ANSWER,
    IN_AN_ANSWER_OF_THE_API,
)  # fmt: skip
# What an engine that is set to log its requests, and its own arguments, writes.
LOG = f"""
INFO non-default args: {{'api_key': ['{IN_AN_ARGUMENT}'], 'hf_token': '{IN_THE_ENVIRONMENT}', 'port': 8000}}
DEBUG Request cmpl-1 details: prompt: '{A_PROMPT}', prompt_token_ids: [2, 106], prompt_embeds shape: None.
INFO Generated response cmpl-1: output: "{AN_ANSWER}", output_token_ids: [1, 2], finish_reason: stop
ERROR 401 for Authorization: Bearer {IN_A_LOG} downloading with {IN_A_SECRET}
"""


def plant(scene: Scene) -> None:
    """Put secrets where people put them, good places and bad ones."""
    client = scene.world.client
    client.patch("secrets", NAMESPACE, "huggingface", {"stringData": {"token": IN_A_SECRET}})
    key = json.dumps({"type": "service_account", "private_key": IN_A_CONFIG_MAP})
    client.create("configmaps", {"metadata": {"name": "keys", "namespace": NAMESPACE}, "data": {"key.json": key}})
    found = client.get("deployments", NAMESPACE, WORKLOAD)
    container = found["spec"]["template"]["spec"]["containers"][0]
    container["env"].append({"name": "WANDB_API_KEY", "value": IN_THE_ENVIRONMENT})
    container["args"] = [*container["args"], f"--api-key={IN_AN_ARGUMENT}"]
    container["envFrom"] = [{"configMapRef": {"name": "keys"}}]
    client.update("deployments", found)
    scene.world.advance(600.0)
    log = scene.world.api.pod_logs
    scene.world.api.pod_logs = lambda *asked: log(*asked) + LOG.encode() if "bench" not in asked[1] else log(*asked)


def written(scene: Scene) -> Iterator[tuple[str, str]]:
    """Yield all that this product wrote into the cluster, but for the two places that hold a Deployment as it was.

    These are the snapshot, which is a Secret, and the target's Deployment, which takes over what the source's own
    says in plain text, and of which preflight warns.
    """
    own = {f"{WORKLOAD}-tpu"}
    for resource in ("configmaps", "services", "jobs", "leases", "events", "httproutes", "deployments",
                     "poddisruptionbudgets", "horizontalpodautoscalers", "healthcheckpolicies"):  # fmt: skip
        for each in scene.world.client.list(resource, NAMESPACE):
            name, labels = each["metadata"]["name"], each["metadata"].get("labels") or {}
            ours = name.startswith(("tpu-migration", *own)) or MANAGED_BY.items() <= labels.items()
            if ours and not (resource == "deployments" and name in own):
                yield f"{resource}/{name}", json.dumps(each)


def shown(scene: Scene, airflow: Airflow) -> Iterator[tuple[str, str]]:
    """Yield what people read: results and reasons (XCom, task logs), status, report, its JSON."""
    for stage, outcome in airflow.ended.items():
        yield f"task {stage}", json.dumps(outcome.result) if isinstance(outcome, Done) else str(outcome)
    yield "waits", "\n".join(airflow.said)
    record, admin = scene.record, scene.client("admin")
    summary = summarise(admin, record, {}, engine="simulated", seconds=1.0)
    yield "status", describe(admin, record)
    yield "report.html", render_report(record, summary)
    yield "report.json", json.dumps(report_data(record, summary))


def assert_clean(scene: Scene, airflow: Airflow, heard: list[Any], caplog: Any) -> set[str]:  # noqa: F811
    places = [*written(scene), *shown(scene, airflow), ("log", caplog.text), ("notices", str(heard))]
    found = [(where, each) for where, text in places for each in PLANTED if each in text]
    assert found == []
    return {where for where, _ in places}


def test_a_migration_that_goes_well_leaves_no_secret_anywhere(heard, caplog):  # noqa: F811
    scene = Scene()
    plant(scene)
    with caplog.at_level(logging.DEBUG):
        airflow = scene.airflow().run()
    assert airflow.green, airflow.reasons()
    places = assert_clean(scene, airflow, heard, caplog)
    assert f"configmaps/{record_name(WORKLOAD)}" in places
    template = scene.world.client.get("deployments", NAMESPACE, f"{WORKLOAD}-tpu")["spec"]["template"]
    variables = {each["name"]: each for each in template["spec"]["containers"][0]["env"]}
    by_reference = [each for each in variables.values() if "secretKeyRef" in (each.get("valueFrom") or {})]
    assert by_reference, "what was read from a Secret is still read from it"


@pytest.mark.parametrize("fault", ["oom", "crash-loop", "slow-tpu"])
def test_a_migration_that_fails_says_why_without_the_secrets_of_the_log(fault, heard, caplog):  # noqa: F811
    scene = Scene()
    plant(scene)
    scene.world.faults.set(fault)
    with caplog.at_level(logging.DEBUG):
        airflow = scene.airflow().run()
    assert not airflow.green
    places = assert_clean(scene, airflow, heard, caplog)
    diagnostics = f"configmaps/{record_name(WORKLOAD)}-diagnostics"
    assert diagnostics in places
    kept = next(text for where, text in written(scene) if where == diagnostics)
    assert "Request cmpl-1 details: prompt: ***" in kept, "the log itself is there"


def test_an_api_that_answers_with_a_secret_is_quoted_without_it(heard, caplog):  # noqa: F811
    scene = Scene()
    plant(scene)
    airflow = scene.airflow()
    transport = scene.world.transport
    body = json.dumps({"message": f"admission webhook denied: token: {IN_AN_ANSWER_OF_THE_API} {IN_A_SECRET}"})

    def refusing(*hooks: Any) -> Any:
        send = transport(*hooks)
        return lambda method, path, **more: (
            Response(400, body.encode()) if method == "PATCH" and "deployments" in path else send(method, path, **more)
        )

    with caplog.at_level(logging.DEBUG):
        for stage in ("preflight", "provision"):
            airflow.ended[stage] = airflow._task(stage)
        scene.world.transport = refusing
        airflow.ended["deploy"] = airflow._task("deploy")
        scene.world.transport = transport
        airflow.run()
    assert isinstance(airflow.ended["deploy"], Failed)
    assert "admission webhook denied" in airflow.ended["deploy"].reason
    assert_clean(scene, airflow, heard, caplog)
