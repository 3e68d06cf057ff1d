"""The published definitions, installed, and compared with the kinds that are built in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from definition_world import CRDS, DEFINITIONS, FILES, World, needs_crds

from sandbox.api import ApiError
from sandbox.api import crds as built_in
from sandbox.api.definitions import resource_of
from sandbox.api.patch import APPLY
from sandbox.api.schema import Schema

GATEWAY = "/apis/gateway.networking.k8s.io/v1"
ROUTES = f"{GATEWAY}/namespaces/inference/httproutes"
POOLS = "/apis/inference.networking.k8s.io/v1/namespaces/inference/inferencepools"


@needs_crds
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem.partition("_")[2])
def test_published_definitions_are_applied_twice_without_a_change(file: Path) -> None:
    world = World()
    body = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
    path = f"{DEFINITIONS}/{body['metadata']['name']}"
    world.send("PATCH", path, body, APPLY, fieldManager="kubectl")
    first = world.send("GET", path)["metadata"]["resourceVersion"]
    assert world.send("PATCH", path, body, APPLY, fieldManager="kubectl")["metadata"]["resourceVersion"] == first
    installed = next(iter(world.api.registry.installed.values()))
    assert installed.definition is not None
    assert installed.definition.rules.skipped == []


@needs_crds
def test_a_route_is_held_to_the_published_rules() -> None:
    world = World()
    world.install(CRDS / "gateway.networking.k8s.io_httproutes.yaml")

    def refused(rule: dict[str, Any]) -> str:
        with pytest.raises(ApiError) as error:
            world.send("POST", ROUTES, {"metadata": {"name": "r"}, "spec": {"rules": [rule]}})
        return error.value.message

    assert "Must have port for Service reference" in refused({"backendRefs": [{"name": "a"}]})
    redirect = {"type": "RequestRedirect", "requestRedirect": {"hostname": "b.example"}}
    assert "RequestRedirect filter must not be used together with backendRefs" in (
        refused({"filters": [redirect], "backendRefs": [{"name": "a", "port": 80}]})
    )
    assert "supported values" in refused({"matches": [{"path": {"type": "Glob", "value": "/"}}]})
    made = world.send(
        "POST", ROUTES, {"metadata": {"name": "r"}, "spec": {"rules": [{"backendRefs": [{"name": "a", "port": 80}]}]}}
    )
    backend = {"group": "", "kind": "Service", "weight": 1, "name": "a", "port": 80}
    assert made["spec"]["rules"] == [
        {"backendRefs": [backend], "matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}
    ]


@needs_crds
def test_an_inference_pool_is_held_to_its_published_schema() -> None:
    world = World()
    world.install(CRDS / "inference.networking.k8s.io_inferencepools.yaml")
    with pytest.raises(ApiError) as refused:
        world.send("POST", POOLS, {"metadata": {"name": "p"}, "spec": {}})
    assert "[spec.selector: Required value, spec.targetPorts: Required value" in refused.value.message
    spec = {"selector": {"matchLabels": {"app": "vllm"}}, "targetPorts": [{"number": 8000}]}
    picker = {"name": "epp", "port": {"number": 9002}}
    made = world.send("POST", POOLS, {"metadata": {"name": "p"}, "spec": {**spec, "endpointPickerRef": picker}})
    assert made["spec"]["endpointPickerRef"]["failureMode"] == "FailClose"


def differences(ours: Schema, theirs: Schema, path: str) -> list[str]:
    """Say where a built-in table departs from the published schema; it may leave a part of it open."""
    if ours.type == "any" or path.endswith("metadata"):
        return []
    kinds = {ours.type, theirs.type}
    if len(kinds) > 1 and kinds != {"time", "string"}:
        return [f"{path}: {ours.type}, published {theirs.type}"]
    found = [
        f"{path}.{what}: {getattr(ours, what)!r}, published {getattr(theirs, what)!r}"
        for what in ("default", "keys", "atomic", "is_set")
        if getattr(ours, what) != getattr(theirs, what)
    ]
    if ours.type in ("list", "map"):
        return found + differences(ours.item, theirs.item, f"{path}[]")
    unequal = ours.fields.keys() ^ theirs.fields.keys() if ours.type == "object" else ()
    found += [f"{path}.{name}: {'not published' if name in ours.fields else 'missing'}" for name in sorted(unequal)]
    for name in ours.fields.keys() & theirs.fields.keys():
        found += differences(ours.fields[name], theirs.fields[name], f"{path}.{name}")
    return found


@needs_crds
@pytest.mark.parametrize("kind", ["HTTPRoute", "Gateway", "GatewayClass", "InferencePool"])
def test_the_kinds_that_are_built_in_have_the_published_types_and_defaults(kind: str) -> None:
    published = [yaml.load(file.read_text(), Loader=yaml.CSafeLoader) for file in FILES]
    (found,) = [each for each in published if each["spec"]["names"]["kind"] == kind]
    definition = resource_of(found).definition
    assert definition is not None
    assert differences(built_in.custom(kind), definition.schema, kind) == []
