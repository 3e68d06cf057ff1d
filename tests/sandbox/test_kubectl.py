"""A plain kubectl works against the embedded API, as it does against a real one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio
from kubectl_shell import NODE, Shell, config_map, deployment, end, lacking, next_line, rows
from served_api import Cluster, kubelet, needs_kubectl, serving, until

pytestmark = [needs_kubectl, pytest.mark.asyncio(loop_scope="module")]
CRDS = Path(__file__).resolve().parents[3] / "shared" / "crds"
_NAMESPACES = count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """One cluster for all scripts, with a node that runs what is bound to it."""
    async with serving(tmp_path_factory.mktemp("kubectl")) as cluster:
        cluster.local.create("nodes", NODE)
        with kubelet(cluster):
            yield cluster


@pytest_asyncio.fixture(loop_scope="module")
async def shell(cluster: Cluster) -> Shell:
    namespace = f"n{next(_NAMESPACES)}"
    cluster.local.create("namespaces", {"metadata": {"name": namespace}})
    return Shell(cluster, namespace)


async def test_get_prints_tables_yaml_jsonpath_and_what_selectors_choose(shell: Shell) -> None:
    await shell.rolled_out()
    head, row = rows(await shell.run("get deployments"))
    assert head == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    assert row[:4] == ["web", "2/2", "2", "2"]
    assert rows(await shell.run("get deployments -o wide"))[1][5:] == ["main", "web:1", "app=web"]
    head, first, second = rows(await shell.run("get pods -o wide -l app=web"))
    assert head[:7] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]
    assert [first[i] for i in (2, 5, 6)] == ["Running", "127.0.0.1", "n1"]
    assert await shell.run("get pods -l app=other") == f"No resources found in {shell.namespace} namespace.\n"
    chosen = await shell.run(f"get pods -o name --field-selector metadata.name={second[0]},status.phase=Running")
    assert chosen == f"pod/{second[0]}\n"
    assert await shell.run("get deployment web -o jsonpath={.spec.replicas}") == "2"
    assert "image: web:1\n" in await shell.run("get deployment web -o yaml")
    await shell.run("create -f -", stdin=deployment("web:0", 1, name="small"))
    ordered = rows(await shell.run("get deployments --sort-by={.spec.replicas} --no-headers"))
    assert [row[0] for row in ordered] == ["small", "web"]
    shown = await shell.run("get all -o name")
    assert "deployment.apps/web" in shown
    assert "replicaset.apps/web-" in shown
    node = rows(await shell.run("get nodes -o wide"))[1]
    assert node[:3] == ["n1", "Ready", "worker"]
    assert "127.0.0.1" in node


async def test_get_watch_prints_rows_as_things_change(shell: Shell) -> None:
    local = shell.cluster.local
    local.create("configmaps", {"metadata": {"name": "a", "namespace": shell.namespace}, "data": {"k": "v"}})
    watching = await shell.cluster.start_kubectl(f"--namespace={shell.namespace}", "get", "configmaps", "-w")
    assert (await next_line(watching)).split() == ["NAME", "DATA", "AGE"]
    assert (await next_line(watching)).split()[:2] == ["a", "1"]
    # It has listed, so whatever comes now is seen.
    local.create("configmaps", {"metadata": {"name": "b", "namespace": shell.namespace}, "data": {"k": "v", "l": "w"}})
    assert (await next_line(watching)).split()[:2] == ["b", "2"]
    await end(watching)


async def test_watch_only_prints_nothing_of_what_was_there(shell: Shell) -> None:
    local = shell.cluster.local
    local.create("configmaps", {"metadata": {"name": "a", "namespace": shell.namespace}, "data": {}})
    arguments = ("get", "configmaps", "-w", "--watch-only", "--no-headers")
    watching = await shell.cluster.start_kubectl(f"--namespace={shell.namespace}", *arguments)
    line = asyncio.create_task(next_line(watching))
    for number in count():  # nobody can see when it has begun to watch: change until it tells
        local.patch("configmaps", shell.namespace, "a", {"data": {f"k{number}": "v"}})
        done, _ = await asyncio.wait([line], timeout=0.05)
        if done:
            break
    name, size, *_ = line.result().split()
    assert name == "a"
    assert int(size) >= 1
    await end(watching)


async def test_describe_tells_of_conditions_and_events(shell: Shell) -> None:
    await shell.rolled_out()
    await shell.run("expose deployment web --port=80 --target-port=8000")
    described = await shell.run("describe deployment web")
    assert "2 desired | 2 updated | 2 total | 2 available | 0 unavailable" in described
    assert "MinimumReplicasAvailable" in described
    assert "Scaled up replica set web-" in described
    pod = shell.pods()[0]["metadata"]["name"]
    described = await shell.run(f"describe pod {pod}")
    assert f"Successfully assigned {shell.namespace}/{pod} to n1" in described
    assert "ReplicaSet/web-" in described
    described = await shell.run("describe node n1")
    assert "Ready" in described
    assert pod in described
    described = await shell.run("describe service web")
    assert "TargetPort:" in described
    assert "127.0.0.1:8000" in described
    assert "ScalingReplicaSet" in await shell.run("events --for deployment/web")


async def test_server_side_apply_keeps_owners_apart(shell: Shell) -> None:
    applied = "deployment.apps/web serverside-applied\n"
    assert await shell.run("apply --server-side -f -", stdin=deployment()) == applied
    await shell.run("rollout status deployment/web --timeout=20s")
    before = shell.get("deployments", "web")["metadata"]["resourceVersion"]
    assert await shell.run("apply --server-side -f -", stdin=deployment()) == applied
    assert shell.get("deployments", "web")["metadata"]["resourceVersion"] == before
    refused = await shell.fails("apply --server-side --field-manager=other -f -", stdin=deployment(replicas=1))
    assert 'Apply failed with 1 conflict: conflict with "kubectl": .spec.replicas' in refused
    assert "--force-conflicts" in refused
    await shell.run("apply --server-side --field-manager=other --force-conflicts -f -", stdin=deployment(replicas=1))
    assert shell.get("deployments", "web")["spec"]["replicas"] == 1
    refused = await shell.fails("apply --server-side -f -", stdin=deployment())
    assert 'conflict with "other": .spec.replicas' in refused


async def test_client_side_apply_and_diff_see_what_is_different(shell: Shell) -> None:
    assert await shell.run("apply -f -", stdin=deployment()) == "deployment.apps/web created\n"
    assert await shell.run("apply -f -", stdin=deployment()) == "deployment.apps/web unchanged\n"
    await shell.run("rollout status deployment/web --timeout=20s")
    assert await shell.run("diff -f -", stdin=deployment()) == ""
    different = await shell.fails("diff -f -", stdin=deployment("web:2"))
    assert "-      - image: web:1\n+      - image: web:2\n" in different
    different = await shell.fails("diff --server-side --force-conflicts -f -", stdin=deployment("web:2"))
    assert "+      - image: web:2\n" in different
    assert shell.get("deployments", "web")["spec"]["template"]["spec"]["containers"][0]["image"] == "web:1"
    assert await shell.run("apply -f -", stdin=deployment("web:2")) == "deployment.apps/web configured\n"
    without = deployment("web:2")
    del without["spec"]["template"]["spec"]["containers"][0]["ports"]
    await shell.run("apply -f -", stdin=without)
    assert "ports" not in shell.get("deployments", "web")["spec"]["template"]["spec"]["containers"][0]


async def test_patch_label_annotate_and_set_image_change_what_they_say(shell: Shell) -> None:
    await shell.run("create -f -", stdin=deployment())
    side = {"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "side:1"}]}}}}
    await shell.run("patch deployment web -p", json.dumps(side))
    await shell.run("patch deployment web --type=merge -p", '{"spec":{"replicas":3}}')
    test = '[{"op":"test","path":"/spec/replicas","value":9},{"op":"remove","path":"/spec/replicas"}]'
    assert "the server rejected our request" in await shell.fails("patch deployment web --type=json -p", test)
    assert "no change" in await shell.run("patch deployment web -p", '{"spec":{"replicas":3}}')
    await shell.run("set image deployment/web main=web:9")
    assert await shell.run("label deployment web tier=a") == "deployment.apps/web labeled\n"
    assert "already has a value" in await shell.fails("label deployment web tier=b")
    await shell.run("label deployment web tier=b --overwrite")
    await shell.run("annotate deployment web note=1")
    await shell.run("annotate deployment web note-")
    found = shell.get("deployments", "web")
    assert found["spec"]["replicas"] == 3
    images = [container["image"] for container in found["spec"]["template"]["spec"]["containers"]]
    assert sorted(images) == ["side:1", "web:9"]
    assert found["metadata"]["labels"]["tier"] == "b"
    assert "note" not in found["metadata"].get("annotations", {})


async def test_scale_minds_the_current_size_and_dry_runs_change_nothing(shell: Shell) -> None:
    await shell.run("create -f -", stdin=deployment())
    await shell.run("scale deployment web --replicas=5 --dry-run=server")
    assert shell.get("deployments", "web")["spec"]["replicas"] == 2
    assert "Expected replicas to be 9, was 2" in (
        await shell.fails("scale deployment web --replicas=5 --current-replicas=9")
    )
    assert await shell.run("scale deployment web --replicas=1 --current-replicas=2") == "deployment.apps/web scaled\n"
    await shell.run("wait deployment/web --for=jsonpath={.status.readyReplicas}=1 --timeout=20s")
    dry = await shell.run("delete deployment web --dry-run=server")
    assert "deleted" in dry
    assert "(server dry run)" in dry
    assert shell.get("deployments", "web")["spec"]["replicas"] == 1
    await shell.run("create -f - --dry-run=server", stdin=config_map("c"))
    assert "NotFound" in await shell.fails("get configmap c")


async def test_logs_choose_a_container_a_tail_the_run_before_and_follow(shell: Shell) -> None:
    two = deployment(replicas=1)
    two["spec"]["template"]["spec"]["containers"].append({"name": "side", "image": "side:1"})
    await shell.run("create -f -", stdin=two)
    await shell.run("rollout status deployment/web --timeout=20s")
    (pod,) = [pod["metadata"]["name"] for pod in shell.pods()]
    assert "web:1 starts\nit is ready\n" in await shell.run(f"logs {pod}")
    assert await shell.run(f"logs {pod} -c side") == "side:1 starts\nit is ready\n"
    assert await shell.run("logs deployment/web -c main --tail=1") == "it is ready\n"
    assert "container nope is not valid" in await shell.fails(f"logs {pod} -c nope")
    assert 'previous terminated container "main"' in await shell.fails(f"logs {pod} -c main --previous")
    log = shell.cluster.directory / "pods" / f"{shell.namespace}_{pod}_main.log"
    log.with_suffix(".previous.log").write_text("it crashed\n")
    assert await shell.run(f"logs {pod} -c main --previous") == "it crashed\n"
    arguments = ("logs", "-f", pod, "-c", "main", "--tail=1")
    following = await shell.cluster.start_kubectl(f"--namespace={shell.namespace}", *arguments)
    assert await next_line(following) == "it is ready\n"
    with log.open("a") as file:
        file.write("more\n")
    assert await next_line(following) == "more\n"
    await shell.run(f"delete pod {pod}")
    assert await asyncio.wait_for(following.wait(), 20) == 0


async def test_delete_orphans_or_takes_dependents_along_as_asked(shell: Shell) -> None:
    await shell.rolled_out()
    await shell.run("delete deployment web --cascade=orphan")
    (replica_set,) = shell.cluster.local.list("replicasets", shell.namespace)
    assert "ownerReferences" not in replica_set["metadata"]
    assert len(shell.pods()) == 2
    await shell.run(f"delete replicaset {replica_set['metadata']['name']} --cascade=background --wait")
    await until(lambda: not shell.pods(), "the pods go")
    await shell.rolled_out()
    await shell.run("delete deployment web --cascade=foreground --timeout=20s")
    assert shell.pods() == []
    assert shell.cluster.local.list("replicasets", shell.namespace) == []
    await shell.run("create -f -", stdin=config_map("c"))
    assert "deleted" in await shell.run("delete -f - --wait=false", stdin=config_map("c"))
    assert "NotFound" in await shell.fails("delete configmap c")
    assert "not found" not in await shell.run("delete configmap c --ignore-not-found")


async def test_wait_ends_with_the_condition_or_the_timeout(shell: Shell) -> None:
    await shell.run("create -f -", stdin=deployment())
    assert await shell.run("wait --for=condition=Available deployment/web --timeout=20s") == (
        "deployment.apps/web condition met\n"
    )
    (first, _) = shell.pods()
    gone = asyncio.create_task(shell.run(f"wait --for=delete pod/{first['metadata']['name']} --timeout=20s"))
    await shell.run("delete pod --all --wait=false")
    await gone
    assert "timed out waiting" in (await shell.fails("wait --for=condition=ReplicaFailure deployment/web --timeout=1s"))


async def test_rollouts_are_followed_restarted_undone_and_paused(shell: Shell) -> None:
    await shell.rolled_out()
    await shell.run("set image deployment/web main=web:2")
    assert "successfully rolled out" in await shell.run("rollout status deployment/web --timeout=20s")
    history = rows(await shell.run("rollout history deployment/web"))
    assert [row[0] for row in history if row and row[0].isdigit()] == ["1", "2"]
    assert "web:2" in await shell.run("rollout history deployment/web --revision=2")
    assert await shell.run("rollout undo deployment/web") == "deployment.apps/web rolled back\n"
    await shell.run("rollout status deployment/web --timeout=20s")
    assert {pod["spec"]["containers"][0]["image"] for pod in shell.pods()} == {"web:1"}
    before = {pod["metadata"]["uid"] for pod in shell.pods()}
    await shell.run("rollout restart deployment/web")
    await shell.run("rollout status deployment/web --timeout=20s")
    await until(lambda: not before & {pod["metadata"]["uid"] for pod in shell.pods()}, "all pods are new")
    await shell.run("rollout pause deployment/web")
    assert shell.get("deployments", "web")["spec"]["paused"] is True
    await shell.run("rollout resume deployment/web")
    assert "paused" not in shell.get("deployments", "web")["spec"]


async def test_everybody_may_ask_what_it_may_do(shell: Shell) -> None:
    assert await shell.run("auth can-i delete pods") == "yes\n"
    assert await shell.fails("auth can-i delete pods --token=none") == "no\n"
    assert "Forbidden" in await shell.fails("get pods --token=none")
    assert "Unauthorized" in await shell.fails("get pods --token=wrong")
    local = shell.cluster.local
    meta = {"name": "reader", "namespace": shell.namespace}
    local.create("roles", {"metadata": meta, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]})
    subject = {"kind": "ServiceAccount", "name": "nobody", "namespace": "inference"}
    local.create(
        "rolebindings", {"metadata": meta, "roleRef": {"kind": "Role", "name": "reader"}, "subjects": [subject]}
    )
    assert await shell.run("auth can-i list pods --token=none") == "yes\n"
    listed = rows(await shell.run("auth can-i --list --token=none"))
    assert ["pods", "[]", "[]", "[list]"] in listed
    assert "system:serviceaccount:inference:nobody" in await shell.run("auth whoami --token=none")


async def test_create_and_replace_know_what_is_there(shell: Shell) -> None:
    assert await shell.run("create -f -", stdin=config_map("c", k="1")) == "configmap/c created\n"
    assert "AlreadyExists" in await shell.fails("create -f -", stdin=config_map("c"))
    assert await shell.run("replace -f -", stdin=config_map("c", k="2")) == "configmap/c replaced\n"
    assert shell.get("configmaps", "c")["data"] == {"k": "2"}
    stale = {**config_map("c"), "metadata": {"name": "c", "resourceVersion": "1"}}
    assert "the object has been modified" in await shell.fails("replace -f -", stdin=stale)
    wrong = {**deployment(), "spec": {**deployment()["spec"], "tempalte": {}}}
    assert 'unknown field "spec.tempalte"' in await shell.fails("create -f -", stdin=wrong)


@pytest.mark.parametrize(
    ("resource", "command"),
    [
        ("configmaps", "configmap made --from-literal=k=v"),
        ("secrets", "secret generic made --from-literal=k=v"),
        ("serviceaccounts", "serviceaccount made"),
        ("deployments", "deployment made --image=a:1 --replicas=3 --port=80"),
        ("jobs", "job made --image=a:1 -- sh -c true"),
    ],
)
async def test_what_kubectl_creates_in_protobuf_is_what_it_shows_as_json(
    shell: Shell, resource: str, command: str
) -> None:
    options, dashes, program = command.partition(" -- ")
    shown = json.loads(await shell.run(f"create {options} --dry-run=client -o json{dashes}{program}"))
    await shell.run(f"create {command}")
    assert lacking(shown, shell.get(resource, "made")) == []


async def test_a_namespace_is_created_and_emptied(shell: Shell) -> None:
    await shell.run(f"create namespace {shell.namespace}-b")
    other = Shell(shell.cluster, f"{shell.namespace}-b")
    await other.run("create configmap c --from-literal=k=v")
    await shell.run(f"delete namespace {shell.namespace}-b --timeout=20s")
    assert "NotFound" in await other.fails("get configmap c")


async def test_the_server_says_what_it_is_and_serves(shell: Shell) -> None:
    assert "Server Version: v1.36" in await shell.run("version")
    listed = {tuple(row) for row in rows(await shell.run("api-resources --no-headers"))}
    assert ("deployments", "deploy", "apps/v1", "true", "Deployment") in listed
    assert ("httproutes", "gateway.networking.k8s.io/v1", "true", "HTTPRoute") in listed
    assert await shell.run("get --raw /readyz") == "ok"
    explained = await shell.run("explain deployment.spec.strategy")
    assert "FIELD: strategy <DeploymentStrategy>" in explained
    assert "rollingUpdate\t<RollingUpdateDeployment>" in explained
    assert "FIELD: weight <integer>" in await shell.run("explain httproute.spec.rules.backendRefs.weight")
    assert await shell.run("cordon n1") == "node/n1 cordoned\n"
    assert rows(await shell.run("get nodes"))[1][1] == "Ready,SchedulingDisabled"
    await shell.run("uncordon n1")


@pytest.mark.skipif(not CRDS.is_dir(), reason="the definitions of ../shared are not on this machine")
async def test_definitions_are_applied_and_their_resources_held_to_them(shell: Shell) -> None:
    names = ("leaderworkerset.x-k8s.io_leaderworkersets", "gateway.networking.k8s.io_httproutes")
    for name in names:
        for _ in range(2):
            assert "serverside-applied" in await shell.run("apply --server-side -f", str(CRDS / f"{name}.yaml"))
    crds = ("crd/leaderworkersets.leaderworkerset.x-k8s.io", "crd/httproutes.gateway.networking.k8s.io")
    await shell.run("wait --for=condition=Established --timeout=20s", *crds)
    workers = {"containers": [{"name": "c", "image": "i"}]}
    group = {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": "g"},
        "spec": {"replicas": 1, "leaderWorkerTemplate": {"size": 2, "workerTemplate": {"spec": workers}}},
    }
    assert "serverside-applied" in await shell.run("apply --server-side -f -", stdin=group)
    assert rows(await shell.run("get lws"))[0] == ["NAME", "READY", "DESIRED", "UP-TO-DATE", "AGE"]
    await shell.run("scale lws g --replicas=3")
    assert await shell.run("get lws g -o jsonpath={.spec.replicas}") == "3"
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "r"},
        "spec": {"hostnames": ["a.example"], "rules": [{"backendRefs": [{"name": "s"}]}]},
    }
    assert "Must have port for Service reference" in await shell.fails("apply --server-side -f -", stdin=route)
    route["spec"]["rules"][0]["backendRefs"][0]["port"] = 80  # type: ignore[index]
    await shell.run("apply --server-side -f -", stdin=route)
    assert rows(await shell.run("get httproutes"))[1][:2] == ["r", '["a.example"]']
    patch = '{"spec":{"hostnames":["b.example"]}}'
    assert "is not supported by" in await shell.fails("patch httproute r --type=strategic -p", patch)
    await shell.run("delete --timeout=20s", *crds)
    assert "NotFound" in await shell.fails("get crd httproutes.gateway.networking.k8s.io")
