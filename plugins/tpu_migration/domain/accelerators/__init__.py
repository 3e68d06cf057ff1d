"""Know accelerators: TPU slices and GPUs, what GKE calls them, and what they cost; dated data, pure."""

from tpu_migration.domain.accelerators.model import (
    GPU_ACCELERATOR_LABEL,
    GPU_RESOURCE,
    TPU_ACCELERATOR_LABEL,
    TPU_RESOURCE,
    TPU_TOPOLOGY_LABEL,
    AcceleratorError,
    Accelerators,
    Generation,
    Gpu,
    Machine,
    Published,
    Slice,
    Taint,
    chips_of,
)
from tpu_migration.domain.accelerators.parse import parse_accelerators

__all__ = [
    "GPU_ACCELERATOR_LABEL",
    "GPU_RESOURCE",
    "TPU_ACCELERATOR_LABEL",
    "TPU_RESOURCE",
    "TPU_TOPOLOGY_LABEL",
    "AcceleratorError",
    "Accelerators",
    "Generation",
    "Gpu",
    "Machine",
    "Published",
    "Slice",
    "Taint",
    "chips_of",
    "parse_accelerators",
]
