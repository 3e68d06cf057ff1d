"""CustomResourceDefinitions: what is installed is served, defaulted, pruned and validated by its schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from definition_world import DEFINITIONS, World

from sandbox.api import ApiError, Request
from sandbox.api.definitions import Definition, resource_of
from sandbox.api.patch import APPLY, MERGE, STRATEGIC

# One of everything that a structural schema can ask for.
SPEC = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "integer", "minimum": 1, "maximum": 8},
        "mode": {"type": "string", "enum": ["Fast", "Slow"], "default": "Fast"},
        "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
        "when": {"type": "string", "format": "date-time"},
        "port": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "fixed": {
            "type": "string",
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "fixed may not change"}],
        },
        "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
        "parts": {
            "type": "array",
            "maxItems": 2,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "weight": {"type": "integer", "default": 1}},
            },
        },
    },
    "x-kubernetes-validations": [
        {
            "rule": "!has(self.name) || self.size > 1",
            "messageExpression": "'a named one needs more than ' + string(self.size)",
            "fieldPath": ".size",
        }
    ],
}
WIDGETS = "/apis/example.com/v1/namespaces/inference/widgets"


def definition() -> dict[str, Any]:
    status = {"type": "object", "properties": {"ready": {"type": "integer", "minimum": 0}}}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": SPEC, "status": status}}},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
            {"name": "Weight of b", "type": "integer", "jsonPath": '.spec.parts[?(@.name=="b")].weight', "priority": 1},
        ],
    }
    names = {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]}
    return {
        "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [version]},
    }


def refusal(world: World, spec: dict[str, Any]) -> list[str]:
    """Return what is wrong with a widget: field and message of each cause."""
    with pytest.raises(ApiError) as refused:
        world.send("POST", WIDGETS, {"metadata": {"name": "w"}, "spec": spec})
    assert refused.value.code == 422
    assert refused.value.details is not None
    return [f"{cause['field']}: {cause['message']}" for cause in refused.value.details["causes"]]


@pytest.fixture
def world() -> World:
    world = World()
    world.send("POST", DEFINITIONS, definition())
    return world


def widget(name: str = "w", **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec}


def test_a_definition_is_established_and_its_resource_discovered_and_gone_with_it(world: World) -> None:
    stored = world.send("GET", f"{DEFINITIONS}/widgets.example.com")
    assert {c["type"]: c["status"] for c in stored["status"]["conditions"]} == {
        "NamesAccepted": "True",
        "Established": "True",
    }
    assert stored["status"]["acceptedNames"]["singular"] == "widget"
    assert "example.com" in [group["name"] for group in world.send("GET", "/apis")["groups"]]
    first, status = world.send("GET", "/apis/example.com/v1")["resources"]
    assert (first["name"], first["kind"], first["shortNames"], first["categories"]) == (
        "widgets",
        "Widget",
        ["wd"],
        ["all"],
    )
    assert status["name"] == "widgets/status"
    assert (
        "/apis/example.com/v1/namespaces/{namespace}/widgets"
        in (world.send("GET", "/openapi/v3/apis/example.com/v1")["paths"])
    )
    world.send("POST", WIDGETS, widget(size=1))
    world.send("DELETE", f"{DEFINITIONS}/widgets.example.com")
    for path in (WIDGETS, f"{DEFINITIONS}/widgets.example.com"):
        with pytest.raises(ApiError) as gone:
            world.send("GET", path)
        assert gone.value.code == 404
    assert world.api.store.get("widgets", "inference", "w") is None


def test_what_the_schema_does_not_know_is_pruned_and_what_it_sets_is_filled_in(world: World) -> None:
    made = world.send(
        "POST",
        WIDGETS,
        widget(size=2, nope=1, parts=[{"name": "a", "x": 1}], free={"any": {"thing": [1]}}, port="http"),
    )
    assert made["spec"] == {
        "size": 2,
        "mode": "Fast",
        "parts": [{"name": "a", "weight": 1}],
        "free": {"any": {"thing": [1]}},
        "port": "http",
    }
    with pytest.raises(ApiError) as refused:
        world.send("POST", WIDGETS, widget("x", size=1, nope=1), fieldValidation="Strict")
    assert 'unknown field "spec.nope"' in refused.value.message


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        ({"size": 9}, ["spec.size: Invalid value: 9: spec.size in body should be less than or equal to 8"]),
        ({"size": 0}, ["spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"]),
        ({"size": 2, "name": "X"}, ["spec.name: Invalid value: \"X\": spec.name in body should match '^[a-z]+$'"]),
        ({"size": 1, "tags": ["a", "a"]}, ['spec.tags[1]: Duplicate value: "a"']),
        (
            {"size": 1, "parts": [{"name": "a"}, {"name": "a"}]},
            ['spec.parts[1]: Duplicate value: {"name":"a"}'],
        ),
        ({"size": 1, "name": "abc"}, ['spec.size: Invalid value: "object": a named one needs more than 1']),
    ],
    ids=lambda value: json.dumps(value)[:30],
)
def test_a_value_outside_its_schema_is_refused_in_the_servers_words(
    world: World, spec: dict[str, Any], wrong: list[str]
) -> None:
    assert refusal(world, spec) == wrong


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        ({}, "spec.size: Required value"),
        ({"size": 1, "mode": "So"}, 'spec.mode: Unsupported value: "So": supported values: "Fast", "Slow"'),
        (
            {"size": 1, "when": "soon"},
            'spec.when: Invalid value: "soon": spec.when in body must be of type date-time: "soon"',
        ),
        (
            {"size": 1, "port": 1.5},
            'spec.port: Invalid value: "number": spec.port in body must be of type integer,string: "number"',
        ),
        ({"size": 2, "name": "abcdef"}, "spec.name: Too long: may not be more than 5 bytes"),
        (
            {"size": 1, "parts": [{"name": "a"}, {"name": "b"}, {"name": "c"}]},
            "spec.parts: Too many: 3: must have at most 2 items",
        ),
    ],
    ids=lambda value: json.dumps(value)[:30],
)
def test_no_rule_is_asked_about_an_object_that_lacks_what_rules_read(
    world: World, spec: dict[str, Any], wrong: str
) -> None:
    first, rest = refusal(world, spec)
    assert first == wrong
    assert rest.startswith("<nil>: Invalid value: null: some validation rules were not checked")


def test_a_wrong_type_is_refused_with_the_type_that_was_found(world: World) -> None:
    assert refusal(world, {"size": "three"}) == [
        'spec.size: Invalid value: "string": spec.size in body must be of type integer: "string"'
    ]


def test_a_rule_about_change_holds_for_updates_only(world: World) -> None:
    world.send("POST", WIDGETS, widget(size=1, fixed="a"))
    with pytest.raises(ApiError) as refused:
        world.send("PATCH", f"{WIDGETS}/w", {"spec": {"fixed": "b"}}, MERGE)
    assert refused.value.message.endswith('spec.fixed: Invalid value: "string": fixed may not change')


def test_the_status_is_a_subresource_with_a_schema_of_its_own(world: World) -> None:
    made = world.send("POST", WIDGETS, {**widget(size=1), "status": {"ready": 1}})
    assert "status" not in made
    written = world.send("PATCH", f"{WIDGETS}/w/status", {"status": {"ready": 2}, "spec": {"size": 5}}, MERGE)
    assert (written["status"], written["spec"]["size"], written["metadata"]["generation"]) == ({"ready": 2}, 1, 1)
    with pytest.raises(ApiError) as refused:
        world.send("PATCH", f"{WIDGETS}/w/status", {"status": {"ready": -1}}, MERGE)
    assert refused.value.code == 422


def test_appliers_share_a_keyed_list_item_by_item(world: World) -> None:
    def applied(manager: str, *parts: dict[str, Any]) -> Any:
        return world.send("PATCH", f"{WIDGETS}/w", widget(size=1, parts=list(parts)), APPLY, fieldManager=manager)

    applied("one", {"name": "a", "weight": 3})
    both = applied("two", {"name": "b"})
    assert both["spec"]["parts"] == [{"name": "a", "weight": 3}, {"name": "b", "weight": 1}]
    fields = {entry["manager"]: entry["fieldsV1"]["f:spec"]["f:parts"] for entry in both["metadata"]["managedFields"]}
    assert list(fields["one"]) == ['k:{"name":"a"}']
    assert list(fields["two"]) == ['k:{"name":"b"}']
    with pytest.raises(ApiError) as conflict:
        applied("two", {"name": "a", "weight": 4})
    assert conflict.value.code == 409
    assert '.spec.parts[name="a"].weight' in conflict.value.message
    assert [part["name"] for part in applied("one")["spec"]["parts"]] == ["b"]


def test_a_strategic_merge_patch_of_a_custom_resource_is_unsupported(world: World) -> None:
    world.send("POST", WIDGETS, widget(size=1))
    with pytest.raises(ApiError) as refused:
        world.send("PATCH", f"{WIDGETS}/w", {"spec": {"size": 2}}, STRATEGIC)
    assert refused.value.code == 415


def test_the_definitions_columns_fill_the_table(world: World) -> None:
    world.send("POST", WIDGETS, widget(size=3, parts=[{"name": "b", "weight": 7}]))
    accept = {"accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    table = world.api.handle(Request("GET", WIDGETS, headers=accept)).json()
    assert [(c["name"], c["priority"]) for c in table["columnDefinitions"]] == [
        ("Name", 0),
        ("Size", 0),
        ("Weight of b", 1),
    ]
    assert table["rows"][0]["cells"] == ["w", 3, 7]


def test_owners_and_namespaces_take_custom_resources_along(world: World) -> None:
    owner = world.send("POST", WIDGETS, widget("owner", size=1))
    reference = {"apiVersion": "example.com/v1", "kind": "Widget", "name": "owner", "uid": owner["metadata"]["uid"]}
    owned = widget("owned", size=1)
    owned["metadata"]["ownerReferences"] = [reference]
    world.send("POST", WIDGETS, owned)
    world.send("DELETE", f"{WIDGETS}/owner")
    assert world.send("GET", WIDGETS)["items"] == []
    world.send("POST", WIDGETS, widget(size=1))
    world.send("DELETE", "/api/v1/namespaces/inference")
    assert world.api.store.get("widgets", "inference", "w") is None
    assert world.api.store.get("namespaces", "", "inference") is None


def test_a_definition_that_cannot_be_served_is_refused(world: World) -> None:
    wrong = definition()
    wrong["metadata"]["name"] = "gadgets.example.com"
    with pytest.raises(ApiError, match=r"must be spec.names.plural\+"):
        world.send("POST", DEFINITIONS, wrong)
    wrong = definition()
    wrong["spec"]["names"]["plural"] = "pods"
    wrong["metadata"]["name"] = "pods.example.com"
    with pytest.raises(ApiError, match="is served already"):
        world.send("POST", DEFINITIONS, wrong)


def test_a_rule_with_a_function_that_only_kubernetes_has_is_left_out_and_listed() -> None:
    defined = definition()
    spec = json.loads(json.dumps(SPEC))
    spec["x-kubernetes-validations"] = [{"rule": "quantity('1').isLessThan(quantity('2'))"}]
    defined["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = spec
    found = resource_of(defined).definition
    assert isinstance(found, Definition)
    assert found.check({"spec": {"size": 1}}, None) == []
    assert found.rules.skipped == ["quantity('1').isLessThan(quantity('2'))"]
