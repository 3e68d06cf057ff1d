"""Look at the live workload and all around it, collect everything that stands in the way, and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from tpu_migration import rights
from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.iam import ACT_AS, NEEDED, READ_METRICS
from tpu_migration.clients.kubernetes import Object
from tpu_migration.clients.vllm import Vllm
from tpu_migration.domain.preflight import BLOCKER, NOTE, SEVERITIES, Cluster, Finding, Report, examine
from tpu_migration.domain.routing import RouteError
from tpu_migration.errors import MigrationError, PermanentError, TransientError
from tpu_migration.record import Record, Source
from tpu_migration.resources import policy
from tpu_migration.stages.base import Context
from tpu_migration.stages.find_source import find_source
from tpu_migration.stages.objects import (
    claims_around,
    config_maps_of,
    pods_of,
    refuse_foreign_target,
    source_objects,
    translated,
)
from tpu_migration.stages.observe_source import Around, never_checked, observe
from tpu_migration.stages.parity import check_tasks
from tpu_migration.stages.peak import LivePeak, live_peak

MANIFEST = "rbac.yaml"  # grants what a run needs, and no more
_PATIENCE_S = 30.0  # with a pod or an API server that does not answer at once
T = TypeVar("T")


@dataclass(frozen=True)
class Seen:
    """Hold what a run begins with: whom to move, what to rebuild them from, and how busy they get."""

    source: Source
    snapshot: list[Object]
    route: Object
    peak: LivePeak
    gaps: tuple[str, ...]  # the features that this workload gives up, by their keys


class Survey:
    """Make every check that can be made, and remember what blocks: a person mends all of it at once."""

    def __init__(self, ctx: Context, unchecked: Sequence[str] = ()) -> None:
        self._ctx = ctx
        self._findings: list[Finding] = []
        self._unchecked = list(unchecked)

    def attempt(self, code: str, thing: str, check: Callable[[], T]) -> T | None:
        """Return what a check gives; None, and one blocker more, if it refuses."""
        try:
            return check()
        except (PermanentError, RouteError) as error:
            self._findings.append(Finding(BLOCKER, code, thing, str(error)))
            return None

    def leave_out(self, what: str) -> None:
        """Say what could not be looked at, and why."""
        self._unchecked.append(what)

    def look_around(self, existing: Record | None, cluster: Cluster | None) -> tuple[Report, Seen | None]:
        """Return the page's content, and what to begin with: None where something blocks."""
        ctx, plan = self._ctx, self._ctx.plan
        self._check_permissions()
        may = self.attempt("rights", "rights", lambda: _check_rights(ctx))
        for code, thing, check in _ALONE:
            self.attempt(code, thing, lambda check=check: check(ctx))  # type: ignore[misc]
        peak = self.attempt("peak", "live peak", lambda: live_peak(ctx))
        if peak is not None:
            self._findings.append(Finding(NOTE, "peak", "live peak", f"{peak.rps:.4g} requests/s, by {peak.told_by}"))
        deployment = self.attempt("workload", f"Deployment {plan.workload}", lambda: _deployment(ctx))
        if deployment is None:
            return self._report("everything about the workload: it was not found as it must be"), None
        if not may:
            return self._report("everything about the workload: rights are missing"), None
        objects = source_objects(ctx.kube, plan.namespace, deployment)
        claims = claims_around(ctx.kube, plan.namespace, deployment)
        config = config_maps_of(ctx.kube, plan.namespace, deployment)
        found = self.attempt("users", "users' way", lambda: find_source(ctx, deployment, objects, config, existing))
        if found is None:
            return self._report("pods, owners, storage, fit and cost: they depend on what serves users"), None
        source, snapshot, route = found
        served = self.attempt("vllm", "vLLM", lambda: (_check_pods(ctx, deployment, source),))
        source = replace(source, max_model_len=served[0] if served else None)
        around = [deployment, *objects, *claims.values()]
        translation = translated(ctx, [each for each in around if each], config, source.max_model_len)
        for each in translation.blockers if served else ():
            self._findings.append(Finding(BLOCKER, "translation", each.path, each.message, each.remedy))
        rps = peak.rps if peak else 0.0
        seen = Around(deployment, objects, config, claims, route)
        observed = observe(ctx, seen, source, cluster, translation, rps)
        if observed.namespace_labels is None:
            self.leave_out(
                f"default ComputeClass: the labels of namespace {plan.namespace} may not be read; apply "
                "include/manifests/rbac.yaml"
            )
        report = examine(observed, [*self._unchecked, *never_checked(self._ctx.plan)], self._findings)
        complete = peak is not None and not report.blockers
        gaps = tuple(gap.key for gap in observed.assessment.gaps) if observed.assessment else ()
        return report, Seen(source, snapshot, route, peak, gaps) if complete and peak else None

    def _check_permissions(self) -> None:
        """Find what the service account may not do on GKE; Google may not say, which is no reason to stop."""
        plan, permissions = self._ctx.plan, self._ctx.permissions
        needed = [*NEEDED, READ_METRICS] if plan.prometheus_url == "gmp" else [*NEEDED]
        if permissions is None:
            self.leave_out(f"IAM permissions on GKE ({', '.join(needed)})")
            return
        role = "put it into the account's role (include/manifests/iam-role.yaml)"
        asked = [(f"project {plan.project_id}", needed, "", role)]
        if (account := plan.node_service_account) and not plan.tpu_pool:
            asked.append((account, [ACT_AS], account, "grant it roles/iam.serviceAccountUser there"))
        for where, wanted, account, remedy in asked:
            try:
                missing = permissions.missing(wanted, account)
            except MigrationError as error:
                self.leave_out(f"IAM permissions ({', '.join(wanted)}) on {where}: {error}")
                continue
            for each in missing:
                state = f"the service account lacks {each} on {where}"
                self._findings.append(Finding(BLOCKER, "iam", "IAM", state, remedy))

    def _report(self, unseen: str) -> Report:
        self._findings.sort(key=lambda each: SEVERITIES.index(each.severity))
        return Report(tuple(self._findings), (), (*self._unchecked, unseen, *never_checked(self._ctx.plan)))


