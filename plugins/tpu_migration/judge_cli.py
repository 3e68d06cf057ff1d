"""Judge two benchmark files from the command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tpu_migration.bench.results import BenchRun, client_health, parse
from tpu_migration.bench.sealed import ResultCorrupt
from tpu_migration.domain.gate import Observations, Policy, PolicyError, Verdict, judge, load_policy
from tpu_migration.errors import PermanentError
from tpu_migration.resources import read_text

EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 2, "void": 3}
_EXIT_INPUT = 64  # EX_USAGE: bad input is no verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tpu-migration judge`."""
    parser.add_argument("--policy", required=True, help="a name in include/policies, or a file")
    parser.add_argument("--look", type=int, default=1, choices=(1, 2, 3), help="which look at the data this is")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the verdict")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the report, one page")
    parser.add_argument("baseline", type=Path, help="file of `tpu-migration bench` on the baseline")
    parser.add_argument("candidate", type=Path, help="file of `tpu-migration bench` on the candidate")


def main(arguments: argparse.Namespace) -> int:
    """Print the verdict; exit 0 pass, 1 fail, 2 inconclusive, 3 void, 64 for an input that cannot be read."""
    try:
        file = Path(arguments.policy)
        policy = load_policy(file.read_text() if file.is_file() else read_text(f"policies/{arguments.policy}.yaml"))
        runs = {
            name: parse(path.read_text(), require_checksum=False)
            for name, path in (("baseline", arguments.baseline), ("candidate", arguments.candidate))
        }
    except (OSError, UnicodeDecodeError, ResultCorrupt, PolicyError, PermanentError) as error:
        print(f"tpu-migration judge: {error}", file=sys.stderr)
        return _EXIT_INPUT
    left_out = [name for name in ("capacity", "cost", "quality") if getattr(policy, name) is not None]
    policy = policy.without(*left_out)
    if policy.void is not None and policy.void.arm_events:
        policy = replace(policy, void=replace(policy.void, arm_events=False))
        left_out.append("engine events")
    if left_out:
        print(f"two files cannot tell, and so left out: {', '.join(left_out)}", file=sys.stderr)
    observations = Observations(
        baseline_client=client_health(runs["baseline"]), candidate_client=client_health(runs["candidate"])
    )
    verdict = judge(
        policy, runs["baseline"].results, runs["candidate"].results, observations=observations, look=arguments.look
    )
    if arguments.html:
        try:
            arguments.html.write_text(_report(policy, runs, verdict), encoding="utf-8")
        except OSError as error:
            print(f"tpu-migration judge: {error}", file=sys.stderr)
            return _EXIT_INPUT
    if arguments.format == "json":
        print(json.dumps(verdict.to_dict(), indent=2))
    else:
        print(f"{verdict.outcome.upper()}: {verdict.sentence}")
        for check in verdict.checks:
            print(f"  {check.outcome:<12} {check.name:<16} {check.sentence}")
    return EXIT_CODES[verdict.outcome]


def _report(policy: Policy, runs: Mapping[str, BenchRun], verdict: Verdict) -> str:
    from tpu_migration.domain.gate import evidence
    from tpu_migration.report.page import gate_page

    results = {name: run.results for name, run in runs.items()}
    look = evidence.look_entry("1", results["baseline"], results["candidate"], {})
    found = {
        "limits": evidence.limits(policy, None),
        "arms": {name: evidence.distributions(side) for name, side in results.items()},
        "looks": [{**look, "outcome": verdict.outcome}],
        "clients": [evidence.client_entry(name, run.summary) for name, run in runs.items()],
    }
    return gate_page(f"Benchmark gate, policy {policy.name}", verdict.to_dict(), found)
