"""Read the named targets of include/profiles.yaml: production, legacy_gpu, h100."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import yaml

from tpu_migration.domain.accelerators import Accelerators, chips_of


class ProfileError(ValueError):
    """Say what is wrong with a profile, or that there is none of a name."""


@dataclass(frozen=True)
class Profile:
    """Hold one named target. `topology` is None for GPUs."""

    name: str
    accelerator: str
    chips: int
    machine_type: str
    topology: str | None
    tensor_parallel: int
    text: str

    @property
    def is_tpu(self) -> bool:
        return self.topology is not None


@dataclass(frozen=True)
class Profiles:
    """Hold all profiles and which one is meant when none is named."""

    default: str
    profiles: tuple[Profile, ...]

    def get(self, name: str | None = None) -> Profile:
        """Find a profile; the default one without a name. Raises ProfileError naming those there are."""
        wanted = name or self.default
        found = {profile.name: profile for profile in self.profiles}
        if wanted not in found:
            raise ProfileError(f"unknown profile {wanted!r}: use one of {', '.join(found)}")
        return found[wanted]


def parse_profiles(text: str, known: Accelerators) -> Profiles:
    """Parse include/profiles.yaml, held against the accelerators. Raises ProfileError naming the entry."""
    document = yaml.safe_load(text)
    if not isinstance(document, Mapping) or document.get("schemaVersion") != 1:
        raise ProfileError("profiles: a mapping with schemaVersion 1 is needed")
    wanted = {field.name for field in fields(Profile)} - {"name"}
    parsed = []
    for name, entry in (document.get("profiles") or {}).items():
        if set(entry) != wanted:
            raise ProfileError(f"profiles.{name}: needs exactly {', '.join(sorted(wanted))}")
        profile = Profile(name=str(name), **entry)
        _check(profile, known)
        parsed.append(profile)
    profiles = Profiles(str(document.get("default")), tuple(parsed))
    profiles.get()
    return profiles


def _check(profile: Profile, known: Accelerators) -> None:
    """Hold a profile against the accelerators: a machine type that is not theirs would fail at the node pool."""
    if profile.topology is not None:
        target = known.slice(profile.accelerator)
        agree = (target.machine_type, target.topology) == (profile.machine_type, profile.topology)
        agree = agree and chips_of(profile.topology) == profile.chips
    else:
        agree = known.gpu(profile.accelerator).machines.get(profile.machine_type) == profile.chips
    if not agree:
        raise ProfileError(
            f"profiles.{profile.name}: {profile.machine_type} is not {profile.chips} {profile.accelerator}"
        )
