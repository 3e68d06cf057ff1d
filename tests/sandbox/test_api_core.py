"""The rules of the API server that the recordings do not show."""

from __future__ import annotations

from typing import Any

import pytest
from api_objects import NS, bound_pod, call, deployment, route

from sandbox.api import Api, ApiError, LocalClient, Request
from sandbox.api.patch import APPLY, MERGE, STRATEGIC
from sandbox.api.quantities import canonical
from sandbox.clock import VirtualClock


def test_a_put_without_resource_version_is_refused_for_a_custom_resource(client: LocalClient) -> None:
    client.create("httproutes", route())
    with pytest.raises(ApiError) as refused:
        client.update("httproutes", route(2))
    assert refused.value.code == 422
    assert "metadata.resourceVersion: Invalid value: 0: must be specified for an update" in str(refused.value)


def test_a_put_without_resource_version_replaces_a_config_map(client: LocalClient) -> None:
    made = client.create("configmaps", {"metadata": {"name": "a", "namespace": NS}, "data": {"k": "1"}})
    changed = client.update("configmaps", {"metadata": {"name": "a", "namespace": NS}, "data": {"k": "2"}})
    assert changed["data"] == {"k": "2"}
    assert changed["metadata"]["uid"] == made["metadata"]["uid"]


def test_a_write_that_changes_nothing_keeps_the_resource_version(client: LocalClient) -> None:
    made = client.create("httproutes", route())
    assert client.update("httproutes", made) == made


def test_the_generation_of_a_route_counts_its_spec_and_not_its_status(client: LocalClient) -> None:
    made = client.create("httproutes", route())
    parent = {"parentRef": {"name": "gw"}, "controllerName": "x/y", "conditions": []}
    status = client.update("httproutes", {**made, "status": {"parents": [parent]}}, "status")
    assert status["metadata"]["generation"] == 1
    assert status["status"]["parents"][0]["parentRef"]["kind"] == "Gateway"
    annotated = client.patch("httproutes", NS, "llm", {"metadata": {"annotations": {"epoch": "1"}}})
    assert annotated["metadata"]["generation"] == 1
    annotated["spec"]["rules"][0]["backendRefs"][0]["weight"] = 5
    annotated["status"] = {"parents": []}
    changed = client.update("httproutes", annotated)
    assert changed["metadata"]["generation"] == 2
    assert changed["status"] == status["status"]


def test_a_status_update_of_a_route_changes_nothing_but_the_status(client: LocalClient) -> None:
    made = client.create("httproutes", route())
    made["spec"]["rules"] = []
    made["metadata"]["annotations"] = {"a": "b"}
    changed = client.update("httproutes", {**made, "status": {"parents": []}}, "status")
    assert changed["spec"]["rules"]
    assert "annotations" not in changed["metadata"]


def test_a_gateway_waits_for_its_controller(client: LocalClient) -> None:
    listener = {"name": "http", "port": 80, "protocol": "HTTP"}
    spec = {"gatewayClassName": "gke", "listeners": [listener]}
    made = client.create("gateways", {"metadata": {"name": "g", "namespace": NS}, "spec": spec})
    assert [c["type"] for c in made["status"]["conditions"]] == ["Accepted", "Programmed"]
    assert made["spec"]["listeners"][0]["allowedRoutes"] == {"namespaces": {"from": "Same"}}


def test_a_weight_above_the_limit_is_refused(client: LocalClient) -> None:
    with pytest.raises(ApiError, match="should be less than or equal to 1000000"):
        client.create("httproutes", route(1_000_001))


def test_an_unknown_field_is_dropped_with_a_warning(api: Api) -> None:
    body = deployment()
    body["spec"]["tempalte"] = {}
    response = call(api, "POST", f"/apis/apps/v1/namespaces/{NS}/deployments", body)
    assert response.status == 201
    assert response.headers["warning"] == '299 - "unknown field \\"spec.tempalte\\""'
    assert "tempalte" not in response.json()["spec"]


