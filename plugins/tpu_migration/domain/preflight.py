"""Judge what preflight found around a workload: observations in, findings out; pure.

Nothing here keeps a value of the environment or of a Secret: findings name variables, never what is in them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpu_migration.domain.assessment import SOURCE, Assessment
from tpu_migration.domain.fit import DOES_NOT_FIT, TIGHT
from tpu_migration.domain.maintenance import Window, next_overlap
from tpu_migration.domain.ownership import gitops_owner, helm_release
from tpu_migration.domain.plan import Plan

BLOCKER, WARNING, NOTE = "blocker", "warning", "note"
SEVERITIES = (BLOCKER, WARNING, NOTE)

Object = Mapping[str, Any]

_SECRET_NAME = re.compile(r"TOKEN(?!S|IZ)|API_?KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL|(?<![A-Z])KEY(?![A-Z])", re.I)
_NAMES_A_PLACE = re.compile(r"_(FILE|PATH|DIR|NAME|ID)$", re.I)
_SECRET_FLAG = re.compile(r"--(api-key|hf-token|[a-z-]*password)(=(.+))?", re.I)
_REFERENCE = re.compile(r"\$\(\w+\)|\$\{?\w+\}?")
_SINGLE_NODE = {"ReadWriteOnce", "ReadWriteOncePod"}
_COMPUTE_CLASS = "cloud.google.com/compute-class"


@dataclass(frozen=True)
class Finding:
    """Hold one thing that stands in the way, or that people should know: which thing, its state, the remedy."""

    severity: str
    code: str
    thing: str
    state: str
    remedy: str = ""

    def __str__(self) -> str:
        """Write it as one sentence."""
        return f"{self.thing}: {self.state}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Reference:
    """Hold what a pod cannot start without: a Secret or a ConfigMap, and the key of it if only one is read."""

    kind: str
    name: str
    key: str = ""


@dataclass(frozen=True)
class Cluster:
    """Hold what GKE says of a cluster; without windows GKE maintains it whenever it likes."""

    autopilot: bool = False
    windows: tuple[Window, ...] = ()


@dataclass(frozen=True)
class Observed:
    """Hold what was found, as the API gave it (managed fields included); None where nobody could look.

    `held` has the keys of each Secret and ConfigMap by kind and name, None for one that is missing.
    """

    plan: Plan
    now: float  # Unix seconds
    deployment: Object
    route: Object
    hpas: Sequence[Object] = ()
    pdbs: Sequence[Object] = ()
    vpas: Sequence[Object] | None = ()
    held: Mapping[tuple[str, str], frozenset[str] | None] = field(default_factory=dict)
    claims: Mapping[str, Object | None] = field(default_factory=dict)
    cluster: Cluster | None = None
    assessment: Assessment | None = None
    unassessed: str = ""  # why there is no assessment


@dataclass(frozen=True)
class Report:
    """Hold the findings, the worst first, and the names of the checks that found nothing or could not look."""

    findings: tuple[Finding, ...]
    passed: tuple[str, ...]
    unchecked: tuple[str, ...]

    @property
    def blockers(self) -> tuple[Finding, ...]:
        """Return what must be mended before anything is made."""
        return tuple(each for each in self.findings if each.severity == BLOCKER)


def examine(observed: Observed, unchecked: Sequence[str] = ()) -> Report:
    """Run every check; `unchecked` names what the caller could not look at, and why."""
    findings: list[Finding] = []
    passed: list[str] = []
    for title, check in _CHECKS.items():
        found = list(check(observed))
        findings += found
        if not found and _could_look(title, observed):
            passed.append(title)
    findings.sort(key=lambda each: SEVERITIES.index(each.severity))
    return Report(tuple(findings), tuple(passed), tuple(unchecked))


def _could_look(title: str, observed: Observed) -> bool:
    needed: dict[str, object] = {
        "vertical autoscalers": observed.vpas,
        "kind of cluster": observed.cluster,
        "maintenance windows": observed.cluster,
        "fit": observed.assessment,
        "lost features": observed.assessment,
        "cost": observed.assessment,
    }
    return needed.get(title, True) is not None


def containers_of(deployment: Object) -> list[dict[str, Any]]:
    """Return a Deployment's init containers and containers."""
    spec = _pod(deployment)
    return [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]


