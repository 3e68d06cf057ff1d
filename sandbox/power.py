"""Say by a Node's annotations whether its machine has power: for who plays the kubelet there, and nobody else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

POWER = "sandbox/power"
PODS_HAVE_S = "sandbox/pods-have-s"
ENDING, OFF = "ending", "off"
# Of the 30 s that a spot machine gets, GKE gives the first half to its pods, the rest to the system's.
# https://cloud.google.com/kubernetes-engine/docs/concepts/spot-vms
PODS_SHARE = 0.5


def annotations(off: bool, notice_s: float) -> dict[str, str]:
    """Return the annotations of a machine that is off, or that will be in `notice_s`."""
    return {POWER: OFF} if off else {POWER: ENDING, PODS_HAVE_S: f"{notice_s * PODS_SHARE:g}"}


def is_off(node: Mapping[str, Any]) -> bool:
    """Tell whether nothing runs on a node any more."""
    return (node["metadata"].get("annotations") or {}).get(POWER) == OFF


def ends_pods_within_s(node: Mapping[str, Any]) -> float | None:
    """Return how long the pods of a node that is about to go have, in seconds; None if it stays."""
    found = node["metadata"].get("annotations") or {}
    return float(found[PODS_HAVE_S]) if found.get(POWER) == ENDING else None
