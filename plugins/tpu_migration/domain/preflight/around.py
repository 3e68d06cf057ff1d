"""Check who else acts on the workload: owners, autoscalers, budgets, GKE itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tpu_migration.domain.maintenance import next_overlap
from tpu_migration.domain.ownership import gitops_owner, helm_release
from tpu_migration.domain.preflight.findings import BLOCKER, NOTE, WARNING, Finding, Observed, title_of
from tpu_migration.domain.preflight.pods import pod_spec

_COMPUTE_CLASS = "cloud.google.com/compute-class"
_DEFAULT_COMPUTE_CLASS = (
    "cloud.google.com/default-compute-class",
    "cloud.google.com/default-compute-class-non-daemonset",
)


def route_owner(observed: Observed) -> Iterator[Finding]:
    """Find who would put the weights back: a GitOps controller does so within minutes, in mid-shift."""
    plan, title = observed.plan, title_of(observed.route)
    if owner := gitops_owner(observed.route):
        state = f"{owner.name} owns it ({owner.evidence}) and would put its weights back"
        if plan.route_owner_consents:
            yield Finding(
                NOTE, "route-owner", title, f"{owner.name} owns it; the plan says that it lets backendRefs be"
            )
        elif plan.stop_after == "gate":
            yield Finding(WARNING, "route-owner", title, f"{state} in a shift; stop_after=gate makes none")
        else:
            yield Finding(BLOCKER, "route-owner", title, state, f"{owner.route_remedy}; then set route_owner_consents")
    elif release := helm_release(observed.route):
        yield Finding(
            WARNING,
            "route-owner",
            title,
            f"belongs to Helm release {release}: an upgrade while users move would put its weights back",
            "run no helm upgrade of it until the migration has ended",
        )


def workload_owner(observed: Observed) -> Iterator[Finding]:
    """Find a declared state that still says GPU once the GPUs are given up."""
    title, release = title_of(observed.deployment), observed.plan.source_release
    if owner := gitops_owner(observed.deployment):
        state = f"{owner.name} owns it ({owner.evidence})"
        if release == "keep" or observed.plan.stop_after == "gate":
            yield Finding(NOTE, "workload-owner", title, f"{state}; this run leaves it as it is declared")
        else:
            yield Finding(
                BLOCKER,
                "workload-owner",
                title,
                f"{state}: with source_release={release} it would start the GPU pods again",
                "set source_release=keep, and take the GPUs out of the declared state after the commit",
            )
    elif helm := helm_release(observed.deployment):
        yield Finding(
            WARNING,
            "workload-owner",
            title,
            f"belongs to Helm release {helm}: an upgrade would bring GPU pods back, or change them in mid-shift",
            "run no helm upgrade of it until the migration has ended, and change its values after the commit",
        )
    for hpa in observed.hpas:
        if owner := gitops_owner(hpa):
            yield Finding(
                WARNING,
                "autoscaler-owner",
                title_of(hpa),
                f"{owner.name} owns it ({owner.evidence}) and may lower its minimum, which is raised while users move",
                "let it ignore spec.minReplicas until the migration has ended",
            )


def horizontal_autoscaler(observed: Observed) -> Iterator[Finding]:
    """Say how the source is scaled, and what becomes of that."""
    for hpa in observed.hpas:
        low, high = hpa["spec"].get("minReplicas", 1), hpa["spec"].get("maxReplicas")
        yield Finding(
            NOTE,
            "autoscaler",
            title_of(hpa),
            f"{low} to {high} replicas; its minimum is raised while users move and put back at the end; "
            "the target gets none",
        )


def vertical_autoscaler(observed: Observed) -> Iterator[Finding]:
    """Warn of a VPA that may evict the pods that users would come back to."""
    name = observed.deployment["metadata"]["name"]
    for vpa in observed.vpas or ():
        target = vpa["spec"].get("targetRef") or {}
        mode = (vpa["spec"].get("updatePolicy") or {}).get("updateMode") or "Auto"
        if (target.get("kind"), target.get("name")) == ("Deployment", name) and mode not in ("Off", "Initial"):
            yield Finding(
                WARNING,
                "vpa-evicts",
                title_of(vpa),
                f"updateMode {mode} may evict GPU pods while users move or come back",
                "set its updateMode to Off until the migration has ended",
            )


def disruption_budgets(observed: Observed) -> Iterator[Finding]:
    """Warn of a budget that lets no pod be moved."""
    for pdb in observed.pdbs:
        if (pdb.get("status") or {}).get("disruptionsAllowed", 1) == 0:
            yield Finding(
                WARNING,
                "pdb-closed",
                title_of(pdb),
                "allows no disruption: a node upgrade waits for up to an hour and then takes the pod all the same",
                "allow one, or see that no node upgrade falls into the migration",
            )


def compute_class(observed: Observed) -> Iterator[Finding]:
    """Say that a ComputeClass is not taken over."""
    if name := (pod_spec(observed.deployment).get("nodeSelector") or {}).get(_COMPUTE_CLASS):
        yield Finding(
            NOTE,
            "compute-class",
            title_of(observed.deployment),
            f"asks for ComputeClass {name}; the target asks for the TPU slice by plain node selectors instead",
        )


def default_compute_class(observed: Observed) -> Iterator[Finding]:
    """Refuse a namespace whose pods GKE sends to a ComputeClass: they would never go to the node pool that is made.

    GKE writes the class into the node selector of every new pod that names none, and a node pool that no class
    made lacks that label. https://cloud.google.com/kubernetes-engine/docs/how-to/run-pods-default-compute-classes
    """
    labels = observed.namespace_labels or {}
    for key in _DEFAULT_COMPUTE_CLASS:
        if name := labels.get(key):
            yield Finding(
                BLOCKER,
                "default-compute-class",
                f"namespace {observed.plan.namespace}",
                f"has the label {key}={name}: GKE would send the TPU pods to ComputeClass {name}, not to the node pool "
                "that is made for them; ComputeClass capacity is not supported yet",
                f"take the label away: kubectl label namespace {observed.plan.namespace} {key}-",
            )


def kind_of_cluster(observed: Observed) -> Iterator[Finding]:
    """Refuse Autopilot: this program makes a node pool of its own, which Autopilot does not allow."""
    if observed.cluster is not None and observed.cluster.autopilot:
        yield Finding(
            BLOCKER,
            "autopilot",
            f"cluster {observed.plan.cluster}",
            "runs in Autopilot mode, which takes no node pools; this is not supported yet",
            "migrate on a Standard cluster",
        )


def gke_version(observed: Observed) -> Iterator[Finding]:
    """Refuse a control plane that is too old to make the target's node pools; theirs is its own version."""
    version = observed.cluster.version if observed.cluster else ""
    if observed.plan.tpu_pool or not version or not observed.min_gke_version:
        return
    if _release(version) < _release(observed.min_gke_version):
        yield Finding(
            BLOCKER,
            "gke-version",
            f"cluster {observed.plan.cluster}",
            f"its control plane runs GKE {version}; {observed.plan.target} needs {observed.min_gke_version} or later",
            f"upgrade it: gcloud container clusters upgrade {observed.plan.cluster} --master "
            f"--location={observed.plan.location} --project={observed.plan.project_id}",
        )


