"""Build GPU workloads for the translation's tests, in the styles that people write them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from tpu_migration.domain.accelerators import Slice, parse_accelerators
from tpu_migration.domain.translation import Translation, translate
from tpu_migration.domain.translation.arguments import CommandLine
from tpu_migration.domain.translation.launch import locate
from tpu_migration.domain.translation.variables import Configs

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
IMAGE = "vllm/vllm-tpu:v0.32.0"


def slice_of(name: str = "tpu-v5e-8") -> Slice:
    return parse_accelerators((ROOT / "include" / "accelerators.yaml").read_text()).slice(name)


def deployment(
    args: list[str] | None = None,
    command: list[str] | None = None,
    *,
    name: str = "chat",
    env: list[dict[str, Any]] | None = None,
    labels: dict[str, str] | None = None,
    pod: dict[str, Any] | None = None,
    container: dict[str, Any] | None = None,
    replicas: int = 2,
) -> dict[str, Any]:
    """Build a GPU Deployment; `pod` and `container` add to the specs."""
    labels = labels or {"app": name}
    server: dict[str, Any] = {
        "name": "vllm",
        "image": "vllm/vllm-openai:v0.11.0",
        "resources": {"limits": {"nvidia.com/gpu": "1"}, "requests": {"nvidia.com/gpu": "1"}},
        **(container or {}),
    }
    if command is not None:
        server["command"] = command
    if args is not None:
        server["args"] = args
    if env is not None:
        server["env"] = env
    spec: dict[str, Any] = {
        "nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        **copy.deepcopy(pod or {}),
    }
    spec["containers"] = [server, *spec.get("containers", [])]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "llm", "labels": dict(labels)},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": dict(labels)},
            "template": {"metadata": {"labels": dict(labels)}, "spec": spec},
        },
    }


def service(name: str = "chat", selector: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "llm"},
        "spec": {"selector": selector or {"app": name}, "ports": [{"port": 80, "targetPort": 8000}], **spec},
    }


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "llm"}, "data": data}


def run(*objects: dict[str, Any], target: str = "tpu-v5e-8", **options: Any) -> Translation:
    return translate(list(objects), target=slice_of(target), image=IMAGE, **options)


def only(result: Translation, kind: str) -> dict[str, Any]:
    found = [manifest for manifest in result.manifests if manifest["kind"] == kind]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]


def pod_of(result: Translation) -> dict[str, Any]:
    spec: dict[str, Any] = only(result, "Deployment")["spec"]["template"]["spec"]
    return spec


def server_of(result: Translation) -> dict[str, Any]:
    return next(c for c in pod_of(result)["containers"] if "google.com/tpu" in c["resources"]["limits"])


def line_of(result: Translation) -> CommandLine:
    """Parse the target's command line as the server would, ConfigMaps of the target included."""
    configs = {m["metadata"]["name"]: m for m in result.manifests if m["kind"] == "ConfigMap"}
    line = locate(server_of(result), pod_of(result), Configs(configs), "target").line
    assert line is not None
    return line


def env_of(result: Translation) -> dict[str, Any]:
    return {entry["name"]: entry.get("value") for entry in server_of(result)["env"]}
