"""Describe TPU generations, slices and GPUs: sizes, GKE labels, topologies, prices; parsed from accelerators.yaml."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import yaml

from tpu_migration.domain.prices import Claim, Price, PriceError, Prices, find_price, override, parse_prices

TPU_RESOURCE = "google.com/tpu"
GPU_RESOURCE = "nvidia.com/gpu"
TPU_ACCELERATOR_LABEL = "cloud.google.com/gke-tpu-accelerator"
TPU_TOPOLOGY_LABEL = "cloud.google.com/gke-tpu-topology"
GPU_ACCELERATOR_LABEL = "cloud.google.com/gke-accelerator"

_T = TypeVar("_T")
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


_SECTIONS = {"schemaVersion", "region", "currency", "read", "prices", "claims", "published"} | {
    "generations",
    "slices",
    "gpus",
}


def parse_accelerators(text: str, own_prices: str | None = None) -> Accelerators:
    """Parse the text of accelerators.yaml, and of a user's own price file (`prices: …`) that overrides it.

    Raises AcceleratorError on unknown, missing or senseless entries.
    """
    top = _load(text, "accelerators", _SECTIONS)
    if top.get("schemaVersion") != 1:
        raise AcceleratorError(f"accelerators: schemaVersion {top.get('schemaVersion')!r} is not 1")
    region = str(top.get("region", ""))
    try:
        prices = parse_prices(top.get("prices"), region)
        if own_prices is not None:
            own = _load(own_prices, "price file", {"schemaVersion", "region", "prices"})
            prices = override(prices, parse_prices(own.get("prices"), str(own.get("region") or region), "price file"))
    except PriceError as error:
        raise AcceleratorError(str(error)) from error
    generations = _generations(top, prices)
    return Accelerators(
        region=region,
        currency=str(top.get("currency", "")),
        read=str(top.get("read", "")),
        slices=_slices(top, {generation.name: generation for generation in generations}),
        gpus=_gpus(top, prices),
        generations=generations,
        claims=_listed(top, "claims", Claim),
        published=_listed(top, "published", Published),
    )


def _generations(top: Mapping[str, Any], prices: Prices) -> tuple[Generation, ...]:
    built = []
    for name, where, entry in _entries(top, "generations", Generation):
        machines = {}
        for machine_type, raw in _mapping(entry.get("machines"), f"{where}.machines").items():
            place = f"{where}.machines.{machine_type}"
            machine = dict(_mapping(raw, place))
            machine["topologies"] = tuple(machine.get("topologies", ()))
            machines[str(machine_type)] = _build(Machine, machine, place)
            for topology in machines[str(machine_type)].topologies:
                if chips_of(topology) % machines[str(machine_type)].chips:
                    raise AcceleratorError(f"{place}: topology {topology} is no whole number of hosts")
        entry |= {"machines": machines, "native_types": tuple(entry.get("native_types", ()))}
        built.append(_build(Generation, {**entry, "name": name, "prices": _sheet(entry, prices, where)}, where))
    return tuple(built)


def _slices(top: Mapping[str, Any], generations: Mapping[str, Generation]) -> tuple[Slice, ...]:
    built = []
    for name, raw in _mapping(top.get("slices"), "slices").items():
        where = f"slices.{name}"
        entry = _mapping(raw, where)
        _only(entry, {"generation", "machine_type", "topology"}, where)
        generation = generations.get(str(entry.get("generation")))
        if generation is None:
            raise AcceleratorError(f"{where}: generation {entry.get('generation')!r} is no entry of `generations`")
        machine_type, topology = str(entry.get("machine_type")), str(entry.get("topology"))
        try:
            hosts = generation.hosts(machine_type, topology)
        except AcceleratorError as error:
            raise AcceleratorError(f"{where}: {error}") from error
        if hosts != 1 or generation.usable_hbm_gib is None:
            raise AcceleratorError(f"{where}: a target is a slice of one host with known usable HBM, not {hosts} hosts")
        machine = generation.machines[machine_type]
        values = {
            field.name: getattr(generation, field.name)
            for field in fields(Slice)
            if field.name != "name" and hasattr(generation, field.name)
        }
        values |= {"name": str(name), "generation": generation.name, "chips": machine.chips, "topology": topology}
        values |= {"machine_type": machine_type, "usable_hbm_gib_per_chip": generation.usable_hbm_gib}
        values |= {"host_vcpus": machine.host_vcpus, "host_memory_gib": machine.host_memory_gib}
        built.append(_build(Slice, values, where))
    return tuple(built)


def _gpus(top: Mapping[str, Any], prices: Prices) -> tuple[Gpu, ...]:
    built = []
    for name, where, entry in _entries(top, "gpus", Gpu, reserved={"resource"}):
        entry["accelerator_labels"] = tuple(entry.get("accelerator_labels", ()))
        built.append(_build(Gpu, {**entry, "name": name, "prices": _sheet(entry, prices, where)}, where))
    return tuple(built)


def _sheet(entry: Mapping[str, Any], prices: Prices, where: str) -> tuple[Price, ...]:
    if entry.get("prices") not in prices:
        raise AcceleratorError(f"{where}: prices {entry.get('prices')!r} is no entry of `prices`")
    return prices[entry["prices"]]


def _entries(
    top: Mapping[str, Any], section: str, kind: type[Any], reserved: frozenset[str] | set[str] = frozenset()
) -> list[tuple[str, str, dict[str, Any]]]:
    found = []
    for name, raw in _mapping(top.get(section), section).items():
        where = f"{section}.{name}"
        entry = dict(_mapping(raw, where))
        _only(entry, {field.name for field in fields(kind)} - {"name"} - reserved, where)
        found.append((str(name), where, entry))
    return found


def _listed(top: Mapping[str, Any], section: str, kind: type[_T]) -> tuple[_T, ...]:
    built = []
    for at, raw in enumerate(top.get(section) or []):
        entry = _mapping(raw, f"{section}[{at}]")
        built.append(_build(kind, {**entry, "read": str(entry.get("read", ""))}, f"{section}[{at}]"))
    return tuple(built)


def _load(text: str, what: str, allowed: set[str]) -> Mapping[str, Any]:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise AcceleratorError(f"{what}: not YAML: {error}") from error
    top = _mapping(document, what)
    _only(top, allowed, what)
    return top


def _build(kind: type[_T], values: Mapping[str, Any], where: str) -> _T:
    try:
        return kind(**values)
    except TypeError as error:
        raise AcceleratorError(f"{where}: {error}") from error


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise AcceleratorError(f"{where}: a mapping is needed, found {type(value).__name__}")
    return value


def _only(value: Mapping[str, Any], allowed: set[str], where: str) -> None:
    unknown = sorted(set(map(str, value)) - allowed)
    if unknown:
        raise AcceleratorError(f"{where}: unknown keys {', '.join(unknown)}; known: {', '.join(sorted(allowed))}")
