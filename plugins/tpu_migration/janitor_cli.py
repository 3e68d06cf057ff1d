"""Run `tpu-migration janitor`: node pools that outlived their run, and why each stays or goes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from tpu_migration.clients.gke import NodePools
from tpu_migration.janitor import GONE, STAYS, Janitor, Verdict
from tpu_migration.translate_cli import BLOCKED, OK

_HEADINGS = ("POOL", "OF", "RUN", "AGE", "PAST ITS TIME", "STATE", "WHY")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `janitor` to a parser."""
    for name, told in (
        ("project-id", "of the GKE cluster"),
        ("location", "its region or zone"),
        ("cluster", "its name"),
    ):
        parser.add_argument(f"--{name}", required=True, help=told)
    parser.add_argument("--delete", action="store_true", help="delete what goes; without it nothing is changed")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the list")
    parser.add_argument(
        "--key-file", default="", help="a service account's key (default: Application Default Credentials)"
    )
    parser.add_argument("--api-endpoint", default="", metavar="HOST:PORT", help="another endpoint of the GKE API")


def main(
    args: argparse.Namespace,
    connect: Callable[[argparse.Namespace], Janitor] | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> int:
    """Print the table. Return 0 if nothing is left to do, 1 if a pool goes, remains, or cannot be judged.

    Raises MigrationError, in one line, where the cluster or the GKE API cannot be asked.
    """
    janitor = (connect or _connect)(args)
    say = lambda line: sys.stderr.write(f"{line}\n")  # noqa: E731
    found = janitor.sweep(sleep, say) if args.delete else janitor.look()
    if args.format == "json":
        sys.stdout.write(json.dumps([asdict(each) for each in found], indent=2) + "\n")
    else:
        sys.stdout.write(table(found))
    return OK if all(each.state in (STAYS, GONE) for each in found) else BLOCKED


def _connect(args: argparse.Namespace) -> Janitor:
    from tpu_migration.clients.google import cluster_manager, kubernetes_of

    manager, credentials = cluster_manager(args.key_file, args.api_endpoint)
    name = f"projects/{args.project_id}/locations/{args.location}/clusters/{args.cluster}"
    # By the GKE API, not a kubeconfig: one of another cluster would know none of the records.
    kube = kubernetes_of(manager, credentials, name, "check --project-id, --location, --cluster and your rights")
    return Janitor(kube, NodePools(manager, args.project_id, args.location, args.cluster))


def table(found: Sequence[Verdict]) -> str:
    """Return the verdicts as aligned columns, the reason last."""
    if not found:
        return "no node pool carries the labels of a migration\n"
    rows = [_HEADINGS, *(_row(each) for each in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    return "\n".join(lines) + "\n"


def _row(each: Verdict) -> tuple[str, ...]:
    past = "-" if each.expired_s is None else _span(each.expired_s) if each.expired_s > 0 else "no"
    age = "-" if each.age_s is None else _span(each.age_s)
    return each.pool, f"{each.namespace or '?'}/{each.workload or '?'}", each.run, age, past, each.state, each.why


def _span(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours / 24:.1f} d" if hours >= 48 else f"{hours:.1f} h"
