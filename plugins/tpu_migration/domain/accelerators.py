"""Describe TPU slices and GPUs: sizes, GKE labels, dated prices; parsed from include/accelerators.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import yaml

TPU_RESOURCE = "google.com/tpu"
GPU_RESOURCE = "nvidia.com/gpu"
TPU_ACCELERATOR_LABEL = "cloud.google.com/gke-tpu-accelerator"
TPU_TOPOLOGY_LABEL = "cloud.google.com/gke-tpu-topology"
GPU_ACCELERATOR_LABEL = "cloud.google.com/gke-accelerator"

_T = TypeVar("_T")
_Named = TypeVar("_Named", "Slice", "Gpu")


class AcceleratorError(ValueError):
    """Say that the accelerators file is wrong, or that it has no such accelerator."""


@dataclass(frozen=True)
class Price:
    """Hold one list price; `usd_per_chip_hour` is None when nobody read it."""

    kind: str
    usd_per_chip_hour: float | None
    read: str
    source: str
    check: bool = False


def _find_price(prices: Iterable[Price], kind: str) -> Price | None:
    return next((price for price in prices if price.kind == kind), None)


@dataclass(frozen=True)
class Taint:
    key: str
    value: str
    effect: str

    def toleration(self) -> dict[str, str]:
        """Build the toleration that lets a pod onto a node with this taint."""
        return {"key": self.key, "operator": "Equal", "value": self.value, "effect": self.effect}


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
    hbm_gb_per_s: float
    bf16_tflops: float
    int8_tops: float
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

    def price(self, kind: str) -> Price | None:
        """Find the price of a chip for a pricing kind (on-demand, spot, …); None if the file has none."""
        return _find_price(self.prices, kind)

    def usd_per_hour(self, kind: str) -> float | None:
        """Price the whole machine for an hour; None when that price is not known."""
        price = self.price(kind)
        if price is None or price.usd_per_chip_hour is None:
            return None
        return price.usd_per_chip_hour * self.chips


@dataclass(frozen=True)
class Gpu:
    """Describe one kind of GPU. Units as in `Slice`; `hbm_gib` is one GPU's."""

    name: str
    accelerator_labels: tuple[str, ...]
    machine_series: str
    hbm_gib: float
    hbm_gb_per_s: float
    bf16_tflops: float
    native_fp8: bool
    prices: tuple[Price, ...] = ()
    resource: str = GPU_RESOURCE

    def price(self, kind: str) -> Price | None:
        """Find the price of one GPU, its share of the machine included."""
        return _find_price(self.prices, kind)

    def usd_per_hour(self, kind: str, gpus: int) -> float | None:
        """Price `gpus` of these for an hour; None when that price is not known."""
        price = self.price(kind)
        if price is None or price.usd_per_chip_hour is None:
            return None
        return price.usd_per_chip_hour * gpus


@dataclass(frozen=True)
class Accelerators:
    """Hold the parsed file."""

    region: str
    currency: str
    read: str
    slices: tuple[Slice, ...]
    gpus: tuple[Gpu, ...]

    def slice(self, name: str) -> Slice:
        """Find a slice by name, such as tpu-v5e-8; raise AcceleratorError naming those there are."""
        return _by_name(self.slices, name, "TPU slice")

    def gpu(self, name: str) -> Gpu:
        """Find a GPU by name, such as h100; raise AcceleratorError naming those there are."""
        return _by_name(self.gpus, name, "GPU")

    def gpu_by_label(self, label: str | None) -> Gpu | None:
        """Find a GPU by its cloud.google.com/gke-accelerator value; None for one that is not in the file."""
        return next((gpu for gpu in self.gpus if label in gpu.accelerator_labels), None)


def _by_name(known: Iterable[_Named], name: str, what: str) -> _Named:
    found = {item.name: item for item in known}
    if name not in found:
        raise AcceleratorError(f"unknown {what} {name!r}: use one of {', '.join(sorted(found))}")
    return found[name]


def parse_accelerators(text: str) -> Accelerators:
    """Parse the text of accelerators.yaml. Raise AcceleratorError on unknown, missing or senseless entries."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise AcceleratorError(f"accelerators: not YAML: {error}") from error
    top = _mapping(document, "accelerators")
    _only(top, {"schemaVersion", "region", "currency", "read", "prices", "slices", "gpus"}, "accelerators")
    if top.get("schemaVersion") != 1:
        raise AcceleratorError(f"accelerators: schemaVersion {top.get('schemaVersion')!r} is not 1")
    prices = {
        str(name): tuple(
            _build(Price, {**_mapping(entry, f"prices.{name}"), "read": str(entry.get("read", ""))}, f"prices.{name}")
            for entry in entries
        )
        for name, entries in _mapping(top.get("prices"), "prices").items()
    }
    slices = _section(top, "slices", Slice, prices, reserved={"resource", "taint"})
    gpus = _section(top, "gpus", Gpu, prices, reserved={"resource"})
    _check_sizes(slices, gpus)
    return Accelerators(
        region=str(top.get("region", "")),
        currency=str(top.get("currency", "")),
        read=str(top.get("read", "")),
        slices=slices,
        gpus=gpus,
    )


def _section(
    top: Mapping[str, Any],
    section: str,
    kind: type[_T],
    prices: Mapping[str, tuple[Price, ...]],
    reserved: set[str],
) -> tuple[_T, ...]:
    built = []
    for name, raw in _mapping(top.get(section), section).items():
        where = f"{section}.{name}"
        entry = dict(_mapping(raw, where))
        _only(entry, {field.name for field in fields(kind)} - {"name"} - reserved, where)  # type: ignore[arg-type]
        sheet = entry.pop("prices", None)
        if sheet not in prices:
            raise AcceleratorError(f"{where}: prices {sheet!r} is no entry of `prices`")
        if "accelerator_labels" in entry:
            entry["accelerator_labels"] = tuple(entry["accelerator_labels"])
        built.append(_build(kind, {**entry, "name": str(name), "prices": prices[sheet]}, where))
    return tuple(built)


def _build(kind: type[_T], values: Mapping[str, Any], where: str) -> _T:
    try:
        return kind(**values)
    except TypeError as error:
        raise AcceleratorError(f"{where}: {error}") from error


def _check_sizes(slices: Iterable[Slice], gpus: Iterable[Gpu]) -> None:
    for item in slices:
        product = 1
        for side in item.topology.split("x"):
            product *= int(side)
        if product != item.chips:
            raise AcceleratorError(f"slices.{item.name}: topology {item.topology} is not {item.chips} chips")
    sheets = [(item.name, item.prices) for item in slices] + [(gpu.name, gpu.prices) for gpu in gpus]
    for name, sheet in sheets:
        for price in sheet:
            if price.usd_per_chip_hour is not None and price.usd_per_chip_hour <= 0:
                raise AcceleratorError(f"{name}: a price of {price.usd_per_chip_hour} is no price")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise AcceleratorError(f"{where}: a mapping is needed, found {type(value).__name__}")
    return value


def _only(value: Mapping[str, Any], allowed: set[str], where: str) -> None:
    unknown = sorted(set(map(str, value)) - allowed)
    if unknown:
        raise AcceleratorError(f"{where}: unknown keys {', '.join(unknown)}; known: {', '.join(sorted(allowed))}")