def references(deployment: Object) -> list[Reference]:
    """Return the Secrets and ConfigMaps that a pod of the Deployment does not start without; optional ones left out."""
    found: dict[Reference, None] = {}

    def add(kind: str, name: str | None, source: Object, key: str = "") -> None:
        if name and not source.get("optional"):
            found[Reference(kind, name, key)] = None

    for container in containers_of(deployment):
        for entry in container.get("envFrom") or []:
            for kind, source in (("Secret", entry.get("secretRef")), ("ConfigMap", entry.get("configMapRef"))):
                add(kind, (source or {}).get("name"), source or {})
        for variable in container.get("env") or []:
            value = variable.get("valueFrom") or {}
            for kind, source in (("Secret", value.get("secretKeyRef")), ("ConfigMap", value.get("configMapKeyRef"))):
                add(kind, (source or {}).get("name"), source or {}, (source or {}).get("key", ""))
    for volume in _pod(deployment).get("volumes") or []:
        for source in [volume, *((volume.get("projected") or {}).get("sources") or [])]:
            secret, config = source.get("secret") or {}, source.get("configMap") or {}
            add("Secret", secret.get("secretName") or secret.get("name"), secret)
            add("ConfigMap", config.get("name"), config)
    return list(found)


def claims_of(deployment: Object) -> list[str]:
    """Return the names of the PersistentVolumeClaims that the pods mount."""
    volumes = _pod(deployment).get("volumes") or []
    return [name for each in volumes if (name := (each.get("persistentVolumeClaim") or {}).get("claimName"))]


# ----------------------------------------------------------------------------------- the checks


def literal_secrets(observed: Observed) -> Iterator[Finding]:
    """Warn of secrets written into the Deployment; they are named, and never repeated."""
    for container in containers_of(observed.deployment):
        for variable in container.get("env") or []:
            name, value = str(variable.get("name")), str(variable.get("value") or "")
            if _SECRET_NAME.search(name) and not _NAMES_A_PLACE.search(name) and _is_literal(value):
                yield _literal(observed, f"container {container.get('name')}, variable {name}")
        words = [str(each) for each in [*(container.get("command") or []), *(container.get("args") or [])]]
        for word, following in zip(words, [*words[1:], ""], strict=False):
            flag = _SECRET_FLAG.fullmatch(word)
            if flag and _is_literal(flag[3] or ("" if flag[2] or following.startswith("-") else following)):
                yield _literal(observed, f"container {container.get('name')}, argument --{flag[1]}")


def _is_literal(value: str) -> bool:
    return bool(value) and not _REFERENCE.fullmatch(value)


def _literal(observed: Observed, where: str) -> Finding:
    return Finding(
        WARNING,
        "literal-secret",
        f"{_title(observed.deployment)}, {where}",
        "holds a secret as plain text, and the target takes it over",
        "put it into a Secret and read it by secretKeyRef",
    )


def route_owner(observed: Observed) -> Iterator[Finding]:
    """Find who would put the weights back: a GitOps controller does so within minutes, in mid-shift."""
    plan, title = observed.plan, _title(observed.route)
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
    title, release = _title(observed.deployment), observed.plan.source_release
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
                _title(hpa),
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
            _title(hpa),
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
                _title(vpa),
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
                _title(pdb),
                "allows no disruption: a node upgrade waits for up to an hour and then takes the pod all the same",
                "allow one, or see that no node upgrade falls into the migration",
            )


def storage(observed: Observed) -> Iterator[Finding]:
    """Refuse claims that the GPU's node holds: a TPU pod on another node would wait for them for ever."""
    for name, claim in observed.claims.items():
        title = f"PersistentVolumeClaim {name}"
        modes = set((claim or {}).get("spec", {}).get("accessModes") or [])
        if claim is None:
            yield Finding(BLOCKER, "claim-missing", title, "is mounted and does not exist", "create it")
        elif modes and modes <= _SINGLE_NODE:
            yield Finding(
                BLOCKER,
                "claim-single-node",
                title,
                f"is {', '.join(sorted(modes))}: the GPU's node holds it, so no TPU pod can mount it",
                "put its data where several nodes can read it (ReadOnlyMany, ReadWriteMany, a bucket)",
            )


