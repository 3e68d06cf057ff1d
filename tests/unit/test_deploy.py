"""The stack's own manifests, the node-pool call and its gcloud line, and what `deploy` says without any cluster."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from google.api_core import exceptions
from google.auth import exceptions as auth
from google.cloud import container_v1

from tests.unit.kubernetes_schemas import problems
from tpu_migration.cli import main
from tpu_migration.clients.google import cluster_manager, kubernetes_of, token_of
from tpu_migration.deploy_cli import patiently
from tpu_migration.domain.node_pools import Accelerator, PoolSpec, Taint, gcloud_line, node_pool
from tpu_migration.domain.stack import secrets_of, with_service
from tpu_migration.domain.translation import translate_documents
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.resources import accelerators, read_text

ROOT = Path(__file__).parents[2]
STACKS = ("vllm-gpu/vllm.yaml", "vllm-tpu/vllm.yaml", "gateway/gateway.yaml", "gateway/route.yaml")


def documents(text):
    return [each for each in yaml.safe_load_all(text) if each]


def run(capsys, *words):
    """Return the exit code, stdout and stderr of `tpu-migration deploy --project-id p …`."""
    try:
        code = main(["deploy", "--project-id=p", *words])
    except SystemExit as leaving:
        code = leaving.code
    shown = capsys.readouterr()
    return code, shown.out, shown.err


# --------------------------------------------------------------------------------- manifests


@pytest.mark.parametrize("name", STACKS)
def test_the_stacks_manifests_are_valid_as_they_stand(name):
    for each in documents(read_text(f"manifests/{name}")):
        assert problems(each) == []


def test_the_tpu_stack_is_the_translation_of_the_gpu_stack():
    source = read_text("manifests/vllm-gpu/vllm.yaml")
    slice_ = accelerators().slice("tpu-v5e-8")
    made = translate_documents(source, target=slice_, image="vllm/vllm-tpu:v0.32.0")
    assert made.blockers == []
    assert documents(read_text("manifests/vllm-tpu/vllm.yaml")) == made.manifests


@pytest.mark.parametrize("name", STACKS[:2])
def test_every_service_has_a_health_check_and_time_for_long_answers_and_for_draining(name):
    made = documents(read_text(f"manifests/{name}"))
    for service in (each["metadata"]["name"] for each in made if each["kind"] == "Service"):
        policies = {
            each["kind"]: each["spec"]["default"]
            for each in made
            if each.get("spec", {}).get("targetRef", {}).get("name") == service
        }
        assert policies["HealthCheckPolicy"]["config"]["httpHealthCheck"]["requestPath"] == "/health"
        assert policies["GCPBackendPolicy"]["timeoutSec"] >= 600
        assert policies["GCPBackendPolicy"]["connectionDraining"]["drainingTimeoutSec"] >= 300


@pytest.mark.parametrize("name", STACKS)
def test_no_secret_is_written_down(name):
    text = read_text(f"manifests/{name}")
    assert "hf_" not in text
    for each in documents(text):
        assert each["kind"] != "Secret"
        if each["kind"] == "Deployment":
            assert secrets_of(each) == [("huggingface", "token")]


def test_the_users_route_points_at_the_gpu_stacks_service_and_its_gateway():
    (gateway,), (route,) = (documents(read_text(f"manifests/gateway/{name}.yaml")) for name in ("gateway", "route"))
    (service,) = [each for each in documents(read_text("manifests/vllm-gpu/vllm.yaml")) if each["kind"] == "Service"]
    assert [each["name"] for each in route["spec"]["parentRefs"]] == [gateway["metadata"]["name"]]
    (ref,) = route["spec"]["rules"][0]["backendRefs"]
    assert (ref["name"], ref["port"]) == (service["metadata"]["name"], service["spec"]["ports"][0]["port"])


# --------------------------------------------------------------------------------- users' route

OLD, NEW = {"name": "old", "port": 8000, "weight": 3}, {"name": "new", "port": 8000, "weight": 3}


def test_a_backend_is_attached_with_no_weight_before_anybody_is_sent_there():
    (rule,) = with_service([{"backendRefs": [OLD]}], "old", "new", turned=False)
    assert rule == {"backendRefs": [OLD, {**NEW, "weight": 0}]}


def test_turning_moves_the_whole_weight_and_turning_again_changes_nothing():
    beside = with_service([{"backendRefs": [OLD]}], "old", "new", turned=False)
    turned = with_service(beside, "old", "new", turned=True)
    assert turned == [{"backendRefs": [{**OLD, "weight": 0}, NEW]}]
    assert with_service(turned, "old", "new", turned=True) == turned


def test_other_backends_and_other_rules_keep_what_they_have():
    other, elsewhere = {"name": "other", "port": 1}, {"backendRefs": [{"name": "old", "port": 1, "kind": "Bucket"}]}
    first, second = with_service([{"backendRefs": [other, OLD]}, elsewhere], "old", "new", turned=True)
    assert first["backendRefs"] == [other, {**OLD, "weight": 0}, NEW]
    assert second == elsewhere


# --------------------------------------------------------------------------------- gcloud line

SPECS = [
    PoolSpec("tpu", "ct5lp-hightpu-8t", 2, "us-west4-a", {"team": "a b", "x": "y"}),
    PoolSpec("spot", "ct5lp-hightpu-8t", 1, "us-west4-a", {}, spot=True, max_pods_per_node=15, max_nodes=4),
    PoolSpec("kept", "ct5lp-hightpu-8t", 1, "us-west4-b", {"x": "y"}, reservation="my-res", service_account="n@p.iam"),
    PoolSpec("gpu", "a3-highgpu-1g", 2, "us-west4-a", {"x": "y"}, gpus=Accelerator("nvidia-h100-80gb", 1)),
    PoolSpec(
        "kept-off",
        "a3-highgpu-1g",
        2,
        "us-west4-a,us-west4-b",
        {},
        taints=(Taint("team", "llm", "NoSchedule"), Taint("x", "", "NoExecute")),
    ),
]


def message_of(line: str) -> tuple[str, dict]:
    """Read a gcloud line back into the parent and the NodePool message that it asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs=5)
    for name in ("project", "location", "cluster", "machine-type", "node-locations", "node-labels", "accelerator",
                 "node-taints", "reservation-affinity", "reservation",
                 "workload-metadata", "service-account", "scopes"):  # fmt: skip
        parser.add_argument(f"--{name}")
    for name in ("num-nodes", "max-pods-per-node", "min-nodes", "max-nodes", "max-surge-upgrade",
                 "max-unavailable-upgrade"):  # fmt: skip
        parser.add_argument(f"--{name}", type=int)
    for name in ("spot", "shielded-secure-boot", "shielded-integrity-monitoring", "enable-autoupgrade",
                 "enable-autorepair", "enable-autoscaling"):  # fmt: skip
        parser.add_argument(f"--{name}", action="store_true")
    said = parser.parse_args(shlex.split(line))
    assert said.words[:4] == ["gcloud", "container", "node-pools", "create"]
    pairs = [each.split("=") for each in (said.node_labels or "").split(",") if each]
    config = {
        "machine_type": said.machine_type,
        "labels": dict(pairs),
        "spot": said.spot,
        "workload_metadata_config": {"mode": said.workload_metadata},
        "shielded_instance_config": {
            "enable_secure_boot": said.shielded_secure_boot,
            "enable_integrity_monitoring": said.shielded_integrity_monitoring,
        },
        "oauth_scopes": said.scopes.split(","),
    }
    if said.service_account:
        config["service_account"] = said.service_account
    if said.node_taints:
        effects = {"NoSchedule": "NO_SCHEDULE", "NoExecute": "NO_EXECUTE"}
        parts = [re.fullmatch(r"(.*)=(.*):(.*)", each).groups() for each in said.node_taints.split(",")]
        config["taints"] = [{"key": key, "value": value, "effect": effects[effect]} for key, value, effect in parts]
    if said.accelerator:
        gpu = dict(each.split("=") for each in said.accelerator.split(","))
        config["accelerators"] = [
            {
                "accelerator_type": gpu["type"],
                "accelerator_count": int(gpu["count"]),
                "gpu_driver_installation_config": {"gpu_driver_version": gpu["gpu-driver-version"].upper()},
            }
        ]
    if said.reservation:
        assert said.reservation_affinity == "specific"
        config["reservation_affinity"] = {
            "consume_reservation_type": "SPECIFIC_RESERVATION",
            "key": "compute.googleapis.com/reservation-name",
            "values": [said.reservation],
        }
    pool = {
        "name": said.words[4],
        "initial_node_count": said.num_nodes,
        "config": config,
        "locations": said.node_locations.split(","),
        "max_pods_constraint": {"max_pods_per_node": said.max_pods_per_node},
        "management": {"auto_upgrade": said.enable_autoupgrade, "auto_repair": said.enable_autorepair},
        "upgrade_settings": {
            "strategy": "SURGE",
            "max_surge": said.max_surge_upgrade,
            "max_unavailable": said.max_unavailable_upgrade,
        },
    }
    if said.enable_autoscaling:
        pool["autoscaling"] = {
            "enabled": True,
            "min_node_count": said.min_nodes,
            "max_node_count": said.max_nodes,
        }
    return f"{said.project}/{said.location}/{said.cluster}", pool


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_the_gcloud_line_asks_for_the_very_pool_that_the_call_asks_for(spec):
    where, message = message_of(gcloud_line(spec, "p", "us-west4", "c"))
    assert where == "p/us-west4/c"
    assert message == node_pool(spec)
    container_v1.NodePool(message)  # and GKE knows every field


