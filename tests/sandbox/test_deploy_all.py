"""deploy_all as a person runs it: a process of its own, Google's client, tokens and TLS, and nothing of Airflow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sandbox_process import DEADLINE_S, ROOT, running


def deploy_all(state: dict[str, Any], *words: str) -> subprocess.CompletedProcess[str]:
    where = [f"--project-id={state['project']}", f"--location={state['location']}", f"--cluster={state['cluster']}"]
    where += [f"--api-endpoint={state['gke_endpoint']}", f"--key-file={state['service_account_key_file']}"]
    plan = ["peak_rps=1", "source_peak_replicas=2", "accept_single_replica=true", "target_replicas=1"]
    plan += ["prompt_tokens=8"]  # few shapes to warm up
    script = [sys.executable, str(ROOT / "deployment" / "deploy_all.py")]
    return subprocess.run(
        [*script, *where, *(f"--param={each}" for each in plan), *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
        env={**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": state["ca_file"]},
    )


def kubectl_phase(state: dict[str, Any]) -> str:
    """Read the record as a person would."""
    kubectl = [str(Path(sys.executable).parent / "kubectl"), "--kubeconfig", state["kubeconfig"]]
    where = ["get", "configmap", f"tpu-migration-{state['workload']}", "-n", state["namespace"]]
    done = subprocess.run(
        [*kubectl, *where, "-o", "jsonpath={.data.phase}"], check=True, capture_output=True, text=True
    )
    return done.stdout


def test_a_target_gets_warm_beside_live_gpus_and_a_second_call_finds_it(tmp_path):
    with running(tmp_path) as (_, _, state):
        stands = deploy_all(state, "--accelerator=gpu")
        assert stands.returncode == 0, stands.stderr
        assert stands.stdout == f"Deployment {state['workload']} stands on GPUs: 2 of 2 replicas are ready\n"
        warm = deploy_all(state)
        assert warm.returncode == 0, warm.stderr
        assert "is warm beside the GPUs; no user was moved" in warm.stdout
        assert kubectl_phase(state) == "held"
        again = deploy_all(state)
        assert again.returncode == 0, again.stderr
        assert again.stdout.startswith(f"{state['workload']}-tpu stands warm already")