def _check_replicas(ctx: Context) -> None:
    if ctx.plan.target_replicas < 2 and not ctx.plan.accept_single_replica:
        raise PermanentError(
            "target_replicas=1 leaves one TPU replica, which restarts in tens of minutes; give 2, or set "
            "accept_single_replica"
        )


def _check_policy(ctx: Context) -> None:
    policy(ctx.plan.policy)


def _deployment(ctx: Context) -> Object:
    plan = ctx.plan
    found = ctx.kube.get(k8s.DEPLOYMENTS, plan.workload, plan.namespace)
    if found is None:
        there = sorted(each["metadata"]["name"] for each in ctx.kube.list(k8s.DEPLOYMENTS, plan.namespace))
        raise PermanentError(
            f"workload={plan.workload!r}: there is no such Deployment in namespace {plan.namespace}; "
            f"there are: {', '.join(there) or 'none'}"
        )
    ready = (found.get("status") or {}).get("readyReplicas", 0)
    wanted = found["spec"].get("replicas", 1)
    if not wanted or ready < wanted:
        raise PermanentError(
            f"Deployment {plan.workload} has {ready} of {wanted} replicas ready: the way back must be sound "
            "before anything moves; wait until it is, or mend it"
        )
    return found


def _check_rights(ctx: Context) -> bool:
    needed = [each for each in rights.granted_by(MANIFEST) if each not in rights.OPTIONAL]
    if missing := rights.lacking(ctx.kube, ctx.plan.namespace, needed, ctx.together):
        raise PermanentError(
            f"the service account lacks rights in namespace {ctx.plan.namespace}: {', '.join(map(str, missing))}; "
            f"apply include/manifests/{MANIFEST}"
        )
    return True


def _check_pods(ctx: Context, deployment: Object, source: Source) -> int | None:
    """Prove that the pod proxy reaches vLLM and that it serves the names that clients use.

    Returns the context length in tokens that the live servers report.
    """
    longest: int | None = None
    vllm = Vllm(ctx.kube, ctx.plan.namespace, source.port)
    for pod in pods_of(ctx.kube, ctx.plan.namespace, deployment):
        name = pod["metadata"]["name"]
        try:
            served = vllm.models(name)
            vllm.metrics(name)
        except TransientError as error:
            since = ctx.memory.setdefault("unanswered_since", ctx.clock.monotonic())
            if ctx.clock.monotonic() - since < _PATIENCE_S:
                raise
            raise PermanentError(
                f"vLLM on pod {name} port {source.port} does not answer through the API server's pod proxy: {error}; "
                "check the port and that the cluster allows the proxy"
            ) from error
        ctx.memory.pop("unanswered_since", None)
        lost = set(source.served_names) - set(served)
        if lost:
            raise PermanentError(
                f"pod {name} serves {sorted(served)}, but its arguments say {sorted(source.served_names)}: "
                "the Deployment was edited and not rolled out"
            )
        longest = served[source.served_names[0]] or longest
    return longest or source.max_model_len


# What can be judged whatever else is wrong.
_ALONE: tuple[tuple[str, str, Callable[[Context], None]], ...] = (
    ("replicas", "plan", _check_replicas),
    ("policy", "plan", _check_policy),
    ("tasks", "plan", check_tasks),
    ("target", "target", refuse_foreign_target),
)
