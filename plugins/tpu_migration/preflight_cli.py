"""Run `tpu-migration preflight`: what the DAG's first task would say, with a person's own rights; changes nothing."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.google import cluster_manager, token_of
from tpu_migration.clients.iam import Permissions
from tpu_migration.clients.kubernetes import Kubernetes, from_environment
from tpu_migration.clients.prometheus import prometheus_of
from tpu_migration.clock import Clock, SystemClock
from tpu_migration.domain.plan import Plan, PlanError
from tpu_migration.domain.preflight import Cluster
from tpu_migration.errors import MigrationError
from tpu_migration.lease import Holder
from tpu_migration.report.preflight_page import render
from tpu_migration.stages.base import Context
from tpu_migration.stages.preflight import look_only
from tpu_migration.translate_cli import BAD_INPUT, BLOCKED, OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `preflight` to a parser."""
    for name, told in (
        ("project-id", "of the GKE cluster"),
        ("location", "its region or zone"),
        ("cluster", "its name"),
        ("namespace", "of the workload"),
        ("workload", "the Deployment that runs vLLM on GPUs"),
    ):
        parser.add_argument(f"--{name}", required=True, help=told)
    parser.add_argument(
        "--param",
        action="append",
        default=[],
        type=param,
        metavar="NAME=VALUE",
        help="another parameter of the plan, such as peak_rps=12 or steps=[1,50,100]; may be repeated",
    )


def param(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE, the value as JSON where it is some, for argparse."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, for example peak_rps=12")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def main(
    args: argparse.Namespace, kube: Kubernetes | None = None, google: Any = None, clock: Clock | None = None
) -> int:
    """Print the page. Return 0 if nothing blocks, 1 if something does, 2 for bad parameters.

    Raises PermanentError for the first thing without which the rest cannot be judged. `google` is a
    ClusterManagerClient; without it, Application Default Credentials are tried.
    """
    names = ("project_id", "location", "cluster", "namespace", "workload")
    try:
        plan = Plan.from_params({**dict(args.param), **{name: getattr(args, name) for name in names}})
    except PlanError as error:
        sys.stderr.write(f"error: {error}\n")
        return BAD_INPUT
    clock = clock or SystemClock()
    # It takes no lease, so that no write is let through.
    holder, pools = Holder("preflight at a terminal", "preflight", 1), _pools(None, plan)
    context = Context.create(plan, holder, kube or from_environment(), pools, clock)
    cluster, unchecked = _ask_google(context, google)
    report = look_only(context, cluster, unchecked)
    sys.stdout.write(render(report, plan))
    return BLOCKED if report.blockers else OK


def _pools(manager: Any, plan: Plan) -> NodePools:
    return NodePools(manager, plan.project_id, plan.location, plan.cluster)


def _ask_google(context: Context, manager: Any) -> tuple[Cluster | None, list[str]]:
    """Read the cluster, and prepare what else Google tells a person; or say what was not checked."""
    plan = context.plan
    try:
        if manager is None:
            manager, credentials = cluster_manager()
            context.permissions = Permissions(plan.project_id, lambda: token_of(credentials))
            context.monitoring = prometheus_of(plan.prometheus_url, plan.project_id, lambda: token_of(credentials))
        return _pools(manager, plan).cluster(), []
    except MigrationError as error:
        first = str(error).partition("\n")[0]
        return None, [f"GKE (access, kind of cluster, version, zones, maintenance windows): {first}"]
