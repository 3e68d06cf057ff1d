"""Refuse node pools that GKE refuses, with the reasons that it gives."""

from __future__ import annotations

import re

from google.api_core import exceptions
from google.cloud import container_v1

from sandbox.gke.machines import MACHINES, Machine, chips_of

_NAME = re.compile(r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")
FLEX_START_S = 7 * 86_400
_COMPACT = container_v1.NodePool.PlacementPolicy.Type.COMPACT


def check_pool(pool: container_v1.NodePool, zones: list[str], sold_in: list[str]) -> Machine:
    """Return the machine of a new pool, or raise InvalidArgument naming the field that GKE would refuse."""
    if not _NAME.match(pool.name):
        raise exceptions.InvalidArgument(
            f'Invalid value for field "node_pool.name": "{pool.name}". Use 1-40 lower-case letters, digits'
            " and hyphens, starting with a letter."
        )
    for zone in zones:
        if zone not in sold_in:
            raise exceptions.InvalidArgument(
                f'Location "{zone}" is not a valid zone of this cluster (has {", ".join(sold_in)}).'
            )
    name = pool.config.machine_type or "e2-medium"
    machine = MACHINES.get(name)
    if machine is None:
        raise exceptions.InvalidArgument(f"Machine type with name '{name}' does not exist in zone '{zones[0]}'.")
    if pool.initial_node_count < 0:
        raise exceptions.InvalidArgument("node_pool.initial_node_count must not be negative.")
    check_bounds(pool.autoscaling)
    _check_placement(pool, machine, zones)
    _check_accelerators(pool, machine)
    if pool.config.spot and (pool.config.flex_start or pool.config.preemptible):
        raise exceptions.InvalidArgument("config.spot excludes config.flex_start and config.preemptible.")
    if pool.config.flex_start and pool.initial_node_count:
        raise exceptions.InvalidArgument("A flex-start node pool must be created with initial_node_count 0.")
    if pool.config.flex_start and pool.config.max_run_duration.total_seconds() > FLEX_START_S:
        raise exceptions.InvalidArgument("config.max_run_duration of a flex-start node pool is at most 7 days.")
    return machine


def check_bounds(bounds: container_v1.NodePoolAutoscaling) -> None:
    """Raise InvalidArgument if an autoscaler could not keep a pool within `bounds`."""
    if bounds.enabled and not 0 <= bounds.min_node_count <= bounds.max_node_count:
        raise exceptions.InvalidArgument(
            "autoscaling.min_node_count must not be negative or above max_node_count:"
            f" {bounds.min_node_count} and {bounds.max_node_count}."
        )


def slice_hosts(pool: container_v1.NodePool) -> int:
    """Return how many hosts a multi-host TPU slice of `pool` has; 1 for everything else."""
    topology = pool.placement_policy.tpu_topology
    machine = MACHINES.get(pool.config.machine_type)
    if machine is None or not topology or topology not in machine.multi_host_topologies:
        return 1
    return chips_of(topology) // machine.chips


def check_size(pool: container_v1.NodePool, count: int) -> None:
    """Raise InvalidArgument if `pool` cannot have `count` nodes a zone."""
    if count < 0:
        raise exceptions.InvalidArgument("node_count must not be negative.")
    hosts = slice_hosts(pool)
    if hosts > 1 and count not in (0, hosts):
        raise exceptions.InvalidArgument(
            f"Node count {count} is not a valid size of TPU pod slice with topology"
            f" {pool.placement_policy.tpu_topology}: a multi-host slice has all of its {hosts} nodes or none."
        )


def _check_placement(pool: container_v1.NodePool, machine: Machine, zones: list[str]) -> None:
    policy = pool.placement_policy
    topology = policy.tpu_topology
    if not machine.is_tpu:
        if topology:
            raise exceptions.InvalidArgument(f"tpu_topology is not supported by machine type {machine.name}.")
        return
    if topology and topology not in machine.topologies + machine.multi_host_topologies:
        raise exceptions.InvalidArgument(f"TPU topology '{topology}' is not supported by machine type {machine.name}.")
    if topology in machine.multi_host_topologies:
        if policy.type_ != _COMPACT:
            raise exceptions.InvalidArgument("A multi-host TPU slice needs placement_policy.type COMPACT.")
        if len(zones) != 1:
            raise exceptions.InvalidArgument("A multi-host TPU slice must be in exactly one zone.")
        check_size(pool, pool.initial_node_count)
    elif topology or policy.type_ == _COMPACT:
        raise exceptions.InvalidArgument(
            f"Placement policy is not supported for single-host TPU machine type {machine.name}."
            " Remove placement_policy."
        )


def _check_accelerators(pool: container_v1.NodePool, machine: Machine) -> None:
    for accelerator in pool.config.accelerators:
        if not machine.is_gpu:
            raise exceptions.InvalidArgument(f"Machine type {machine.name} takes no GPU accelerators.")
        if (accelerator.accelerator_type, accelerator.accelerator_count) != (machine.accelerator, machine.chips):
            raise exceptions.InvalidArgument(
                f"Machine type {machine.name} has {machine.chips} {machine.accelerator}, not"
                f" {accelerator.accelerator_count} {accelerator.accelerator_type}."
            )
