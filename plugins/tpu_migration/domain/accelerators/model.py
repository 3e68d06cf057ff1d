"""Describe TPU generations, slices and GPUs: sizes, GKE labels, topologies, prices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from tpu_migration.domain.prices import Claim, Price, find_price

TPU_RESOURCE = "google.com/tpu"
GPU_RESOURCE = "nvidia.com/gpu"
TPU_ACCELERATOR_LABEL = "cloud.google.com/gke-tpu-accelerator"
TPU_TOPOLOGY_LABEL = "cloud.google.com/gke-tpu-topology"
GPU_ACCELERATOR_LABEL = "cloud.google.com/gke-accelerator"

_Named = TypeVar("_Named", "Slice", "Gpu", "Generation")


class AcceleratorError(ValueError):
    """Say that the accelerators file is wrong, or that it has no such accelerator."""


@dataclass(frozen=True)
class Taint:
    key: str
    value: str
    effect: str

    def toleration(self) -> dict[str, str]:
        """Build the toleration that lets a pod onto a node with this taint."""
        return {"key": self.key, "operator": "Equal", "value": self.value, "effect": self.effect}


@dataclass(frozen=True)
class Machine:
    """Describe one machine type of a TPU generation; it has a whole slice or one host's share of a bigger one."""

    chips: int
    host_vcpus: int
    host_memory_gib: float
    topologies: tuple[str, ...]


@dataclass(frozen=True)
class Generation:
    """Describe the chip of one TPU generation, and what GKE sells of it.

    Units: GiB, GB/s, TFLOP/s and TOP/s a chip; None where no figure was read. `usable_hbm_gib` is what the
    runtime reports as its limit, `devices_per_chip` how many JAX devices (tensor-parallel ranks) a chip has.
    """

    name: str
    accelerator_label: str
    hbm_gib_per_chip: float
    usable_hbm_gib: float | None
    hbm_gb_per_s: float
    bf16_tflops: float
    int8_tops: float | None
    fp8_tflops: float | None
    devices_per_chip: int
    native_types: tuple[str, ...]
    quotas: Mapping[str, str | None]
    min_gke_version: str
    machines: Mapping[str, Machine]
    prices: tuple[Price, ...] = ()

    def hosts(self, machine_type: str, topology: str) -> int:
        """Count the hosts of a slice; raise AcceleratorError naming the legal topologies for an illegal one."""
        machine = self.machines.get(machine_type)
        if machine is None:
            raise AcceleratorError(
                f"TPU {self.name} has no machine type {machine_type!r}: use one of {', '.join(self.machines)}"
            )
        if topology not in machine.topologies:
            raise AcceleratorError(
                f"topology {topology!r} is not legal on {machine_type}: use one of {', '.join(machine.topologies)}"
            )
        return chips_of(topology) // machine.chips


def chips_of(topology: str) -> int:
    """Count the chips of a topology such as 2x4 (8)."""
    return math.prod(int(side) for side in topology.split("x"))


@dataclass(frozen=True)
class Slice:
    """Describe one single-host TPU slice, as a GKE node pool offers it.

    Units: GiB, GB/s a chip, BF16 TFLOP/s a chip, int8 TOP/s a chip.
    """

    name: str
    generation: str
    chips: int
    topology: str
    machine_type: str
    accelerator_label: str
    hbm_gib_per_chip: float
    usable_hbm_gib_per_chip: float
    hbm_gb_per_s: float
    bf16_tflops: float
    int8_tops: float | None
    devices_per_chip: int
    native_types: tuple[str, ...]
    quotas: Mapping[str, str | None]
    min_gke_version: str
    host_vcpus: int
    host_memory_gib: float
    prices: tuple[Price, ...] = ()
    resource: str = TPU_RESOURCE
    # GKE puts this taint on every TPU node by itself.
    taint: Taint = Taint("google.com/tpu", "present", "NoSchedule")

    @property
    def hbm_gib(self) -> float:
        """Sum the HBM of all chips, in GiB."""
        return self.hbm_gib_per_chip * self.chips

    @property
    def node_selectors(self) -> dict[str, str]:
        """Name both labels: GKE Warden rejects a TPU pod that gives only one."""
        return {TPU_ACCELERATOR_LABEL: self.accelerator_label, TPU_TOPOLOGY_LABEL: self.topology}

    def price(self, kind: str, region: str | None = None) -> Price | None:
        """Find the price of a chip for a pricing kind (on-demand, spot); None if the file has none."""
        return find_price(self.prices, kind, region)

    def usd_per_hour(self, kind: str, region: str | None = None) -> float | None:
        """Price the whole machine for an hour; None when that price is not known."""
        price = self.price(kind, region)
        if price is None or price.usd_per_chip_hour is None:
            return None
        return price.usd_per_chip_hour * self.chips


@dataclass(frozen=True)
class Gpu:
    """Describe one kind of GPU. Units as in `Slice`; `hbm_gib` is one GPU's, `machines` how many each type has."""

    name: str
    accelerator_labels: tuple[str, ...]
    machine_series: str
    hbm_gib: float
    usable_hbm_gib: float
    hbm_gb_per_s: float
    bf16_tflops: float
    int8_tops: float
    fp8_tflops: float | None
    native_fp8: bool
    quota: str
    machines: Mapping[str, int]
    prices: tuple[Price, ...] = ()
    resource: str = GPU_RESOURCE

    def price(self, kind: str, region: str | None = None) -> Price | None:
        """Find the price of one GPU, its share of the machine included."""
        return find_price(self.prices, kind, region)

    def usd_per_hour(self, kind: str, gpus: int, region: str | None = None) -> float | None:
        """Price `gpus` of these for an hour; None when that price is not known."""
        price = self.price(kind, region)
        if price is None or price.usd_per_chip_hour is None:
            return None
        return price.usd_per_chip_hour * gpus


@dataclass(frozen=True)
class Published:
    """Hold a throughput that somebody published for one machine and one model, in output tokens a second."""

    accelerator: str
    model: str
    tokens_per_s: float
    read: str
    source: str


@dataclass(frozen=True)
class Accelerators:
    """Hold the parsed file."""

    region: str
    currency: str
    read: str
    slices: tuple[Slice, ...]
    gpus: tuple[Gpu, ...]
    generations: tuple[Generation, ...] = ()
    claims: tuple[Claim, ...] = ()
    published: tuple[Published, ...] = ()

    def slice(self, name: str) -> Slice:
        """Find a slice by name, such as tpu-v5e-8; raise AcceleratorError naming those there are."""
        return _by_name(self.slices, name, "TPU slice")

    def gpu(self, name: str) -> Gpu:
        """Find a GPU by name, such as h100; raise AcceleratorError naming those there are."""
        return _by_name(self.gpus, name, "GPU")

    def generation(self, name: str) -> Generation:
        """Find a TPU generation by name, such as v5e; raise AcceleratorError naming those there are."""
        return _by_name(self.generations, name, "TPU generation")

    def gpu_by_label(self, label: str | None) -> Gpu | None:
        """Find a GPU by its cloud.google.com/gke-accelerator value; None for one that is not in the file."""
        return next((gpu for gpu in self.gpus if label in gpu.accelerator_labels), None)


def _by_name(known: Iterable[_Named], name: str, what: str) -> _Named:
    found = {item.name: item for item in known}
    if name not in found:
        raise AcceleratorError(f"unknown {what} {name!r}: use one of {', '.join(sorted(found))}")
    return found[name]
