"""Translate a pod template: containers, side-cars, volumes, resources."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tpu_migration.domain.accelerators import GPU_RESOURCE, TPU_RESOURCE, Slice
from tpu_migration.domain.translation import environment
from tpu_migration.domain.translation.model import Manifest, Notes
from tpu_migration.domain.translation.variables import Configs

CACHE_VOLUME = "xla-cache"
CACHE_SIZE = "20Gi"
# The rest of the host is the system's and the side-cars'.
HOST_SHARE = 0.85
LITTLE_MEMORY_GIB = 64
# A node pool's default boot disk holds 100 GiB, images included; TPU machines have no local SSD.
BOOT_DISK_GIB = 100

_GPU_RESOURCE = re.compile(
    r"(.*\.)?nvidia\.com/.*|amd\.com/gpu|networking\.gke\.io\.networks/(rdma|gpu|vpc\d|tcpx).*|.*rdma.*"
)
_GPU_HELPER = re.compile(
    r"tcpxo?|tcpgpudmarxd|fastrak|nccl|nvidia|cuda|dcgm|"
    r"gpu-?direct|(^|[-/ ])gib([-:/ ]|$)|gpu-(driver|feature|device)|driver-installer",
    re.I,
)
_GPU_PATHS = re.compile(r"nvidia|cuda|aperture|tcpx|/gib(/|$)|nccl", re.I)
_GPU_ANNOTATIONS = re.compile(
    r"devices\.gke\.io/container\.tcpx.*|networking\.gke\.io/(interfaces|default-interface)|(.*\.)?nvidia\.com/.*"
)
_CACHE_MOUNT = re.compile(r"huggingface|\.cache|hf[-_]?(home|cache)|transformers", re.I)
_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "m": 1e-3}


def gpu_count(container: Manifest) -> int:
    """Count the GPUs that a container asks for."""
    return next((n for name, n in _amounts(container) if name == GPU_RESOURCE or name.startswith("nvidia.com/mig-")), 0)


def tpu_count(container: Manifest) -> int:
    """Count the TPU chips that a container asks for."""
    return max((number for name, number in _amounts(container) if name == TPU_RESOURCE), default=0)


def _amounts(container: Manifest) -> Iterator[tuple[str, int]]:
    """List the accelerators asked for, limits first; tolerant, for it is asked of kinds whose shape is not known."""
    resources = container.get("resources")
    for part in ("limits", "requests"):
        section = resources.get(part) if isinstance(resources, Mapping) else None
        for name, amount in section.items() if isinstance(section, Mapping) else ():
            if str(name).startswith(("nvidia.com/", "google.com/tpu")) and (number := quantity(amount)) == number:
                yield str(name), int(number)


def quantity(text: Any) -> float:
    """Read a Kubernetes quantity in its base unit (bytes, cores); NaN for what is none."""
    match = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([kMGTm]|[KMGT]i)?\s*", str(text))
    return float(match[1]) * _UNITS[match[2] or ""] if match else float("nan")


def drop_gpu_helpers(pod: Manifest, serving: Manifest, notes: Notes, path: str) -> None:
    """Drop the containers that only serve GPUs (drivers, TCPXO, exporters); keep every other one."""
    for kind in ("initContainers", "containers"):
        kept = []
        for container in pod.get(kind) or []:
            where = f"{path}.{kind} {container.get('name')}"
            name = f"{container.get('name')} {str(container.get('image', '')).split('@')[0]}"
            if container is serving:
                kept.append(container)
            elif _GPU_HELPER.search(name) and "vllm" not in name.lower():
                notes.change(where, container.get("image"), None, "it serves GPUs only")
            elif gpu_count(container) and kind == "initContainers" and container.get("restartPolicy") != "Always":
                notes.change(where, container.get("image"), None, "an init container that needs a GPU")
                notes.warn(where, "an init container that used a GPU is gone", "see that nothing waits for its work")
            else:
                if gpu_count(container):
                    message = "another container of the pod needs a GPU: a TPU slice serves one program only"
                    notes.block(where, message, "move it to a workload of its own")
                kept.append(container)
        if kind in pod:
            pod[kind] = kept
            if not kept and kind == "initContainers":
                del pod[kind]


def clean_containers(pod: Manifest, configs: Configs, notes: Notes, path: str, serving: Manifest) -> None:
    """Take GPU resources, variables and mounts off every container."""
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(pod.get(kind) or []):
            where = f"{path}.{kind}[{index}]"
            _strip_resources(container, notes, where)
            environment.rewrite(container, configs, notes, where, serving=container is serving)
            kept = []
            for mount in container.get("volumeMounts") or []:
                if _GPU_PATHS.search(str(mount.get("mountPath"))) or _GPU_PATHS.search(str(mount.get("name"))):
                    notes.change(f"{where}.volumeMounts", mount, None, "the GPU's driver and libraries")
                else:
                    kept.append(mount)
            if "volumeMounts" in container:
                container["volumeMounts"] = kept


def _strip_resources(container: Manifest, notes: Notes, path: str) -> None:
    resources = container.get("resources") or {}
    for part in ("limits", "requests"):
        for name in [name for name in resources.get(part) or {} if _GPU_RESOURCE.fullmatch(name)]:
            notes.change(f"{path}.resources.{part} {name}", resources[part].pop(name), None, "there is no GPU")
    if "claims" in resources:
        notes.change(f"{path}.resources.claims", resources.pop("claims"), None, "device claims are for GPUs")


def used_volumes(pod: Manifest) -> set[str]:
    """Name the volumes that some container mounts."""
    return {
        str(mount.get("name"))
        for kind in ("initContainers", "containers")
        for container in pod.get(kind) or []
        for mount in [*(container.get("volumeMounts") or []), *(container.get("volumeDevices") or [])]
    }


def drop_volumes(pod: Manifest, used_before: set[str], notes: Notes, path: str) -> None:
    """Drop the volumes that only removed mounts used."""
    used = used_volumes(pod)
    kept = []
    for volume in pod.get("volumes") or []:
        name = str(volume.get("name"))
        host = str((volume.get("hostPath") or {}).get("path", ""))
        if name not in used and (name in used_before or _GPU_PATHS.search(host)):
            notes.change(f"{path}.volumes {name}", volume, None, "only GPU containers or mounts used it")
        else:
            kept.append(volume)
    if "volumes" in pod:
        pod["volumes"] = kept


def tpu_resources(container: Manifest, target: Slice, notes: Notes, path: str) -> None:
    """Ask for the whole slice, and for no more of the host than it has."""
    resources = container.setdefault("resources", {})
    host = {"cpu": float(target.host_vcpus), "memory": target.host_memory_gib * 2**30}
    for part in ("requests", "limits"):
        section = resources.setdefault(part, {})
        notes.change(
            f"{path}.resources.{part} {target.resource}", None, target.chips, "all chips; requests equal limits"
        )
        section[target.resource] = target.chips
        for name, whole in host.items():
            most = whole * HOST_SHARE
            if name in section and quantity(section[name]) > most:
                new = str(int(most)) if name == "cpu" else f"{int(most / 2**30)}Gi"
                notes.change(
                    f"{path}.resources.{part} {name}", section[name], new, f"a {target.machine_type} has no more"
                )
                section[name] = new
    limit = quantity(resources["limits"].get("memory", "nan"))
    if limit < LITTLE_MEMORY_GIB * 2**30:
        notes.warn(
            f"{path}.resources.limits memory",
            f"{resources['limits']['memory']} of host memory is little for loading weights and compiling",
            f"the pod has the {target.host_memory_gib:.0f} GiB of {target.machine_type} to itself: raise it",
        )
    for part in ("requests", "limits"):
        disk = resources[part].get("ephemeral-storage")
        if disk is not None and quantity(disk) > (BOOT_DISK_GIB - 20) * 2**30:
            notes.warn(
                f"{path}.resources.{part} ephemeral-storage",
                f"{disk} does not fit a node's default boot disk of {BOOT_DISK_GIB} GiB",
                "give the TPU node pool a boot disk that is larger",
            )


def cache_volume(pod: Manifest, container: Manifest, configs: Configs, notes: Notes, path: str) -> None:
    """Keep compiled programs on a volume, so that a container that restarts does not compile again."""
    mounts = container.setdefault("volumeMounts", [])
    given = next(
        (str(entry.get("value")) for entry in container.get("env") or [] if entry.get("name") == "VLLM_XLA_CACHE_PATH"),
        None,
    )
    inside = [m for m in mounts if given and f"{given}/".startswith(f"{str(m.get('mountPath', '')).rstrip('/')}/")]
    why = "compiled programs survive a restart of the container: a warm start is 2 to 4 times faster"
    if given and inside:
        return
    location = given if given and given.startswith("/") else environment.XLA_CACHE_PATH
    volumes = pod.setdefault("volumes", [])
    taken = {volume.get("name") for volume in volumes}
    name = CACHE_VOLUME
    while name in taken:
        name += "-tpu"
    volumes.append({"name": name, "emptyDir": {"sizeLimit": CACHE_SIZE}})
    mounts.append({"name": name, "mountPath": location})
    notes.change(f"spec.template.spec.volumes {name}", None, volumes[-1], why)
    notes.change(f"{path}.volumeMounts {name}", None, location, why)
    environment.put(container, "VLLM_XLA_CACHE_PATH", location, why, notes, path)


def check_claims(pod: Manifest, known: Mapping[str, Manifest], notes: Notes, path: str) -> None:
    """Find persistent volumes that the GPU pods hold and a pod on another node would wait for for ever."""
    for volume in pod.get("volumes") or []:
        name = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if name is None:
            continue
        where = f"{path}.volumes {volume.get('name')}"
        modes = (known.get(name, {}).get("spec") or {}).get("accessModes") or []
        single = modes and set(modes) <= {"ReadWriteOnce", "ReadWriteOncePod"}
        if not single:
            if name not in known:
                message = f"if the claim {name} is ReadWriteOnce, the GPU node holds it and the TPU pod waits for ever"
                notes.warn(where, message, "give the TPU a claim that several nodes can mount, or a bucket")
        elif _only_cache(pod, str(volume.get("name"))):
            old = {"claimName": name}
            volume.pop("persistentVolumeClaim")
            volume["emptyDir"] = {}
            notes.change(where, old, {}, f"the claim {name} is {modes[0]} and held by the GPU's node")
            notes.warn(where, "the download cache starts empty on each TPU node", "expect the first start to download")
        else:
            message = f"the claim {name} is {modes[0]}: the GPU's node holds it, so no TPU pod can mount it"
            notes.block(where, message, "put the weights where several nodes can read them")


def _only_cache(pod: Manifest, volume: str) -> bool:
    paths = [
        str(mount.get("mountPath"))
        for kind in ("initContainers", "containers")
        for container in pod.get(kind) or []
        for mount in container.get("volumeMounts") or []
        if mount.get("name") == volume
    ]
    return all(_CACHE_MOUNT.search(path) for path in paths)


def clean_annotations(template: Manifest, notes: Notes) -> None:
    """Drop pod annotations that wire GPU networks, or that record a restart of the source."""
    annotations = (template.get("metadata") or {}).get("annotations") or {}
    for key in list(annotations):
        if _GPU_ANNOTATIONS.fullmatch(key) or key == "kubectl.kubernetes.io/restartedAt":
            notes.change(
                f"spec.template.metadata.annotations {key}", annotations.pop(key), None, "it is the GPU pods' own"
            )


def point_to_copies(pod: Manifest, copies: dict[str, str]) -> None:
    """Make a pod use the target's copies of ConfigMaps."""

    def point(reference: Any) -> None:
        if isinstance(reference, dict) and reference.get("name") in copies:
            reference["name"] = copies[str(reference["name"])]

    for kind in ("initContainers", "containers"):
        for container in pod.get(kind) or []:
            for source in container.get("envFrom") or []:
                point(source.get("configMapRef"))
            for entry in container.get("env") or []:
                point((entry.get("valueFrom") or {}).get("configMapKeyRef"))
    for volume in pod.get("volumes") or []:
        point(volume.get("configMap"))
        for source in (volume.get("projected") or {}).get("sources") or []:
            point(source.get("configMap"))
