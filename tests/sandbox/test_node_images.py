"""Which local process stands for a container, and where its volumes are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sandbox.container_env import ConfigError, expand, field, resolve
from sandbox.images import RealVllm, chips, is_engine, launch
from sandbox.volumes import place, rewrite

ENGINE = [sys.executable, "-m", "sandbox.engine"]
IP = "127.9.9.9"


@pytest.mark.parametrize(
    ("image", "engine"),
    [
        ("vllm/vllm-openai:v0.11.0", True),
        ("europe-docker.pkg.dev/p/r/vllm-tpu@sha256:00", True),
        ("lmcache/vllm-openai:2025", True),
        ("registry:5000/vllm-toolbox:1", False),
        ("ghcr.io/vllm-org/lora-syncer:main", False),
        ("busybox", False),
    ],
)
def test_an_image_is_an_engine_by_its_own_name_not_by_its_registrys(image, engine):
    assert is_engine(image) is engine


def test_the_gpu_image_has_an_entrypoint_and_a_command_replaces_it():
    image = "vllm/vllm-openai:v1"
    assert launch(image, [], ["--model=m"], pod_ip=IP).argv == [*ENGINE, "vllm", "serve", "--model=m"]
    command = ["python3", "-m", "vllm.entrypoints.openai.api_server"]
    assert launch(image, command, ["--model=m"], pod_ip=IP).argv == [*ENGINE, *command, "--model=m"]


def test_the_tpu_image_runs_its_arguments_as_they_are():
    run = launch("vllm/vllm-tpu:latest", [], ["vllm", "serve", "m"], pod_ip=IP)
    assert run.argv == [*ENGINE, "vllm", "serve", "m"]
    trap = launch("vllm/vllm-tpu:latest", [], ["--model=m"], pod_ip=IP)
    assert not trap.engine, "the arguments of a GPU manifest alone start no server on TPU"
    assert trap.argv[-1] == "--model=m"


def test_an_engine_image_that_is_told_to_do_something_else_does_that():
    run = launch("vllm/vllm-openai:v1", ["sleep"], ["60"], pod_ip=IP)
    assert not run.engine
    assert run.argv[-2:] == ["sleep", "60"]


def test_other_images_run_natively():
    assert launch("example.com/toolbox:1", ["tpu-migration", "guard"], [], pod_ip=IP).argv == ["tpu-migration", "guard"]
    assert launch("example.com/toolbox:1", [], ["guard"], pod_ip=IP).argv == ["tpu-migration", "guard"]


def test_a_real_vllm_serves_its_own_model_under_the_names_that_clients_use():
    real = RealVllm(Path("/opt/vllm"), Path("/models/tiny"))
    args = ["google/gemma", "--served-model-name", "a", "b", "--quantization=fp8", "--port=8001", "--max-num-seqs", "4"]
    run = launch("vllm/vllm-openai:v1", ["vllm", "serve"], args, pod_ip=IP, real=real)
    assert run.argv[:3] == ["/opt/vllm", "serve", "/models/tiny"]
    assert run.argv[3:8] == ["--host", IP, "--served-model-name", "a", "b"]
    assert run.argv[8:] == ["--port", "8001", "--max-num-seqs", "4"]


def test_chips_are_what_the_container_is_limited_to():
    assert chips({"resources": {"limits": {"google.com/tpu": "8"}}}) == 8
    assert chips({}) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("$(A)/$(B)", "1/2"), ("$$(A)", "$(A)"), ("$(C)", "$(C)"), ("$$$(A)", "$1"), ("$A", "$A"), ("$(A", "$(A")],
)
def test_variables_expand_as_kubernetes_does(text, expected):
    assert expand(text, {"A": "1", "B": "2"}) == expected


POD = {"metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a/b": "x"}}, "spec": {}}


def test_the_downward_api_reads_labels_and_refuses_what_it_does_not_know():
    assert field("metadata.labels['a/b']", POD) == "x"
    with pytest.raises(ConfigError, match=r"status\.qosClass"):
        field("status.qosClass", POD)


def test_an_optional_reference_may_be_missing_and_a_needed_one_may_not():
    reference = {"name": "gone", "key": "k"}
    optional = {"env": [{"name": "V", "valueFrom": {"secretKeyRef": {**reference, "optional": True}}}]}
    assert resolve(optional, POD, {}) == {}
    with pytest.raises(ConfigError, match='secret "gone" not found'):
        resolve({"env": [{"name": "V", "valueFrom": {"secretKeyRef": reference}}]}, POD, {})


def test_volumes_become_directories_and_paths_below_them_are_rewritten(tmp_path):
    pod = {
        **POD,
        "spec": {
            "volumes": [
                {"name": "out", "emptyDir": {}},
                {"name": "conf", "configMap": {"name": "cm"}},
                {"name": "cache", "persistentVolumeClaim": {"claimName": "c"}},
            ]
        },
    }
    mounts = [{"name": n, "mountPath": p} for n, p in (("out", "/out"), ("conf", "/etc/conf"), ("cache", "/out/c"))]
    placed = place(pod, {"volumeMounts": mounts}, tmp_path, {("configmaps", "cm"): {"plan.yaml": b"x: 1"}})
    assert (placed["/etc/conf"] / "plan.yaml").read_bytes() == b"x: 1"
    assert rewrite("--file=/out/a.json", placed) == f"--file={tmp_path}/u/out/a.json"
    assert rewrite("/out/c/x", placed) == f"{tmp_path}/claims/n_c/x"
    assert rewrite("/output/x", placed) == "/output/x"


def test_a_mounted_configmap_that_is_missing_holds_the_container(tmp_path):
    pod = {**POD, "spec": {"volumes": [{"name": "conf", "configMap": {"name": "cm"}}]}}
    with pytest.raises(ConfigError, match='configmap "cm" not found'):
        place(pod, {"volumeMounts": [{"name": "conf", "mountPath": "/c"}]}, tmp_path, {})