def test_an_env_value_that_is_a_number_is_refused(api: Api) -> None:
    body = deployment()
    body["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = 1
    response = call(api, "POST", f"/apis/apps/v1/namespaces/{NS}/deployments", body)
    assert response.status == 400
    assert response.json()["message"].endswith(
        "json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value "
        "of type string"
    )


def test_a_lease_created_without_microseconds_is_a_bad_request(api: Api) -> None:
    spec = {"holderIdentity": "a", "renewTime": "2026-11-22T01:00:20Z"}
    path = f"/apis/coordination.k8s.io/v1/namespaces/{NS}/leases"
    response = call(api, "POST", path, {"metadata": {"name": "l"}, "spec": spec})
    assert (response.status, response.json()["reason"]) == (400, "BadRequest")


def test_a_lease_can_be_made_by_put(client: LocalClient) -> None:
    lease = {"metadata": {"name": "l", "namespace": NS}, "spec": {"holderIdentity": "a"}}
    assert client.update("leases", lease)["spec"] == {"holderIdentity": "a"}


def test_an_immutable_secret_stays_what_it_is(client: LocalClient) -> None:
    secret = {"metadata": {"name": "s", "namespace": NS}, "stringData": {"k": "v"}, "immutable": True}
    made = client.create("secrets", secret)
    assert made["data"] == {"k": "dg=="}
    with pytest.raises(ApiError, match="field is immutable when `immutable` is set"):
        client.patch("secrets", NS, "s", {"data": {"k": "eA=="}})
    assert client.patch("secrets", NS, "s", {"metadata": {"labels": {"a": "b"}}})["data"] == made["data"]


def test_a_config_map_over_one_mebibyte_is_refused(client: LocalClient) -> None:
    body = {"metadata": {"name": "big", "namespace": NS}, "data": {"k": "x" * (1024 * 1024 + 1)}}
    with pytest.raises(ApiError) as refused:
        client.create("configmaps", body)
    assert refused.value.code == 422


def test_creating_in_a_namespace_that_is_not_there_is_not_found(client: LocalClient) -> None:
    with pytest.raises(ApiError, match='namespaces "nowhere" not found'):
        client.create("configmaps", {"metadata": {"name": "a", "namespace": "nowhere"}})


def test_label_and_field_selectors_choose(api: Api, client: LocalClient) -> None:
    for name, tier in (("a", "gpu"), ("b", "tpu"), ("c", "")):
        labels = {"tier": tier} if tier else {}
        client.create("configmaps", {"metadata": {"name": name, "namespace": NS, "labels": labels}})

    def names(**query: str) -> list[str]:
        answer = api.handle(Request("GET", f"/api/v1/namespaces/{NS}/configmaps", query)).json()
        return [item["metadata"]["name"] for item in answer["items"]]

    assert names(labelSelector="tier=gpu") == ["a"]
    assert names(labelSelector="tier!=gpu") == ["b", "c"]
    assert names(labelSelector="tier in (gpu, tpu),tier notin (gpu)") == ["b"]
    assert names(labelSelector="!tier") == ["c"]
    assert names(fieldSelector="metadata.name!=b") == ["a", "c"]


def test_a_strategic_merge_patch_merges_containers_by_name(client: LocalClient) -> None:
    client.create("deployments", deployment())
    env = [{"name": "A", "$patch": "delete"}, {"name": "B", "value": "2"}]
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "main", "env": env}]}}}}
    changed = client.patch("deployments", NS, "web", patch, STRATEGIC)
    (container,) = changed["spec"]["template"]["spec"]["containers"]
    assert container["env"] == [{"name": "B", "value": "2"}]
    assert container["image"] == "web:1"


def applied(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "apps/v1", "kind": "Deployment", **deployment(**spec)}


def test_an_applier_keeps_what_others_have_set(api: Api) -> None:
    first, second = LocalClient(api, "first"), LocalClient(api, "second")
    first.patch("deployments", NS, "web", applied(replicas=1), APPLY)
    second.patch("deployments", NS, "web", {"metadata": {"annotations": {"n": "1"}}}, APPLY)
    body = applied()
    body["spec"]["template"]["spec"]["containers"][0].pop("env")
    changed = first.patch("deployments", NS, "web", body, APPLY)
    assert changed["metadata"]["annotations"] == {"n": "1"}
    assert "env" not in changed["spec"]["template"]["spec"]["containers"][0]
    assert changed["spec"]["replicas"] == 1  # the default takes the place of what is no longer applied


def test_appliers_who_agree_share_a_field(api: Api) -> None:
    first, second = LocalClient(api, "first"), LocalClient(api, "second")
    first.patch("deployments", NS, "web", applied(replicas=2), APPLY)
    second.patch("deployments", NS, "web", {"spec": {"replicas": 2}}, APPLY)
    kept = first.patch("deployments", NS, "web", applied(), APPLY)
    assert kept["spec"]["replicas"] == 2
    with pytest.raises(ApiError, match=r'conflict with "second": \.spec\.replicas'):
        first.patch("deployments", NS, "web", applied(replicas=3), APPLY)


def test_a_plain_update_takes_fields_and_a_later_apply_conflicts_with_it(api: Api) -> None:
    applier, editor = LocalClient(api, "applier"), LocalClient(api, "editor")
    applier.patch("deployments", NS, "web", applied(replicas=1), APPLY)
    editor.patch("deployments", NS, "web", {"spec": {"replicas": 4}})
    with pytest.raises(ApiError) as refused:
        applier.patch("deployments", NS, "web", applied(replicas=1), APPLY)
    assert refused.value.code == 409
    assert '"editor" using apps/v1 at ' in refused.value.message
    forced = applier.patch("deployments", NS, "web", applied(replicas=1), APPLY, force=True)
    assert [e["manager"] for e in forced["metadata"]["managedFields"]] == ["applier"]


def test_applying_an_unknown_field_fails(client: LocalClient) -> None:
    body = applied()
    body["spec"]["tempalte"] = {}
    with pytest.raises(ApiError, match="field not declared in schema"):
        client.patch("deployments", NS, "web", body, APPLY)