def _release(version: str) -> tuple[int, ...]:
    """Return the four numbers of 1.31.2-gke.1115000, which order versions."""
    return tuple(int(each) for each in re.findall(r"\d+", version)[:4])


def zone(observed: Observed) -> Iterator[Finding]:
    """Refuse a zone in which the cluster may have no nodes."""
    zones = observed.cluster.zones if observed.cluster else ()
    unknown = sorted({each.zone for each in observed.plan.offers} - set(zones))
    if zones and unknown:
        yield Finding(
            BLOCKER,
            "zone",
            f"cluster {observed.plan.cluster}",
            f"has no nodes in {', '.join(unknown)}, where the TPU pool would be; its zones are {', '.join(zones)}",
            "set tpu_zone (or capacity_plan) to one of them, or add the zone to the cluster",
        )


def maintenance(observed: Observed) -> Iterator[Finding]:
    """Warn of maintenance windows that the migration would run into."""
    if observed.cluster is None:
        return
    title = f"cluster {observed.plan.cluster}"
    if not observed.cluster.windows:
        yield Finding(
            NOTE, "maintenance-anytime", title, "has no maintenance window: GKE may upgrade nodes at any time"
        )
        return
    plan = observed.plan
    hours = 2.5 + (len(plan.steps) * plan.bake_s + plan.soak_s) / 3600
    if begins := next_overlap(observed.cluster.windows, observed.now, hours * 3600, observed.cluster.exclusions):
        yield Finding(
            WARNING,
            "maintenance",
            title,
            f"a maintenance window opens at {begins:%Y-%m-%d %H:%M} UTC, within the {hours:.1f} h of this plan",
            "start after it, or add a maintenance exclusion",
        )
