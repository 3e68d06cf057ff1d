"""Measure how long the translation takes for files of 1,000 documents."""

from __future__ import annotations

from typing import Any

from tests.bench.figure import Figure, best_cpu_s
from tests.unit.translation_builders import IMAGE, config_map, deployment, service, slice_of
from tpu_migration.domain.translation import dump, translate_documents

LIMIT_S = 3.0
RUNS = 3


def mixed(workloads: int = 100, others: int = 900) -> str:
    """Write a file of vLLM workloads, every other in a shell, among Services, ConfigMaps and other programs."""
    documents: list[dict[str, Any]] = []
    for index in range(workloads):
        documents.append(_workload(index))
    for index in range(others):
        name = f"other-{index}"
        documents.append(
            [
                config_map(name, text="line\n" * 10, model="none"),
                service(name),
                deployment(["--port=80"], ["serve-pages"], name=name, container={"image": "nginx:1", "resources": {}}),
            ][index % 3]
        )
    return dump(documents)


def _workload(index: int) -> dict[str, Any]:
    name = f"chat-{index}"
    flags = ["--tensor-parallel-size=2", "--max-model-len=8192", "--swap-space=4", "--enforce-eager"]
    env = [{"name": "NCCL_DEBUG", "value": "INFO"}, {"name": "HF_HOME", "value": "/cache"}]
    if index % 2:
        script = f"set -e\nexec vllm serve Qwen/Qwen3-8B {' '.join(flags)}\n"
        return deployment(command=["bash", "-c", script], name=name, env=env)
    return deployment(["--model=Qwen/Qwen3-8B", *flags], name=name, env=env)


def mixed_documents() -> Figure:
    """Translate 100 vLLM workloads among 900 other documents."""
    return _figure("translate_mixed_1000", mixed())


def vllm_workloads() -> Figure:
    """Translate 1,000 vLLM workloads."""
    return _figure("translate_workloads_1000", mixed(1000, 0))


def _figure(name: str, text: str) -> Figure:
    target = slice_of()

    def run() -> None:
        translate_documents(text, target=target, image=IMAGE)

    return Figure(name, best_cpu_s(run, RUNS), "s", LIMIT_S)