def test_an_apply_as_yaml_is_read(api: Api) -> None:
    text = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: y}\ndata:\n  k: |\n    two\n    lines\n"
    request = Request("PATCH", f"/api/v1/namespaces/{NS}/configmaps/y", {"fieldManager": "me"}, body=text)
    request.headers["content-type"] = APPLY
    response = api.handle(request)
    assert (response.status, response.json()["data"]) == (201, {"k": "two\nlines\n"})


def test_a_stale_scale_is_a_conflict(api: Api, client: LocalClient) -> None:
    client.create("deployments", deployment())
    path = f"/apis/apps/v1/namespaces/{NS}/deployments/web/scale"
    scale = call(api, "GET", path).json()
    scale["spec"]["replicas"] = 3
    assert call(api, "PUT", path, scale).json()["spec"] == {"replicas": 3}
    assert call(api, "PUT", path, scale).status == 409


def test_subscribers_see_every_change_in_order(api: Api, client: LocalClient) -> None:
    seen: list[tuple[str, str, str]] = []
    stop = api.subscribe(lambda kind, resource, obj: seen.append((kind, resource, obj["metadata"]["name"])))
    client.create("configmaps", {"metadata": {"name": "a", "namespace": NS}})
    client.patch("configmaps", NS, "a", {"data": {"k": "v"}})
    client.delete("configmaps", NS, "a")
    stop()
    client.create("configmaps", {"metadata": {"name": "b", "namespace": NS}})
    assert seen == [(kind, "configmaps", "a") for kind in ("ADDED", "MODIFIED", "DELETED")]


def test_what_a_caller_does_to_an_object_does_not_reach_the_store(client: LocalClient) -> None:
    made = client.create("configmaps", {"metadata": {"name": "a", "namespace": NS}, "data": {"k": "v"}})
    made["data"]["k"] = "changed"
    again = client.get("configmaps", NS, "a")
    assert again is not None
    assert again["data"] == {"k": "v"}


def test_pod_logs_and_proxy_go_through_what_is_injected(api: Api, client: LocalClient) -> None:
    bound_pod(client)
    api.pod_logs = lambda namespace, pod, container, query: f"{namespace}/{pod}/{container}".encode()
    api.pod_proxy = lambda namespace, pod, port, request: call(api, "GET", "/version")
    base = f"/api/v1/namespaces/{NS}/pods"
    assert call(api, "GET", f"{base}/p/log").body == b"inference/p/main"
    assert call(api, "GET", f"{base}/p:8000/proxy/version").json()["major"] == "1"


@pytest.mark.parametrize(
    ("given", "kept"),
    [("1000m", "1"), ("0.5", "500m"), ("1024Mi", "1Gi"), ("1000", "1k"), ("8", "8"), ("1.5Gi", "1536Mi")],
)
def test_quantities_are_written_in_their_canonical_form(given: str, kept: str) -> None:
    assert canonical(given) == kept


def test_two_runs_with_one_seed_draw_the_same_names() -> None:
    def uid() -> str:
        client = LocalClient(Api(VirtualClock(), seed=7))
        return client.create("namespaces", {"metadata": {"name": "x"}})["metadata"]["uid"]

    assert uid() == uid()


def test_a_role_allows_its_verbs_subresources_and_names_and_nothing_else(api: Api, client: LocalClient) -> None:
    user = "system:serviceaccount:inference:worker"
    rules = [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["mine"], "verbs": ["get"]},
        {"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["patch"]},
    ]
    meta = {"name": "worker", "namespace": NS}
    client.create("roles", {"metadata": meta, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "worker", "namespace": NS}
    client.create(
        "rolebindings", {"metadata": meta, "roleRef": {"kind": "Role", "name": "worker"}, "subjects": [subject]}
    )
    client.create("deployments", deployment())
    for name in ("mine", "yours"):
        client.create("configmaps", {"metadata": {"name": name, "namespace": NS}})

    def status(method: str, path: str, kind: str = "application/json") -> int:
        body = b'{"spec":{"replicas":0}}' if method == "PATCH" else b""
        return api.handle(Request(method, path, {}, {"content-type": kind}, body, user)).status

    maps, web = f"/api/v1/namespaces/{NS}/configmaps", f"/apis/apps/v1/namespaces/{NS}/deployments/web"
    assert [status("GET", f"{maps}/{name}") for name in ("mine", "yours")] == [200, 403]
    assert status("GET", maps) == 403
    assert status("PATCH", f"{web}/scale", MERGE) == 200
    assert status("PATCH", web, MERGE) == 403
    assert status("GET", "/api/v1/namespaces/other/configmaps/mine") == 403


@pytest.mark.parametrize("kind", ["application/json", "application/json-patch", "text/plain", ""])
def test_a_patch_of_no_known_type_is_unsupported(api: Api, client: LocalClient, kind: str) -> None:
    client.create("deployments", deployment())
    response = call(api, "PATCH", f"/apis/apps/v1/namespaces/{NS}/deployments/web", {}, kind)
    assert (response.status, response.json()["reason"]) == (415, "UnsupportedMediaType")
    assert "application/strategic-merge-patch+json" in response.json()["message"]
