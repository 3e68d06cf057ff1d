"""Know the machine types that the sandbox's zones sell.

Chips, labels and topologies are those of shared facts (vllm-on-tpu, "Slices on GKE"); vCPU and memory
are the public figures of Compute Engine's machine types.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """One machine type: what it has and how GKE labels a node of it."""

    name: str
    cpus: int
    memory_gib: int
    resource: str = ""  # extended resource that its nodes offer: google.com/tpu or nvidia.com/gpu
    chips: int = 0
    accelerator: str = ""  # value of the accelerator label
    quota: str = ""  # Compute Engine's quota metric, counted in chips
    topologies: tuple[str, ...] = ()  # single host
    multi_host_topologies: tuple[str, ...] = ()

    @property
    def is_tpu(self) -> bool:
        return self.resource == "google.com/tpu"

    @property
    def is_gpu(self) -> bool:
        return self.resource == "nvidia.com/gpu"


def chips_of(topology: str) -> int:
    """Return the chips of a topology such as "2x4" (8)."""
    return math.prod(int(edge) for edge in topology.split("x"))


_TPU = "google.com/tpu"
_GPU = "nvidia.com/gpu"
_V5E = ("tpu-v5-lite-podslice", "TPU_LITE_PODSLICE_V5")
_V6E = ("tpu-v6e-slice", "TPUS_PER_TPU_FAMILY")
_V7X = ("tpu7x", "TPUS_PER_TPU_FAMILY")
_BIG = ("4x4", "4x8", "8x8", "8x16", "16x16")
_H100 = ("nvidia-h100-80gb", "NVIDIA_H100_GPUS")
_L4 = ("nvidia-l4", "NVIDIA_L4_GPUS")

MACHINES = {
    machine.name: machine
    for machine in (
        Machine("ct5lp-hightpu-1t", 24, 48, _TPU, 1, *_V5E, ("1x1",)),
        Machine("ct5lp-hightpu-4t", 112, 192, _TPU, 4, *_V5E, ("2x2",), ("2x4", *_BIG)),
        Machine("ct5lp-hightpu-8t", 224, 384, _TPU, 8, *_V5E, ("2x4",)),
        Machine("ct6e-standard-1t", 44, 176, _TPU, 1, *_V6E, ("1x1",)),
        Machine("ct6e-standard-4t", 180, 720, _TPU, 4, *_V6E, ("2x2",), ("2x4", *_BIG)),
        Machine("ct6e-standard-8t", 180, 1440, _TPU, 8, *_V6E, ("2x4",)),
        Machine("tpu7x-standard-1t", 56, 240, _TPU, 1, *_V7X, ("1x1x1",)),
        Machine("tpu7x-standard-4t", 224, 960, _TPU, 4, *_V7X, ("2x2x1",), ("2x2x2", "2x2x4", "4x4x4")),
        Machine("a3-highgpu-1g", 26, 234, _GPU, 1, *_H100),
        Machine("a3-highgpu-2g", 52, 468, _GPU, 2, *_H100),
        Machine("a3-highgpu-4g", 104, 936, _GPU, 4, *_H100),
        Machine("a3-highgpu-8g", 208, 1872, _GPU, 8, *_H100),
        Machine("g2-standard-4", 4, 16, _GPU, 1, *_L4),
        Machine("g2-standard-8", 8, 32, _GPU, 1, *_L4),
        Machine("g2-standard-12", 12, 48, _GPU, 1, *_L4),
        Machine("g2-standard-16", 16, 64, _GPU, 1, *_L4),
        Machine("g2-standard-24", 24, 96, _GPU, 2, *_L4),
        Machine("g2-standard-48", 48, 192, _GPU, 4, *_L4),
        Machine("g2-standard-96", 96, 384, _GPU, 8, *_L4),
        Machine("e2-standard-4", 4, 16),
        Machine("e2-standard-8", 8, 32),
        Machine("e2-standard-16", 16, 64),
        Machine("n2-standard-8", 8, 32),
        Machine("n2-standard-16", 16, 64),
    )
}
