"""What preflight judges before anything is made; each test names what would have gone wrong later."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from tpu_migration.domain.maintenance import Exclusion, Window
from tpu_migration.domain.plan import Plan
from tpu_migration.domain.preflight import BLOCKER, NOTE, WARNING, Cluster, Observed, Report, examine
from tpu_migration.report.preflight_page import WIDTH, render

PLANTED = "hf_plantedPLANTEDplanted"
# A Wednesday, 12:00 UTC.
NOON = dt.datetime(2026, 11, 25, 12, 0, tzinfo=dt.UTC)


def thing(kind: str, name: str = "vllm", spec: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name, **metadata}, "spec": spec or {}}


def deployment(env: list[Any] | None = None, args: list[str] | None = None, **pod: Any) -> dict[str, Any]:
    containers = [{"name": "vllm", "env": env or [], "args": args or []}]
    return thing("Deployment", spec={"template": {"spec": {"containers": containers, **pod}}})


def observed(**changes: Any) -> Observed:
    plan = Plan(workload="vllm", peak_rps=4.0)
    found = Observed(plan, NOON.timestamp(), deployment(), thing("HTTPRoute"), unassessed="nobody knows the model")
    return replace(found, **changes)


def severity(report: Report, code: str) -> str | None:
    """Return how bad a finding is; None if it was not found."""
    return next((each.severity for each in report.findings if each.code == code), None)


# --------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "API_KEY", "DB_PASSWORD", "SECRET", "apikey"])
def test_a_secret_in_plain_text_is_warned_of_by_name_and_its_value_is_on_no_page(name):
    found = observed(deployment=deployment(env=[{"name": name, "value": PLANTED}]))
    report = examine(found)
    assert severity(report, "literal-secret") == WARNING
    page = render(report, found.plan)
    assert name in page
    assert PLANTED not in page


@pytest.mark.parametrize(
    "args",
    [["--api-key", PLANTED], [f"--api-key={PLANTED}"], ["-c", f"exec vllm serve m --api-key '{PLANTED}' --port 1"]],
)
def test_a_secret_among_the_arguments_is_warned_of_and_not_repeated(args):
    found = observed(deployment=deployment(args=args))
    page = render(examine(found), found.plan)
    assert "argument --api-key" in page
    assert PLANTED not in page


@pytest.mark.parametrize(
    "variable",
    [
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}},
        {"name": "HF_TOKEN", "value": ""},
        {"name": "HF_TOKEN", "value": "$(OTHER)"},
        {"name": "TOKENIZERS_PARALLELISM", "value": "false"},
        {"name": "MAX_TOKENS", "value": "512"},
        {"name": "SSL_KEY_FILE", "value": "/etc/tls.key"},
        {"name": "MONKEY", "value": "1"},
    ],
)
def test_what_only_looks_like_a_secret_is_left_in_peace(variable):
    report = examine(observed(deployment=deployment(env=[variable])))
    assert severity(report, "literal-secret") is None
    assert "literal secrets" in report.passed


def test_a_shell_that_takes_the_key_from_a_variable_holds_no_secret():
    script = 'exec vllm serve m --api-key="$VLLM_API_KEY" --port 8000'
    assert severity(examine(observed(deployment=deployment(args=["-c", script]))), "literal-secret") is None


def test_a_secret_that_was_deleted_since_the_pods_started_stops_the_run():
    variable = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}
    found = observed(deployment=deployment(env=[variable]))
    assert severity(examine(replace(found, held={("Secret", "hf"): None})), "reference-missing") == BLOCKER
    other = examine(replace(found, held={("Secret", "hf"): frozenset({"other"})}))
    assert "has no key token" in other.blockers[0].state
    assert examine(replace(found, held={("Secret", "hf"): frozenset({"token"})})).blockers == ()


def test_a_secret_that_pods_can_do_without_may_be_missing():
    source = [{"secretRef": {"name": "hf", "optional": True}}]
    pods = deployment()
    pods["spec"]["template"]["spec"]["containers"][0]["envFrom"] = source
    assert examine(observed(deployment=pods, held={("Secret", "hf"): None})).blockers == ()


def test_a_projected_config_map_that_is_missing_stops_the_run():
    volumes = [{"name": "all", "projected": {"sources": [{"configMap": {"name": "chat"}}]}}]
    report = examine(observed(deployment=deployment(volumes=volumes), held={("ConfigMap", "chat"): None}))
    assert [each.thing for each in report.blockers] == ["ConfigMap chat"]


# ---------------------------------------------------------------------------------- owners

OWNED = [
    {"annotations": {"argocd.argoproj.io/tracking-id": "app:gateway.networking.k8s.io/HTTPRoute:inference/vllm"}},
    {"labels": {"argocd.argoproj.io/instance": "app"}},
    {"managedFields": [{"manager": "kubectl"}, {"manager": "argocd-controller"}]},
    {"labels": {"kustomize.toolkit.fluxcd.io/name": "apps"}},
    {"managedFields": [{"manager": "helm-controller"}]},
]


@pytest.mark.parametrize("metadata", OWNED)
def test_a_route_whose_weights_gitops_would_put_back_stops_the_run(metadata):
    found = observed(route=thing("HTTPRoute", **metadata))
    blocker = examine(found).blockers[0]
    assert blocker.code == "route-owner"
    assert "route_owner_consents" in blocker.remedy
    consents = replace(found, plan=replace(found.plan, route_owner_consents=True))
    assert severity(examine(consents), "route-owner") == NOTE
    proof = replace(found, plan=replace(found.plan, stop_after="gate"))
    assert severity(examine(proof), "route-owner") == WARNING


@pytest.mark.parametrize("metadata", OWNED)
@pytest.mark.parametrize(
    ("release", "expected"), [("keep", NOTE), ("scale-to-zero", BLOCKER), ("delete-pool", BLOCKER)]
)
def test_gpus_that_gitops_would_start_again_are_not_given_up(metadata, release, expected):
    owned = deployment()
    owned["metadata"].update(metadata)
    found = observed(deployment=owned)
    found = replace(found, plan=replace(found.plan, source_release=release))
    assert severity(examine(found), "workload-owner") == expected


def test_helm_writes_only_when_somebody_runs_it_so_it_is_a_warning():
    labels = {"app.kubernetes.io/managed-by": "Helm", "app.kubernetes.io/instance": "llm"}
    owned = deployment()
    owned["metadata"]["annotations"] = {"meta.helm.sh/release-name": "llm"}
    report = examine(observed(route=thing("HTTPRoute", labels=labels), deployment=owned))
    assert severity(report, "route-owner") == severity(report, "workload-owner") == WARNING
    assert report.blockers == ()


def test_an_object_of_nobody_passes():
    assert {"route's owner", "workload's owner"} <= set(examine(observed()).passed)


# --------------------------------------------------------------------- scaling, storage, nodes


@pytest.mark.parametrize(
    ("mode", "expected"), [("Auto", WARNING), ("Recreate", WARNING), (None, WARNING), ("Off", None), ("Initial", None)]
)
def test_a_vpa_that_evicts_pods_in_mid_shift_is_warned_of(mode, expected):
    policy = {"updatePolicy": {"updateMode": mode}} if mode else {}
    vpa = thing("VerticalPodAutoscaler", spec={"targetRef": {"kind": "Deployment", "name": "vllm"}, **policy})
    assert severity(examine(observed(vpas=[vpa])), "vpa-evicts") == expected


def test_the_vpa_of_another_workload_is_no_matter():
    vpa = thing("VerticalPodAutoscaler", spec={"targetRef": {"kind": "Deployment", "name": "other"}})
    assert severity(examine(observed(vpas=[vpa])), "vpa-evicts") is None


def test_a_budget_without_any_disruption_left_is_warned_of():
    closed = {**thing("PodDisruptionBudget"), "status": {"disruptionsAllowed": 0}}
    assert severity(examine(observed(pdbs=[closed])), "pdb-closed") == WARNING


def test_a_claim_that_is_gone_stops_the_run():
    report = examine(observed(claims={"weights": None, "cache": thing("PersistentVolumeClaim", "cache")}))
    assert [(each.code, each.thing) for each in report.blockers] == [("claim-missing", "PersistentVolumeClaim weights")]


def test_a_compute_class_is_told_and_autopilot_stops_the_run():
    selector = {"cloud.google.com/compute-class": "h100"}
    report = examine(observed(deployment=deployment(nodeSelector=selector), cluster=Cluster(autopilot=True)))
    assert severity(report, "compute-class") == NOTE
    assert [each.code for each in report.blockers] == ["autopilot"]


@pytest.mark.parametrize("suffix", ["", "-non-daemonset"])
def test_a_namespace_whose_pods_go_to_a_compute_class_stops_the_run(suffix):
    key = f"cloud.google.com/default-compute-class{suffix}"
    (blocker,) = examine(observed(namespace_labels={key: "cheap", "team": "llm"})).blockers
    assert blocker.code == "default-compute-class"
    assert "ComputeClass cheap" in blocker.state
    assert blocker.remedy.endswith(f"kubectl label namespace {observed().plan.namespace} {key}-")


def test_a_namespace_without_a_default_class_passes_and_one_that_nobody_could_read_is_not_called_checked():
    assert "default compute class" in examine(observed(namespace_labels={"team": "llm"})).passed
    assert "default compute class" not in examine(observed()).passed


@pytest.mark.parametrize(
    ("runs", "needed", "told"),
    [
        ("1.30.9-gke.9999999", "1.31.2-gke.1115000", BLOCKER),
        ("1.31.2-gke.1114999", "1.31.2-gke.1115000", BLOCKER),
        ("1.31.2-gke.1115000", "1.31.2-gke.1115000", None),
        ("1.32.0-gke.1", "1.31.2-gke.1115000", None),
        ("1.9.7-gke.3", "1.27.2-gke.2100", BLOCKER),
        ("", "1.27.2-gke.2100", None),
    ],
)
def test_a_control_plane_that_is_too_old_for_the_tpu_stops_the_run(runs, needed, told):
    report = examine(observed(cluster=Cluster(version=runs), min_gke_version=needed))
    assert severity(report, "gke-version") == told
    for each in report.blockers:
        assert needed in each.state
        assert "gcloud container clusters upgrade" in each.remedy


def test_the_version_says_nothing_of_a_pool_that_is_there():
    plan = replace(observed().plan, tpu_pool="ours")
    old = observed(plan=plan, cluster=Cluster(version="1.20.0-gke.1"), min_gke_version="1.27.2-gke.2100")
    assert severity(examine(old), "gke-version") is None


# --------------------------------------------------------------------------------- maintenance


def weekly(day: str, hour: int) -> Window:
    start = dt.datetime(2026, 1, 1, hour, tzinfo=dt.UTC)
    return Window(start, dt.timedelta(hours=4), f"FREQ=WEEKLY;BYDAY={day}")


@pytest.mark.parametrize(
    ("window", "soak_h", "expected"),
    [
        (weekly("WE", 10), 1, "maintenance"),  # it is open now
        (weekly("TH", 2), 24, "maintenance"),  # opens in the soak
        (weekly("TH", 2), 1, None),  # the migration is over before it opens
        (weekly("WE", 7), 1, None),  # it has just closed
        (Window(dt.datetime(2000, 1, 1, 14, tzinfo=dt.UTC), dt.timedelta(hours=4)), 1, "maintenance"),  # daily
    ],
)
def test_a_maintenance_window_within_the_migration_is_warned_of(window, soak_h, expected):
    found = observed(cluster=Cluster(windows=(window,)))
    report = examine(replace(found, plan=replace(found.plan, soak_s=soak_h * 3600.0)))
    assert severity(report, "maintenance") == (WARNING if expected else None)
    assert severity(report, "maintenance-anytime") is None


def test_a_cluster_that_nobody_could_read_did_not_pass():
    report = examine(observed(cluster=None), ["the GKE API: no credentials"])
    assert "maintenance windows" not in report.passed
    assert report.unchecked == ("the GKE API: no credentials",)


# ------------------------------------------------------------------------------- page and rights


def test_the_page_puts_blockers_first_and_fits_a_terminal():
    found = observed(
        deployment=deployment(env=[{"name": "HF_TOKEN", "value": PLANTED}]), route=thing("HTTPRoute", **OWNED[0])
    )
    page = render(examine(found, ["TPU quota: nobody asked"]), found.plan)
    lines = page.splitlines()
    assert lines[0].startswith("BLOCKED: vllm in inference")
    assert lines[1].startswith("  blocker")
    assert page.index("warning ") < page.index("passed ") < page.index("not checked")
    assert max(map(len, lines)) <= WIDTH


# --------------------------------------------------------------------- the cluster's zones and exclusions


def test_a_zone_in_which_the_cluster_has_no_nodes_stops_the_run():
    there = Cluster(zones=("us-west4-a", "us-west4-b"))
    assert severity(examine(observed(cluster=there)), "zone") == BLOCKER
    (found,) = [each for each in examine(observed(cluster=there)).findings if each.code == "zone"]
    assert "us-west4-a, us-west4-b" in found.state
    assert severity(examine(observed(cluster=replace(there, zones=(observed().plan.pool_zone,)))), "zone") is None


@pytest.mark.parametrize(("ends_h", "told"), [(30, None), (3, WARNING)])
def test_a_window_is_told_only_as_far_as_no_exclusion_covers_it(ends_h, told):
    window = Window(NOON + dt.timedelta(hours=1), dt.timedelta(hours=4))
    exclusion = Exclusion(NOON - dt.timedelta(hours=1), NOON + dt.timedelta(hours=ends_h))
    plan = replace(observed().plan, soak_s=3600.0)
    cluster = Cluster(windows=(window,), exclusions=(exclusion,))
    assert severity(examine(observed(plan=plan, cluster=cluster)), "maintenance") == told
