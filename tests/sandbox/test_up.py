"""`python -m sandbox up` as its users meet it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from sandbox_process import DEADLINE_S, running, sandbox

from sandbox import workload


def test_up_serves_the_workload_and_refuses_a_second_one_in_its_directory(tmp_path):
    with running(tmp_path) as (process, directory, state):
        with urllib.request.urlopen(f"{state['gateway_url']}/v1/models", timeout=10) as answer:
            assert json.load(answer)["data"][0]["id"] == workload.SERVED_MODEL
        second = sandbox("up", "--dir", str(directory), stderr=subprocess.PIPE, text=True)
        _, error = second.communicate(timeout=DEADLINE_S)
        assert second.returncode == 1
        assert "down" in error
        assert process.poll() is None

        kubectl = [str(Path(sys.executable).parent / "kubectl"), "--kubeconfig", state["kubeconfig"]]
        wait = [*kubectl, "rollout", "status", "-n", state["namespace"], f"deployment/{state['workload']}"]
        assert subprocess.run([*wait, "--timeout=60s"], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["--kubeconfig", "x"], "--kubeconfig and --pod-cidr go together"),
        (["--pod-cidr", "10.99.0.0/24"], "--kubeconfig and --pod-cidr go together"),
        (["--engine", "vllm"], "--engine vllm needs --vllm-bin and --model"),
        (["--kubeconfig", "missing", "--pod-cidr", "127.0.0.0/24"], "no loopback address"),
    ],
)
def test_options_that_cannot_work_are_refused_with_the_remedy(tmp_path, options, remedy):
    refused = sandbox("up", "--dir", str(tmp_path), *options, stderr=subprocess.PIPE, text=True)
    _, error = refused.communicate(timeout=DEADLINE_S)
    assert refused.returncode in (1, 2)
    assert remedy in error
    assert "Traceback" not in error


def test_every_workload_of_several_has_its_own_names_and_host():
    objects = workload.bootstrap_objects(8080, workloads=3)
    addresses = [workload.address(item) for item in objects]
    assert len(addresses) == len(set(addresses))
    routes = [item for item in objects if item["kind"] == "HTTPRoute"]
    assert [route["spec"].get("hostnames") for route in routes] == [
        None,
        ["vllm-gemma3-27b-2.sandbox.internal"],
        ["vllm-gemma3-27b-3.sandbox.internal"],
    ]
    for route in routes:
        name = route["metadata"]["name"]
        assert route["spec"]["rules"][0]["backendRefs"] == [{"name": name, "port": 8000, "weight": 1}]


def test_a_path_prefix_is_stripped_before_the_engine_sees_it():
    route = next(i for i in workload.workload_objects("other", path_prefix="/other") if i["kind"] == "HTTPRoute")
    rule = route["spec"]["rules"][0]
    assert rule["matches"][0]["path"]["value"] == "/other"
    assert rule["filters"][0]["urlRewrite"]["path"]["replacePrefixMatch"] == "/"


def test_an_object_of_a_kind_that_is_not_known_is_named():
    with pytest.raises(ValueError, match="Widget 'w'"):
        workload.address({"kind": "Widget", "metadata": {"name": "w"}})
