"""Make the stack of a profile from include/manifests, for a plan's namespace and workload."""

from __future__ import annotations

from typing import Any

import yaml

from tpu_migration.domain.accelerators import Accelerators
from tpu_migration.domain.node_pools import Accelerator, PoolSpec
from tpu_migration.domain.plan import Plan
from tpu_migration.domain.profiles import Profile, ProfileError, parse_profiles
from tpu_migration.domain.stack import deployment_of, in_namespace, labelled, on_gpus, to_service
from tpu_migration.errors import PermanentError
from tpu_migration.names import POOL_WORKLOAD_LABEL, STACK_LABEL
from tpu_migration.resources import accelerators, read_text
from tpu_migration.stages.stack import Stack

_WORKLOAD = "vllm-gemma3-27b"  # as the manifests name it


def make_stack(plan: Plan, profile: Profile, known: Accelerators) -> Stack:
    """Return what there is to set up on a profile's machines, in the plan's namespace and under its workload's name."""
    gateway, route = (_manifests(f"gateway/{name}.yaml", plan)[0] for name in ("gateway", "route"))
    if profile.is_tpu:
        manifests, service, resource = _manifests("vllm-tpu/vllm.yaml", plan), f"{plan.workload}-tpu", "google.com/tpu"
        gpus = None
        if profile.name != "production":
            raise PermanentError(f"profile {profile.name}: include/manifests/vllm-tpu is for production")
    else:
        gpu = known.gpu(profile.accelerator)
        manifests = on_gpus(_manifests("vllm-gpu/vllm.yaml", plan), profile, gpu.accelerator_labels[0])
        service, resource, gpus = plan.workload, "nvidia.com/gpu", Accelerator(gpu.accelerator_labels[0], profile.chips)
    offer = plan.offers[0]
    pool = PoolSpec(
        name=f"{plan.workload[:28].rstrip('-')}-{profile.accelerator.removeprefix('tpu-')}"[:40],
        machine_type=profile.machine_type,
        node_count=deployment_of(manifests)["spec"]["replicas"],
        zone=offer.zone,
        labels={POOL_WORKLOAD_LABEL: plan.workload},
        spot=offer.kind == "spot",
        reservation=offer.reservation,
        service_account=plan.node_service_account,
        gpus=gpus,
    )
    ours = [labelled(each, STACK_LABEL, service) for each in manifests]
    return Stack(ours, gateway, to_service(route, service), service, pool, resource, profile.chips)


def find_profile(name: str | None, accelerator: str) -> Profile:
    """Return a profile of include/profiles.yaml; without a name the default one of tpu or gpu. Raises ProfileError."""
    profiles = parse_profiles(read_text("profiles.yaml"), accelerators())
    profile = profiles.get(name or (profiles.default if accelerator == "tpu" else "h100"))
    if profile.is_tpu != (accelerator == "tpu"):
        raise ProfileError(f"profile {profile.name} is {profile.text}, and --accelerator is {accelerator}")
    return profile


def _manifests(name: str, plan: Plan) -> list[dict[str, Any]]:
    # The workload's name occurs in nothing but names of its own objects and labels.
    text = read_text(f"manifests/{name}").replace(_WORKLOAD, plan.workload)
    return in_namespace([each for each in yaml.safe_load_all(text) if each], plan.namespace)