def test_each_choice_that_a_pool_has_is_among_the_specs_above():
    """A field that is added to PoolSpec and not to the line would otherwise go unseen."""
    for field in fields(PoolSpec):
        values = {repr(getattr(spec, field.name)) for spec in SPECS}
        assert len(values) > 1, f"no spec above gives {field.name} another value: give one, and a flag to gcloud_line"


# --------------------------------------------------------------------------------- dry run


def test_a_dry_run_needs_no_cluster_and_prints_what_kubectl_can_apply():
    script = [sys.executable, str(ROOT / "deployment" / "deploy_all.py"), "--project-id", "p", "--dry-run"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, env={"PATH": "/nowhere"}, check=False)
    assert done.returncode == 0
    made = documents(done.stdout)
    assert {each["metadata"]["name"] for each in made if each["kind"] == "Deployment"} == {"vllm-gemma3-27b-tpu"}
    for each in made:
        assert problems(each) == []
    call, _, line = done.stderr.rpartition("\ngcloud ")
    asked = json.loads(call)
    assert asked["parent"] == "projects/p/locations/us-central1-a/clusters/inference"
    assert asked["nodePool"]["config"]["machineType"] == "ct5lp-hightpu-8t"
    assert message_of(f"gcloud {line}")[1]["name"] == asked["nodePool"]["name"]


