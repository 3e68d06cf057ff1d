"""What Airflow's service account may do: each right that is taken away is named, and no user notices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from sandbox.workload import GUARD, NAMESPACE, ORCHESTRATOR, RBAC
from sandbox.world import CLUSTER, LOCATION, PROJECT
from tests.simulation.harness import Calls, Killed, Scene
from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.iam import ACT_AS, NEEDED, READ_METRICS
from tpu_migration.clients.kubernetes import Response
from tpu_migration.drive import drive
from tpu_migration.errors import MigrationError
from tpu_migration.guard import MANIFEST as GUARD_MANIFEST
from tpu_migration.guard import RIGHTS_EVERY_S, Guard
from tpu_migration.lease import Holder
from tpu_migration.rights import OPTIONAL, granted_by
from tpu_migration.stages import STAGES
from tpu_migration.stages.base import Context, Done, Failed
from tpu_migration.stages.run import StageRun
from tpu_migration.stages.survey import MANIFEST, Survey

DOCUMENT = Path(__file__).parents[2] / "docs" / "rights.md"
ROLE, CLUSTER_ROLE = "tpu-migration", "tpu-migration-nodes"
# One a rule of rbac.yaml: what a run needs, and what preflight therefore asks for.
NEEDED_RIGHTS = [each for each in granted_by(MANIFEST) if each not in OPTIONAL]
# What the guard's manifest grants it.
GUARD_RIGHTS = granted_by(GUARD_MANIFEST)


class Withheld:
    """Google's answers about an account that lacks one permission."""

    def __init__(self, permission: str) -> None:
        self.permission = permission

    def missing(self, wanted: Sequence[str], account: str = "") -> list[str]:
        return [each for each in wanted if each == self.permission]


def granted_singly(rules: list[dict[str, list[str]]]) -> list[dict[str, list[str]]]:
    """Return the same rights, one a rule."""
    return [
        {"apiGroups": [group], "resources": [each], "verbs": [one]}
        for rule in rules
        for group in rule["apiGroups"]
        for each in rule["resources"]
        for one in rule["verbs"]
    ]


def take_away(scene: Scene, verb: str, resource: str, *, role: str = ROLE) -> None:
    """Let a role grant all that it did but one right."""
    kind, namespace = ("clusterroles", "") if role == CLUSTER_ROLE else ("roles", NAMESPACE)
    found = scene.world.client.get(kind, namespace, role)
    granted = granted_singly(found["rules"])
    found["rules"] = [rule for rule in granted if (rule["verbs"], rule["resources"]) != ([verb], [resource])]
    assert len(found["rules"]) == len(granted) - 1, f"{role} does not grant {verb} {resource}"
    scene.world.client.update(kind, found)


def without(verb: str, resource: str, *, role: str = ROLE) -> Scene:
    """Return a scene in which the role of rbac.yaml grants all but one right."""
    scene = Scene()
    take_away(scene, verb, resource, role=role)
    return scene


def assert_named(reason: str, verb: str, resource: str) -> None:
    """The message names the right, as RBAC does or as preflight does, and the file that grants it."""
    plural, _, sub = resource.partition("/")
    by_server = f'cannot {verb} resource "{resource}"' in reason
    assert by_server or f"{verb} {plural}{'/' + sub if sub else ''}" in reason, reason
    assert "include/manifests/rbac.yaml" in reason


def preflight(scene: Scene) -> Failed:
    outcome = scene.airflow()._task("preflight")
    assert isinstance(outcome, Failed)
    scene.assert_nothing_left()
    scene.assert_nobody_noticed()
    return outcome


@pytest.mark.parametrize("right", NEEDED_RIGHTS, ids=str)
def test_preflight_names_the_right_that_is_missing_before_anything_is_made(right):
    """One that only the clean-up misses would be found out when users wait for it."""
    scene = without(right.verb, right.resource, role=CLUSTER_ROLE if right.everywhere else ROLE)
    if replace(right, everywhere=True) in NEEDED_RIGHTS and not right.everywhere:  # who may in all may in each
        take_away(scene, right.verb, right.resource, role=CLUSTER_ROLE)
    assert_named(preflight(scene).reason, right.verb, right.resource)


def test_all_that_is_missing_is_named_at_once():
    scene = Scene()
    for right in NEEDED_RIGHTS:
        if right.verb in ("create", "patch", "delete"):
            take_away(scene, right.verb, right.resource)
    reason = preflight(scene).reason
    for right in NEEDED_RIGHTS:
        if right.verb in ("create", "patch", "delete"):
            assert_named(reason, right.verb, right.resource)


