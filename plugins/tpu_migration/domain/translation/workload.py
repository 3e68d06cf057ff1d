"""Find the vLLM workload among objects, and describe it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tpu_migration.domain.accelerators import GPU_ACCELERATOR_LABEL
from tpu_migration.domain.translation import launch as launching
from tpu_migration.domain.translation.arguments import CommandLine
from tpu_migration.domain.translation.model import InputError, Manifest, Source
from tpu_migration.domain.translation.objects import name_of
from tpu_migration.domain.translation.pod import gpu_count, tpu_count
from tpu_migration.domain.translation.rules import port_of
from tpu_migration.domain.translation.variables import Configs
from tpu_migration.domain.values import copied

# Why a workload of another kind than Deployment cannot move as it is.
_GROUP = "each replica spans several hosts, and a slice here is one host"
_RAY = "Ray spreads it over hosts of its own, and a slice here is one host"
_KSERVE = "its operator writes the Deployment, and would put a GPU back"
WHY_REFUSED = {
    "StatefulSet": "its pods have identities and volumes of their own",
    "DaemonSet": "it runs wherever there is a GPU node",
    "ReplicaSet": "nothing rolls it out",
    "Pod": "nothing makes it again when its node goes",
    "Job": "it is a batch that ends",
    "CronJob": "it is a batch that ends",
    "LeaderWorkerSet": _GROUP,
    "RayService": _RAY,
    "RayCluster": _RAY,
    "RayJob": _RAY,
    "Rollout": "its own controller shifts the traffic",
    "InferenceService": _KSERVE,
    "LLMInferenceService": _KSERVE,
}
# These say that they serve with vLLM without writing a container that does.
_BY_WORD = {"RayService", "RayCluster", "RayJob", "InferenceService", "LLMInferenceService"}
_VLLM_WORD = re.compile(r"vllm|ray[-._]llm|ray\.serve\.llm", re.I)
_WITHOUT_PODS = {"Service", "ConfigMap", "Secret", "CustomResourceDefinition", "List"}
_SERVER = re.compile(r"vllm(\s+|.{1,4})serve|vllm[./]entrypoints")
_FOREIGN_IMAGE = re.compile(r"router|gateway|exporter|syncer|benchmark|toolbox", re.I)
CONTAINERS = "spec.template.spec.containers"


def pod_specs(document: Manifest) -> list[Manifest]:
    """List the pod specs in an object: of a workload its own, of any other kind whatever holds containers."""
    spec = document.get("spec")
    if document.get("kind") in {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"}:
        return [((spec or {}).get("template") or {}).get("spec") or {}]
    return [] if document.get("kind") in _WITHOUT_PODS else list(_holders(spec))


def _holders(value: Any) -> Iterator[Manifest]:
    """Find mappings with a list of containers, such as a LeaderWorkerSet's two templates or a Ray cluster's groups."""
    if isinstance(value, Mapping):
        containers = value.get("containers")
        if isinstance(containers, list) and containers and all(isinstance(item, Mapping) for item in containers):
            yield dict(value)
            return
        for inner in value.values():
            yield from _holders(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _holders(inner)


def serves_vllm(container: Manifest) -> bool:
    """Tell whether a container runs a vLLM server, by what it starts, else by its image."""
    argv = " ".join(str(part) for part in [*(container.get("command") or []), *(container.get("args") or [])])
    if _SERVER.search(argv):
        return True
    image = str(container.get("image", "")).split("@")[0].rsplit(":", 1)[0].lower()
    return "vllm" in image and not _FOREIGN_IMAGE.search(image) and bool(gpu_count(container) or tpu_count(container))


def vllm_container(pod: Manifest) -> int | None:
    """Find the container that runs vLLM: among several the one with an accelerator; None where there is none."""
    containers = pod.get("containers") or []
    found = [index for index, container in enumerate(containers) if serves_vllm(container)]
    with_chips = [index for index in found if gpu_count(containers[index]) or tpu_count(containers[index])]
    return next(iter(with_chips or found), None)


def is_tpu(document: Manifest) -> bool:
    """Tell whether a workload asks for TPU chips already."""
    return any(tpu_count(container) for pod in pod_specs(document) for container in pod.get("containers") or [])


def vllm_workloads(objects: Sequence[Manifest]) -> list[Manifest]:
    """List every object that runs vLLM, of any kind."""
    return [
        document
        for document in objects
        if not (document.get("metadata") or {}).get("ownerReferences")
        and (any(vllm_container(pod) is not None for pod in pod_specs(document)) or _says_vllm(document))
    ]


def _says_vllm(document: Manifest) -> bool:
    return document.get("kind") in _BY_WORD and bool(_VLLM_WORD.search(str(document.get("spec"))))


def find_vllm_workload(objects: Sequence[Manifest]) -> Manifest:
    """Find the one workload to be moved: on GPUs if there is one, else what is on TPUs already.

    Raises InputError where there is none, or more than one.
    """
    found = vllm_workloads(objects)
    if not found:
        raise InputError("no vLLM workload: no container runs `vllm serve` or its API server")
    moving = [document for document in found if not is_tpu(document)] or found
    if len(moving) > 1:
        names = ", ".join(f"{document.get('kind')} {name_of(document)}" for document in moving)
        raise InputError(f"several vLLM workloads ({names}): give one at a time")
    return moving[0]


def config_maps(objects: Iterable[Manifest], config: Mapping[str, Manifest] | None) -> dict[str, Manifest]:
    """Collect ConfigMaps by name from the objects and from those given apart."""
    found = {name_of(document): document for document in objects if document.get("kind") == "ConfigMap"}
    return {**found, **(config or {})}


def _open(deployment: Manifest, configmaps: Mapping[str, Manifest]) -> tuple[Manifest, int, launching.Launch]:
    pods = pod_specs(deployment)
    pod = copied(pods[0]) if pods else {}
    index = vllm_container(pod)
    if index is None:
        raise InputError(f"{deployment.get('kind')} {name_of(deployment)} has no vLLM container")
    container = pod["containers"][index]
    launching.emit_command(container)
    return pod, index, launching.locate(container, pod, Configs(configmaps), f"{CONTAINERS}[{index}]")


def command_line(deployment: Manifest, configmaps: Mapping[str, Manifest] | None = None) -> CommandLine | None:
    """Read the arguments of a workload's vLLM; None where they are out of sight.

    Raises InputError if it has no vLLM container.
    """
    return _open(deployment, configmaps or {})[2].line


def served_model_names(deployment: Manifest, configmaps: Mapping[str, Manifest] | None = None) -> list[str]:
    """List the names that the server answers to: --served-model-name, else the model id.

    Raises InputError where a name comes from a Secret or a ConfigMap that was not given.
    """
    _, _, launch = _open(deployment, configmaps or {})
    names = launch.line.served_names() if launch.line else []
    known = [name for name in names if name is not None]
    if not known or len(known) != len(names):
        raise InputError(f"Deployment {name_of(deployment)}: the names that clients ask for are out of sight")
    return known


def describe_source(deployment: Manifest, configmaps: Mapping[str, Manifest] | None = None) -> Source:
    """Describe a vLLM Deployment. Raises InputError if it has no vLLM container."""
    pod, index, launch = _open(deployment, configmaps or {})
    line = launch.line
    spec = deployment.get("spec") or {}
    replicas = spec.get("replicas")
    names = [name for name in (line.served_names() if line else []) if name is not None]
    speculative = line is not None and any(option.name.startswith(("spec-", "speculative-")) for option in line.options)
    return Source(
        name=name_of(deployment),
        namespace=(deployment.get("metadata") or {}).get("namespace"),
        container=index,
        accelerator=accelerator_of(pod),
        chips=gpu_count(pod["containers"][index]) or tpu_count(pod["containers"][index]),
        model=line.model()[1] if line else None,
        served_names=tuple(names),
        port=port_of(line) if line else 8000,
        max_model_len=line.integer("max-model-len") if line else None,
        max_num_seqs=line.integer("max-num-seqs") if line else None,
        max_num_batched_tokens=line.integer("max-num-batched-tokens") if line else None,
        quantization=line.value("quantization") if line else None,
        speculative=speculative,
        lora=bool(line and any(not option.negated for option in line.all("enable-lora"))),
        replicas=1 if replicas is None else int(replicas),
    )


def accelerator_of(pod: Manifest) -> str | None:
    """Read a pod's accelerator from its node selector, its affinity or its compute class."""
    wanted = (GPU_ACCELERATOR_LABEL, "cloud.google.com/gke-tpu-accelerator", "nvidia.com/gpu.product")
    selector = dict(pod.get("nodeSelector") or {})
    affinity = (pod.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or []:
        for expression in term.get("matchExpressions") or []:
            if expression.get("operator") == "In" and expression.get("values"):
                selector.setdefault(expression.get("key"), expression["values"][0])
    found = next((str(selector[key]) for key in wanted if key in selector), None)
    if found is None and (kind := selector.get("cloud.google.com/compute-class")):
        match = re.search(r"(h100|h200|a100|l4|b200)", str(kind), re.I)
        found = (
            {
                "h100": "nvidia-h100-80gb",
                "a100": "nvidia-tesla-a100",
                "l4": "nvidia-l4",
                "h200": "nvidia-h200-141gb",
                "b200": "nvidia-b200",
            }.get(match[1].lower())
            if match
            else None
        )
    return found
