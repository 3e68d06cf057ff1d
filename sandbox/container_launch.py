"""Turn a container's manifest into a local process: references, volumes, image, environment."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from sandbox import images, volumes
from sandbox.container_env import expand, references, resolve
from sandbox.container_types import Object, Prepared
from sandbox.faults import Faults
from sandbox.kube import KubeClient
from sandbox.log_files import log_file
from sandbox.pod_status import host_ip
from sandbox.supervisor import Supervisor

ACCELERATOR_LABELS = ("cloud.google.com/gke-accelerator", "cloud.google.com/gke-tpu-accelerator")
# What a container may know of this machine; everything else comes from its manifest.
INHERITED = ("LANG", "LC_ALL", "TZ", "TMPDIR")


@dataclass(frozen=True)
class Settings:
    """What every pod of a sandbox shares.

    `kubeconfig` makes a pod's access: (namespace, service account, pod's uid) → the file; KubeError if it is refused.
    """

    kube: KubeClient
    supervisor: Supervisor
    directory: Path
    speed: float
    faults: Faults
    faults_file: Path
    kubeconfig: Callable[[str, str, str], Awaitable[Path]] | None = None
    real_vllm: images.RealVllm | None = None

    @property
    def logs(self) -> Path:
        """The directory of the containers' logs."""
        return self.directory / "pods"


async def prepare(settings: Settings, pod: Object, node: Object, ip: str, container: Object) -> Prepared:
    """Resolve a container's references and return the process to start.

    Raises ConfigError if a ConfigMap, Secret or key that it needs is not there.
    """
    metadata = pod["metadata"]
    data = await _fetch(settings.kube, pod, container)
    texts = {key: {k: v.decode(errors="replace") for k, v in d.items()} for key, d in data.items()}
    given = resolve(container, {**pod, "status": {"podIP": ip, "hostIP": host_ip(node)}}, texts)
    mounts = volumes.place(pod, container, settings.directory / "volumes", data)
    run = images.launch(
        container.get("image", ""),
        [expand(word, given) for word in container.get("command") or []],
        [expand(word, given) for word in container.get("args") or []],
        pod_ip=ip,
        real=settings.real_vllm,
    )
    home = settings.directory / "volumes" / metadata["uid"] / "home"
    for folder in (home, settings.logs):
        folder.mkdir(parents=True, exist_ok=True)
    env = {name: os.environ[name] for name in INHERITED if name in os.environ}
    env |= {"HOME": str(home), "HOSTNAME": metadata["name"], "PYTHONUNBUFFERED": "1"}
    if run.engine:
        env |= given | _engine_env(settings, node, ip, container, mounts)
        argv = run.argv
    else:
        env |= {name: volumes.rewrite(value, mounts) for name, value in given.items()}
        argv = [volumes.rewrite(word, mounts) for word in run.argv]
        if settings.kubeconfig is not None and pod["spec"].get("automountServiceAccountToken", True):
            account = pod["spec"].get("serviceAccountName") or "default"
            env["KUBECONFIG"] = str(await settings.kubeconfig(metadata["namespace"], account, metadata["uid"]))
    # The project's own programs come first, whatever PATH the image would have had.
    env["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    log = log_file(settings.logs, metadata["namespace"], metadata["name"], container["name"])
    return Prepared(argv, env, home, log)


async def _fetch(kube: KubeClient, pod: Object, container: Object) -> dict[tuple[str, str], dict[str, bytes]]:
    found = {}
    for kind, name in sorted(references(container) | volumes.volume_references(pod)):
        item = await kube.get(kind, pod["metadata"]["namespace"], name)
        if item is not None:
            found[kind, name] = volumes.content_of(kind, item)
    return found


def _engine_env(
    settings: Settings, node: Object, ip: str, container: Object, mounts: dict[str, Path]
) -> dict[str, str]:
    labels = node["metadata"].get("labels") or {}
    accelerator = next((labels[label] for label in ACCELERATOR_LABELS if label in labels), "")
    if settings.real_vllm is not None:
        return {}  # what follows speaks to the simulated engine
    return {
        "PYTHONPATH": str(images.ROOT),
        "SANDBOX_POD_IP": ip,
        "SANDBOX_ACCELERATOR": accelerator,
        "SANDBOX_CHIPS": str(images.chips(container)),
        "SANDBOX_SPEED": f"{settings.speed:g}",
        "SANDBOX_FAULTS": str(settings.faults_file),
        "SANDBOX_MOUNTS": json.dumps({mount: str(path) for mount, path in mounts.items()}),
    }
