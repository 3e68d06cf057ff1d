"""Parse include/accelerators.yaml, and a user's own prices over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

import yaml

from tpu_migration.domain.accelerators.model import (
    AcceleratorError,
    Accelerators,
    Generation,
    Gpu,
    Machine,
    Published,
    Slice,
    chips_of,
)
from tpu_migration.domain.prices import Claim, Price, PriceError, Prices, override, parse_prices

_T = TypeVar("_T")

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