def asked(scene: Scene, calls: Calls) -> list[str]:
    scene.airflow(calls=calls)._task("preflight")
    return [each.rpartition("/")[2] for each in calls.trace if "authorization.k8s.io" in each]


def test_one_question_covers_the_namespace_and_one_each_what_is_of_the_whole_cluster():
    everywhere = [each for each in NEEDED_RIGHTS if each.everywhere]
    assert asked(Scene(), Calls()) == ["selfsubjectrulesreviews", *["selfsubjectaccessreviews"] * len(everywhere)]


class Listing:
    """An API server that lists no rules, or refuses to, as with an authorizer for IAM beside RBAC; it still decides."""

    def __init__(self, scene: Scene, answer: Response) -> None:
        transport = scene.world.transport

        def unlisted(*hooks):
            send = transport(*hooks)
            return lambda method, path, **more: (
                answer if path.endswith("selfsubjectrulesreviews") else send(method, path, **more)
            )

        scene.world.transport = unlisted


NOT_LISTED = {
    "incomplete": Response(
        201,
        b'{"status": {"resourceRules": [], "nonResourceRules": [], "incomplete": true, '
        b'"evaluationError": "webhook authorizer does not support user rule resolution"}}',
    ),
    "complete, as it says": Response(201, b'{"status": {"resourceRules": [], "incomplete": false}}'),
    "by one name": Response(
        201,
        b'{"status": {"resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], '
        b'"resourceNames": ["one"]}], "incomplete": false}}',
    ),
    "refused": Response(403, b'{"message": "forbidden"}'),
}


@pytest.mark.parametrize("answer", NOT_LISTED.values(), ids=NOT_LISTED)
def test_rights_that_no_list_tells_are_asked_one_by_one(answer):
    """GKE's authorizer for IAM makes no lists: what is granted there would be taken for missing."""
    scene = Scene()
    Listing(scene, answer)
    assert isinstance(scene.airflow()._task("preflight"), Done)
    scene = without("delete", "poddisruptionbudgets")
    Listing(scene, answer)
    assert_named(preflight(scene).reason, "delete", "poddisruptionbudgets")


def test_a_rule_of_the_namespace_does_not_stand_for_the_whole_cluster():
    """The list does not tell one from the other, and a pool with others' pods on it would be deleted."""
    scene = without("list", "pods", role=CLUSTER_ROLE)
    assert "list pods in the whole cluster" in preflight(scene).reason


def test_a_namespace_whose_labels_may_not_be_read_is_told_as_not_checked():
    outcome = without("get", "namespaces", role=CLUSTER_ROLE).airflow()._task("preflight")
    assert isinstance(outcome, Done), "a look that only warns stops nobody"


def test_the_documents_explain_exactly_the_rights_that_the_manifest_grants():
    inside = DOCUMENT.read_text().partition("## Inside the cluster")[2]
    rows = re.findall(r"^\| ([a-z/, ]+) \| ([a-z, ]+) \| .+ \|$", inside, flags=re.MULTILINE)
    rows = [row for row in rows if row != ("what", "verbs")]
    explained = sorted((what, verbs) for names, verbs in rows for what in names.split(", "))
    granted = sorted((what, ", ".join(rule["verbs"])) for rule in rules_of(RBAC) for what in rule["resources"])
    assert explained == granted


def test_the_documents_explain_every_permission():
    for permission in NEEDED:
        assert f"| `{permission}` |" in DOCUMENT.read_text()


def test_all_rights_together_are_enough():
    scene = Scene()
    assert isinstance(scene.airflow()._task("preflight"), Done)


NODES = "tpu-nodes@sandbox-project.iam.gserviceaccount.com"
ON_GOOGLE = [
    *[(each, f"project {PROJECT}", {}) for each in NEEDED],
    (READ_METRICS, f"project {PROJECT}", {"peak_rps": 0, "prometheus_url": "gmp"}),
    (ACT_AS, NODES, {"node_service_account": NODES}),
]


@pytest.mark.parametrize(("permission", "where", "plan"), ON_GOOGLE, ids=[each[0] for each in ON_GOOGLE])
def test_preflight_names_the_permission_that_google_withholds(permission, where, plan):
    scene = Scene(**plan)
    pools = NodePools(scene.world.cluster_manager(lambda *_: None, lambda *_: None), PROJECT, LOCATION, CLUSTER)
    kube = scene.client(ORCHESTRATOR)
    context = Context.create(scene.plan, Holder("run-1", "preflight", 1), kube, pools, scene.world.clock)
    context.permissions = Withheld(permission)
    outcome = drive(StageRun(STAGES["preflight"], context), sleep=scene.world.advance, keeping=lambda _: nullcontext())
    assert isinstance(outcome, Failed)
    assert f"lacks {permission} on {where}" in outcome.reason
    scene.assert_nothing_left()