def secrets_and_config(observed: Observed) -> Iterator[Finding]:
    """Refuse pods that could not start again: what they read is gone, though those that run still have it."""
    for each in references(observed.deployment):
        if (each.kind, each.name) not in observed.held:
            continue
        keys = observed.held[each.kind, each.name]
        if keys is None or (each.key and each.key not in keys):
            what = "does not exist" if keys is None else f"has no key {each.key}"
            yield Finding(
                BLOCKER,
                "reference-missing",
                f"{each.kind} {each.name}",
                f"is read by {_title(observed.deployment)} and {what}: no new pod starts",
                "create it" if keys is None else "add the key",
            )


def compute_class(observed: Observed) -> Iterator[Finding]:
    """Say that a ComputeClass is not taken over."""
    if name := (_pod(observed.deployment).get("nodeSelector") or {}).get(_COMPUTE_CLASS):
        yield Finding(
            NOTE,
            "compute-class",
            _title(observed.deployment),
            f"asks for ComputeClass {name}; the target asks for the TPU slice by plain node selectors instead",
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
    if begins := next_overlap(observed.cluster.windows, observed.now, hours * 3600):
        yield Finding(
            WARNING,
            "maintenance",
            title,
            f"a maintenance window opens at {begins:%Y-%m-%d %H:%M} UTC, within the {hours:.1f} h of this plan",
            "start after it, or add a maintenance exclusion",
        )


def fit(observed: Observed) -> Iterator[Finding]:
    """Take over what the plan's analysis says of the model on the target."""
    plan, found = observed.plan, observed.assessment
    if found is None:
        yield Finding(
            WARNING,
            "fit-unknown",
            f"target {plan.target}",
            f"fit unknown: {observed.unassessed}",
            "see whether it fits with `tpu-migration plan --model-config FILE`",
        )
        return
    title = f"{found.model} on {plan.target}"
    if found.target_fit.verdict == DOES_NOT_FIT:
        yield Finding(BLOCKER, "fit", title, f"does not fit: {'; '.join(found.target_fit.reasons)}", _best(found))
    elif found.target_fit.verdict == TIGHT:
        left = f"{found.target_fit.head_room_gib:.1f} GiB left"
        yield Finding(
            WARNING, "fit-tight", title, f"tight, {left}: {'; '.join(found.target_fit.reasons)}", _best(found)
        )


def lost_features(observed: Observed) -> Iterator[Finding]:
    """Take over what the target's users lose."""
    for gap in observed.assessment.gaps if observed.assessment else ():
        yield Finding(gap.severity, f"feature-{gap.key}", gap.title, gap.effect, gap.remedy)


def _best(found: Assessment) -> str:
    return f"recommended is {found.recommendation}"


def cost(observed: Observed) -> Iterator[Finding]:
    """Say what the target costs beside the source, as far as there are prices for the region."""
    if (found := observed.assessment) is None:
        return
    rows = {row.name: row for row in found.costs}
    before, after = rows.get(SOURCE), rows.get(found.target)
    label = before.label if before else SOURCE
    now, then = (_money(row.usd_per_month if row else None) for row in (before, after))
    both = _money(found.overlap.usd if found.overlap else None)
    state = f"a month {now} on {label}, {then} on {found.target}; {both} while both run"
    priced = "unknown" not in (now, then)
    remedy = "" if priced else "give prices of the region to `tpu-migration plan --prices FILE`"
    yield Finding(NOTE, "cost", "cost", state, remedy)


def _money(usd: float | None) -> str:
    return "unknown" if usd is None else f"${usd:,.0f}"


_CHECKS: dict[str, Callable[[Observed], Iterator[Finding]]] = {
    "route's owner": route_owner,
    "workload's owner": workload_owner,
    "literal secrets": literal_secrets,
    "Secrets and ConfigMaps": secrets_and_config,
    "storage": storage,
    "autoscaler": horizontal_autoscaler,
    "vertical autoscalers": vertical_autoscaler,
    "disruption budgets": disruption_budgets,
    "compute class": compute_class,
    "kind of cluster": kind_of_cluster,
    "maintenance windows": maintenance,
    "fit": fit,
    "lost features": lost_features,
    "cost": cost,
}


def _pod(deployment: Object) -> dict[str, Any]:
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def _title(obj: Object) -> str:
    return f"{obj['kind']} {obj['metadata']['name']}"
