"""A real vLLM answers in the sandbox's pods; optional, for it takes minutes and an environment of its own.

    VLLM_BIN=/path/to/vllm VLLM_MODEL=/path/to/model .venv/bin/python -m pytest tests/sandbox/test_real_vllm.py
`make_tiny_gemma.py` beside this file makes a model that a CPU can serve.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_process import running

from sandbox import watchdog
from sandbox.workload import NAMESPACE, SERVED_MODEL, WORKLOAD

MISSING = [name for name in ("VLLM_BIN", "VLLM_MODEL") if not os.environ.get(name)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs a real vLLM: set {' and '.join(MISSING)}")
FLAGS = "--enforce-eager --dtype=float32 --kv-cache-memory-bytes=256M"
READY_S = 900.0


@pytest.fixture(scope="module")
def up(tmp_path_factory) -> Iterator[tuple[Path, dict]]:
    program, model = os.environ["VLLM_BIN"], os.environ["VLLM_MODEL"]
    engine = ["--engine", "vllm", "--vllm-bin", program, "--model", model, f"--vllm-flags={FLAGS}"]
    tmp = tmp_path_factory.mktemp("vllm")
    with running(tmp, "--replicas", "1", *engine, ready_s=READY_S) as (_, directory, state):
        yield directory, state


def post(state: dict, path: str, body: dict) -> bytes:
    request = urllib.request.Request(
        f"{state['gateway_url']}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def test_it_answers_through_the_gateway_under_the_manifests_name(up):
    _, state = up
    assert state["engine"] == "vllm"
    answer = json.loads(post(state, "/v1/completions", {"model": SERVED_MODEL, "prompt": "hello", "max_tokens": 4}))
    assert answer["model"] == SERVED_MODEL
    assert answer["usage"]["completion_tokens"] == 4


def test_it_streams_to_the_end(up):
    _, state = up
    body = {"model": SERVED_MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "stream": True}
    lines = post(state, "/v1/chat/completions", body).decode().split("\n\n")
    assert lines[0].startswith("data: {")
    assert "data: [DONE]" in lines


def test_its_metrics_come_through_the_pod_proxy_and_count_what_it_did(up):
    _, state = up
    kubectl = [str(Path(sys.executable).parent / "kubectl"), "--kubeconfig", state["kubeconfig"]]
    names = subprocess.run([*kubectl, "get", "pods", "--output=name"], check=True, capture_output=True, text=True)
    pod = next(line.removeprefix("pod/") for line in names.stdout.split() if line.startswith(f"pod/{WORKLOAD}"))
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8000/proxy/metrics"
    metrics = subprocess.run([*kubectl, "get", "--raw", path], check=True, capture_output=True, text=True).stdout
    label = f'model_name="{SERVED_MODEL}"'
    counted = re.search(rf"^vllm:generation_tokens_total{{[^}}]*{label}}} (\S+)$", metrics, re.MULTILINE)
    assert counted is not None
    assert float(counted[1]) >= 12
    # It is the real one: the simulated engine says so in its processes.
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in watchdog.members(state["id"])]
    assert not any(b"sandbox.engine" in command for command in commands)