def test_a_permission_that_no_run_of_this_plan_needs_is_not_asked_for():
    wanted: list[str] = []
    for plan in ({}, {"node_service_account": NODES, "tpu_pool": "theirs"}):
        scene = Scene(**plan)
        pools = NodePools(None, PROJECT, LOCATION, CLUSTER)
        kube, holder = scene.client(ORCHESTRATOR), Holder("run-1", "preflight", 1)
        context = Context.create(scene.plan, holder, kube, pools, scene.world.clock)
        context.permissions = SimpleNamespace(missing=lambda asked, account="": wanted.extend(asked) or [])
        Survey(context)._check_permissions()
    assert set(wanted) == set(NEEDED)


def test_the_role_for_google_grants_what_preflight_asks_for_and_no_more():
    role = yaml.safe_load((RBAC.parent / "iam-role.yaml").read_text())
    assert sorted(role["includedPermissions"]) == sorted(NEEDED)
    assert role.keys() == {"title", "description", "stage", "includedPermissions"}


@pytest.mark.parametrize("manifest", [RBAC, GUARD], ids=lambda path: path.stem)
def test_no_role_grants_a_right_by_a_star_or_any_on_roles(manifest):
    assert rules_of(manifest)
    for rule in rules_of(manifest):
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert "rbac.authorization.k8s.io" not in rule["apiGroups"], "whoever may write roles may do all"
        assert not {"impersonate", "bind", "escalate"} & set(rule["verbs"])


def rules_of(manifest: Path) -> list[dict[str, list[str]]]:
    return [rule for each in yaml.safe_load_all(manifest.read_text()) if each for rule in each.get("rules", ())]


# --------------------------------------------------------------------------------- the guard


def watched_by_guards_without(verb: str, resource: str) -> Scene:
    """Return a scene whose guards, as their processes do, ask for their rights; one of them they do not have."""
    scene = Scene(guard=False)
    take_away(scene, verb, resource, role="tpu-migration-guard")
    for guard in scene.guards:
        scene.world.on_tick.append(lambda guard=guard: tick(guard))
    return scene


def tick(guard: Guard) -> None:
    with suppress(MigrationError):  # the process tells it and goes on
        guard.ask_for_rights()
        guard.tick()


@pytest.mark.parametrize("right", GUARD_RIGHTS, ids=str)
def test_nothing_begins_under_a_guard_that_could_not_help(right, caplog):
    """With a guard that may not write the route users would stay where a dead Airflow left them."""
    scene = watched_by_guards_without(right.verb, right.resource)
    scene.world.advance(30.0)
    outcome = scene.airflow()._task("preflight")
    assert isinstance(outcome, Failed)
    assert "no guard runs in namespace" in outcome.reason
    assert f"lacks rights in namespace {NAMESPACE}: {right}; " in caplog.text
    scene.assert_nothing_left()


def test_a_guard_beats_soon_after_it_was_given_what_it_lacked():
    scene = watched_by_guards_without("update", "httproutes")
    scene.world.advance(30.0)
    role = scene.world.client.get("roles", NAMESPACE, "tpu-migration-guard")
    role["rules"].append({"apiGroups": ["gateway.networking.k8s.io"], "resources": ["httproutes"], "verbs": ["update"]})
    scene.world.client.update("roles", role)
    scene.world.advance(20.0)
    assert isinstance(scene.airflow()._task("preflight"), Done)


def test_a_guard_that_lacks_one_right_still_helps_as_far_as_it_may():
    scene = Scene(guard=False)
    for guard in scene.guards:
        scene.world.on_tick.append(lambda guard=guard: tick(guard))
    scene.world.advance(6.0)
    airflow = scene.airflow(calls=Calls())

    def die() -> None:
        take_away(scene, "patch", "deployments/scale", role="tpu-migration-guard")
        airflow.calls.kill_at = airflow.calls.count + 3

    scene.when_percent(50, die)
    with pytest.raises(Killed):
        airflow.run()
    scene.world.advance(RIGHTS_EVERY_S + 120.0)
    assert all(guard.lacking == ("patch deployments/scale",) for guard in scene.guards)
    scene.assert_users_on_gpu()
    scene.assert_nobody_noticed()
