"""Run `tpu-migration deploy`, which deployment/deploy_all.py calls: a stack, or a target beside it, without Airflow."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import yaml

from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.iam import Permissions
from tpu_migration.clients.prometheus import prometheus_of
from tpu_migration.clock import SystemClock
from tpu_migration.deploying import Deploying, Tools, say
from tpu_migration.domain.node_pools import gcloud_line, node_pool
from tpu_migration.domain.plan import Plan, PlanError
from tpu_migration.domain.profiles import ProfileError
from tpu_migration.errors import TransientError
from tpu_migration.preflight_cli import param
from tpu_migration.resources import accelerators
from tpu_migration.stages.stack import Stack
from tpu_migration.stages.stacks import find_profile, make_stack
from tpu_migration.translate_cli import BAD_INPUT, BLOCKED, OK

_TRIES, _PAUSE_S = 30, 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `deploy` to a parser."""
    parser.add_argument("--project-id", required=True, help="of the GKE cluster")
    parser.add_argument(
        "--accelerator",
        "--target",
        choices=("tpu", "gpu"),
        default="tpu",
        help="tpu (default), or gpu to go back to NVIDIA",
    )
    parser.add_argument(
        "--profile", help="of include/profiles.yaml: production, h100, legacy_gpu (default: by accelerator)"
    )
    defaults = Plan()
    parser.add_argument("--cluster", default=defaults.cluster, help="(default: %(default)s)")
    parser.add_argument("--location", default=defaults.location, help="region or zone (default: %(default)s)")
    parser.add_argument("--namespace", default=defaults.namespace, help="(default: %(default)s)")
    parser.add_argument("--workload", default=defaults.workload, help="(default: %(default)s)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the stack for kubectl, the node-pool call and its gcloud line; touch nothing, need no cluster",
    )
    parser.add_argument(
        "--key-file", default="", help="a service account's key (default: Application Default Credentials)"
    )
    parser.add_argument("--api-endpoint", default="", metavar="HOST:PORT", help="another endpoint of the GKE API")
    parser.add_argument(
        "--param",
        action="append",
        default=[],
        type=param,
        metavar="NAME=VALUE",
        help="another parameter of the plan, such as peak_rps=12 or capacity=spot; may be repeated",
    )


def main(args: argparse.Namespace, connect: Callable[[Plan], Tools] | None = None) -> int:
    """Deploy. Return 0 when the stack stands, 1 when it was stopped, 2 for bad parameters.

    Raises MigrationError, in one line, for what stands in the way.
    """
    names = ("project_id", "cluster", "location", "namespace", "workload")
    to_tpu = args.accelerator == "tpu"
    try:
        profile = find_profile(args.profile, args.accelerator)
        asked = {**dict(args.param), **{name: getattr(args, name) for name in names}}
        if to_tpu:
            asked.setdefault("target", profile.accelerator)
        plan = Plan.from_params(asked)
    except (PlanError, ProfileError) as error:
        sys.stderr.write(f"error: {error}\n")
        return BAD_INPUT
    stack = make_stack(plan, profile, accelerators())
    if args.dry_run:
        _print(plan, stack)
        return OK
    tools = patiently(lambda: (connect or (lambda plan: _connect(plan, args.key_file, args.api_endpoint)))(plan))
    other = make_stack(plan, find_profile(None, "gpu" if to_tpu else "tpu"), accelerators())
    source, target = (other, stack) if to_tpu else (replace(stack, takes_users_from=other.service), other)
    deploying = Deploying(tools, plan, source, target)
    try:
        deploying.to_tpu() if to_tpu else deploying.to_gpu()
    except KeyboardInterrupt:
        sys.stderr.write(f"{deploying.stopped()}\n")
        return BLOCKED
    return OK


def patiently(connect: Callable[[], Tools], tries: int = _TRIES) -> Tools:
    """Connect, and again while Google or the cluster does not answer."""
    try:
        return connect()
    except TransientError as error:
        if tries <= 1:
            raise
        say(f"will try again: {error}")
    time.sleep(_PAUSE_S)
    return patiently(connect, tries - 1)


def _print(plan: Plan, stack: Stack) -> None:
    from google.cloud import container_v1

    sys.stdout.write(yaml.safe_dump_all([*stack.manifests, stack.gateway, stack.route], sort_keys=False))
    call = {"parent": f"projects/{plan.project_id}/locations/{plan.location}/clusters/{plan.cluster}"}
    pool = container_v1.NodePool.to_json(
        container_v1.NodePool(node_pool(stack.pool)),
        always_print_fields_with_no_presence=False,
        use_integers_for_enums=False,
        indent=None,
    )
    sys.stderr.write(json.dumps({**call, "nodePool": json.loads(pool)}, indent=2) + "\n")
    sys.stderr.write(gcloud_line(stack.pool, plan.project_id, plan.location, plan.cluster) + "\n")


def _connect(plan: Plan, key_file: str, api_endpoint: str) -> Tools:
    from tpu_migration.clients.google import cluster_manager, kubernetes_of, token_of

    manager, credentials = cluster_manager(key_file, api_endpoint)
    name = f"projects/{plan.project_id}/locations/{plan.location}/clusters/{plan.cluster}"
    kube = kubernetes_of(manager, credentials, name, "check --project-id, --location, --cluster and your rights")
    pools = NodePools(manager, plan.project_id, plan.location, plan.cluster)
    token = functools.partial(token_of, credentials)
    return Tools(
        kube,
        pools,
        SystemClock(),
        {"sleep": time.sleep},
        # Another endpoint of the GKE API is another cloud: Google's own knows nothing of its permissions.
        None if api_endpoint else Permissions(plan.project_id, token),
        prometheus_of(plan.prometheus_url, plan.project_id, token),
    )
