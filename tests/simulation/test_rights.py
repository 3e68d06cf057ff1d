"""What Airflow's service account may do: each right that is taken away is named, and no user notices."""

from __future__ import annotations

import re
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import yaml

from sandbox.workload import GUARD, NAMESPACE, ORCHESTRATOR, RBAC
from sandbox.world import CLUSTER, LOCATION, PROJECT
from tests.simulation.harness import Calls, Killed, Scene
from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.iam import NEEDED
from tpu_migration.drive import drive
from tpu_migration.errors import MigrationError
from tpu_migration.guard import RIGHTS as GUARD_RIGHTS
from tpu_migration.guard import RIGHTS_EVERY_S, Guard
from tpu_migration.lease import Holder
from tpu_migration.stages import STAGES
from tpu_migration.stages.base import Context, Done, Failed
from tpu_migration.stages.run import StageRun
from tpu_migration.stages.survey import RIGHTS

DOCUMENT = Path(__file__).parents[2] / "docs" / "rights.md"
ROLE, CLUSTER_ROLE = "tpu-migration", "tpu-migration-nodes"
# Rights that preflight asks for by name, as (verb, resource).
ASKED = sorted((verb, f"{kind.plural}{'/' + sub if sub else ''}") for verb, kind, sub in RIGHTS)
# Rights that preflight uses itself, so that it meets their absence.
USED = [
    ("get", "configmaps"),
    ("list", "services"),
    ("list", "secrets"),
    ("get", "deployments"),
    ("get", "leases"),
    ("create", "leases"),
    ("list", "horizontalpodautoscalers"),
    ("list", "poddisruptionbudgets"),
    ("list", "httproutes"),
    ("get", "gateways"),
    ("list", "healthcheckpolicies"),
    ("list", "gcpbackendpolicies"),
    ("list", "podmonitorings"),
]
# Rights that a run needs later, and that preflight neither asks for nor uses.
LATER = [
    ("get", "jobs"),
    ("list", "jobs"),
    ("delete", "jobs"),
    ("list", "endpointslices"),
    ("get", "horizontalpodautoscalers"),
    ("delete", "poddisruptionbudgets"),
    ("get", "httproutes"),
    ("patch", "httproutes"),
    ("delete", "httproutes"),
    ("patch", "healthcheckpolicies"),
    ("patch", "gcpbackendpolicies"),
    ("patch", "podmonitorings"),
]


class Withheld:
    """Google's answer about an account that lacks one permission."""

    def __init__(self, permission: str) -> None:
        self.permission = permission

    def missing(self) -> list[str]:
        return [self.permission]


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


@pytest.mark.parametrize(("verb", "resource"), [*ASKED, *USED])
def test_preflight_names_the_right_that_is_missing_before_anything_is_made(verb, resource):
    scene = without(verb, resource)
    outcome = scene.airflow()._task("preflight")
    assert isinstance(outcome, Failed)
    assert_named(outcome.reason, verb, resource)
    scene.assert_nothing_left()
    scene.assert_nobody_noticed()


@pytest.mark.parametrize(("verb", "resource"), LATER)
def test_a_right_that_only_a_later_task_misses_is_named_there_and_no_user_notices(verb, resource):
    scene = without(verb, resource)
    airflow = scene.airflow().run()
    assert not airflow.green
    assert_named(airflow.reasons(), verb, resource)
    scene.assert_nobody_noticed()


@pytest.mark.parametrize(("verb", "resource"), [("get", "nodes"), ("list", "nodes"), ("list", "pods")])
def test_a_right_on_the_whole_cluster_that_is_missing_is_named_and_no_user_notices(verb, resource):
    scene = without(verb, resource, role=CLUSTER_ROLE)
    airflow = scene.airflow().run()
    assert not airflow.green
    assert_named(airflow.reasons(), verb, resource)
    scene.assert_nobody_noticed()


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


@pytest.mark.parametrize("permission", NEEDED)
def test_preflight_names_the_permission_that_google_withholds(permission):
    scene = Scene()
    pools = NodePools(scene.world.cluster_manager(lambda *_: None, lambda *_: None), PROJECT, LOCATION, CLUSTER)
    kube = scene.client(ORCHESTRATOR)
    context = Context.create(scene.plan, Holder("run-1", "preflight", 1), kube, pools, scene.world.clock)
    context.permissions = Withheld(permission)
    outcome = drive(StageRun(STAGES["preflight"], context), sleep=scene.world.advance, keeping=lambda _: nullcontext())
    assert isinstance(outcome, Failed)
    assert f"lacks {permission} on project" in outcome.reason
    scene.assert_nothing_left()


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


GUARD_ASKED = sorted((verb, f"{kind.plural}{'/' + sub if sub else ''}") for verb, kind, sub in GUARD_RIGHTS)


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


@pytest.mark.parametrize(("verb", "resource"), GUARD_ASKED)
def test_nothing_begins_under_a_guard_that_could_not_help(verb, resource, caplog):
    """With a guard that may not write the route users would stay where a dead Airflow left them."""
    scene = watched_by_guards_without(verb, resource)
    scene.world.advance(30.0)
    outcome = scene.airflow()._task("preflight")
    assert isinstance(outcome, Failed)
    assert "no guard runs in namespace" in outcome.reason
    assert f"lacks rights in namespace {NAMESPACE}: {verb} {resource}; " in caplog.text
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


def test_the_guard_asks_for_everything_that_its_manifest_grants():
    granted = {(rule["verbs"][0], rule["resources"][0]) for rule in granted_singly(rules_of(GUARD))}
    # Its own heartbeat fails by itself without these.
    assert granted - {(verb, "leases") for verb in ("get", "create", "update")} == set(GUARD_ASKED)