def test_the_older_word_target_means_the_accelerator(capsys):
    code, out, err = run(capsys, "--target", "gpu", "--dry-run")
    assert code == 0
    assert "nvidia-h100-80gb" in out
    assert "--accelerator=type=nvidia-h100-80gb,count=1,gpu-driver-version=default" in err


def test_legacy_gpu_is_four_l4_a_replica(capsys):
    _, out, err = run(capsys, "--accelerator=gpu", "--profile=legacy_gpu", "--dry-run")
    (deployment,) = [each for each in documents(out) if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert "--tensor-parallel-size=4" in pod["containers"][0]["args"]
    assert "--machine-type=g2-standard-48" in err


def test_another_name_and_namespace_reach_every_object(capsys):
    _, out, _ = run(capsys, "--workload=my-llm", "--namespace=llm", "--dry-run")
    assert "gemma3-27b-tpu" not in out
    assert {each["metadata"]["namespace"] for each in documents(out)} == {"llm"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--profile=h100"], "profile h100 is NVIDIA H100 80 GB, one on a machine, and --accelerator is tpu"),
        (["--profile=nosuch"], "use one of production, legacy_gpu, h100"),
        (["--param=peak_rp=3"], "did you mean peak_rps?"),
        (["--accelerator=npu"], "invalid choice"),
        (["--param=oops"], "is not NAME=VALUE"),
    ],
)
def test_bad_usage_ends_with_2_and_one_clear_error(words, told, capsys):
    code, _, err = run(capsys, *words, "--dry-run")
    assert code == 2
    assert told in err


# --------------------------------------------------------------------------------- credentials


def test_without_credentials_the_way_to_get_some_is_told(monkeypatch):
    monkeypatch.setattr("google.auth.default", lambda **_: (_ for _ in ()).throw(auth.DefaultCredentialsError("none")))
    with pytest.raises(PermanentError, match="gcloud auth application-default login"):
        cluster_manager()
    with pytest.raises(PermanentError, match=r"no Google credentials in /nowhere\.json"):
        cluster_manager(key_file="/nowhere.json")


@pytest.mark.parametrize(
    ("error", "kind"),
    [(exceptions.ServiceUnavailable("x"), TransientError), (exceptions.NotFound("x"), PermanentError)],
)
def test_a_cluster_that_cannot_be_reached_says_whether_that_may_pass(error, kind):
    def get_cluster(**_):
        raise error

    with pytest.raises(kind, match="projects/p/locations/l/clusters/c"):
        kubernetes_of(SimpleNamespace(get_cluster=get_cluster), None, "projects/p/locations/l/clusters/c", "look")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (auth.TransportError("x"), TransientError),
        (auth.RefreshError("x", retryable=True), TransientError),
        (auth.RefreshError("x"), PermanentError),
    ],
)
def test_a_token_that_cannot_be_had_says_whether_that_may_pass(error, kind):
    def refresh(_):
        raise error

    with pytest.raises(kind):
        token_of(SimpleNamespace(token=None, expired=False, refresh=refresh))


def test_a_cluster_that_does_not_answer_at_first_is_tried_again(monkeypatch, capsys):
    monkeypatch.setattr("tpu_migration.deploy_cli._PAUSE_S", 0.0)
    answers = [TransientError("the GKE API does not answer"), "tools"]

    def connect():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patiently(connect) == "tools"
    assert "will try again: the GKE API does not answer" in capsys.readouterr().out
    answers[:] = [TransientError("gone")] * 2
    with pytest.raises(TransientError):
        patiently(connect, tries=2)
