"""A container gets the environment, image and volumes that its manifest asks for."""

from __future__ import annotations

import json
import sys

import pytest
from node_world import ended, running, shell, state, state_reason

from sandbox.images import Launch


@pytest.fixture
async def world(tmp_path):
    async with running(tmp_path) as started:
        yield started


async def test_environment_comes_from_values_objects_and_the_pod_itself(world):
    await world.kube.create("configmaps", "default", {"metadata": {"name": "cm"}, "data": {"MODEL": "gemma"}})
    secret = {"metadata": {"name": "s"}, "stringData": {"token": "abc"}}
    await world.kube.create("secrets", "default", secret)
    container = {
        "name": "main",
        "image": "example.com/tools",
        "command": ["echo"],
        "args": ["$(MODEL) $(TOKEN) $(NODE) $(BOTH) $(UNKNOWN) $$(MODEL)"],
        "envFrom": [{"configMapRef": {"name": "cm"}}],
        "env": [
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}}},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "BOTH", "value": "$(MODEL)-$(TOKEN)"},
        ],
    }
    await world.pod("env", container, restartPolicy="Never")
    await world.until("env", ended, "it ends")
    assert world.log("env") == "gemma abc node-1 gemma-abc $(UNKNOWN) $(MODEL)\n"


async def test_a_missing_configmap_holds_the_container_until_it_is_there(world):
    container = shell("echo $MODEL", envFrom=[{"configMapRef": {"name": "late"}}])
    await world.pod("waits", container, restartPolicy="Never")
    pod = await world.until("waits", lambda p: state_reason(p) == "CreateContainerConfigError", "it waits")
    assert state(pod)["waiting"]["message"] == 'configmap "late" not found'
    await world.kube.create("configmaps", "default", {"metadata": {"name": "late"}, "data": {"MODEL": "x"}})
    assert (await world.until("waits", ended, "it runs"))["status"]["phase"] == "Succeeded"


async def test_a_whole_secret_comes_in_under_its_prefix_and_a_variable_of_its_own_wins(world):
    await world.kube.create("secrets", "default", {"metadata": {"name": "s"}, "stringData": {"A": "1", "B": "2"}})
    env = [{"name": "HF_B", "value": "mine, over $(HF_A)"}]
    await world.pod(
        "all", shell('echo "$HF_A $HF_B"', envFrom=[{"prefix": "HF_", "secretRef": {"name": "s"}}], env=env)
    )
    assert await world.until_log("all", "1 mine, over 1\n")


async def test_an_image_that_cannot_be_pulled_is_tried_again_until_the_fault_is_lifted(world):
    world.faults.set("image-pull", {"image": "example.com/tools"})
    await world.pod("pull", shell("exit 0"), restartPolicy="Never")
    pod = await world.until("pull", lambda p: state_reason(p) == "ErrImagePull", "the pull fails")
    assert "failed to pull and unpack image" in state(pod)["waiting"]["message"]
    await world.until("pull", lambda p: state_reason(p) == "ImagePullBackOff", "it waits for its next try")
    world.faults.clear("image-pull")
    assert (await world.until("pull", ended, "it runs"))["status"]["phase"] == "Succeeded"


async def test_an_engine_is_told_its_address_accelerator_and_faults(world, monkeypatch):
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    # The engine itself is another module's matter: here only what it is given.
    monkeypatch.setattr("sandbox.images._launch_vllm", lambda *a: engine_launch([sys.executable, "-c", show]))
    resources = {"limits": {"nvidia.com/gpu": "2"}, "requests": {"nvidia.com/gpu": "2"}}
    container = {"name": "main", "image": "vllm/vllm-openai:v1", "args": ["m"], "resources": resources}
    await world.pod("engine", container, restartPolicy="Never")
    pod = await world.until("engine", ended, "it ends")
    env = json.loads(world.log("engine"))
    assert env["SANDBOX_POD_IP"] == pod["status"]["podIP"]
    assert env["SANDBOX_ACCELERATOR"] == "nvidia-h100-80gb"
    assert env["SANDBOX_CHIPS"] == "2"
    assert env["SANDBOX_SPEED"] == "200"
    assert env["SANDBOX_FAULTS"] == str(world.directory / "faults.json")
    assert env["HOSTNAME"] == "engine"
    assert "KUBECONFIG" not in env


def engine_launch(argv):
    return Launch(argv, engine=True)
