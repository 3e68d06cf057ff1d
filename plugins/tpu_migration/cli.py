"""Serve the command line: the same stages, records and restores, without Airflow."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn

from tpu_migration.errors import MigrationError

EXIT_ERROR = 1


class _Parser(argparse.ArgumentParser):
    """End with the status that the command keeps for bad usage."""

    usage_status = 2

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(self.usage_status, f"{self.prog}: error: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Run one command; an error prints one clear line and exits with 1."""
    parser = _Parser(
        prog="tpu-migration", description="Move live vLLM workloads on GKE from GPUs to Cloud TPU, with a way back."
    )
    parser.add_argument("--verbose", action="store_true", help="log what is done")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, each in COMMANDS.items():
        command = commands.add_parser(name, help=each.what, description=each.what, epilog=each.told_exits())
        if _is_asked(name, argv):
            each.add_arguments(command)
            parser.usage_status = command.usage_status = each.usage_status
    arguments = parser.parse_args(argv)
    level = logging.INFO if arguments.verbose or arguments.command in ("guard", "prober") else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    try:
        return COMMANDS[arguments.command].run(arguments)
    except MigrationError as error:
        print(f"tpu-migration {arguments.command}: {error}", file=sys.stderr)
        return EXIT_ERROR


def _is_asked(name: str, argv: list[str] | None) -> bool:
    """Tell whether a command was named: only its arguments are loaded, with what they import."""
    return name in (sys.argv[1:] if argv is None else argv)


def _cluster_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--namespace", default=os.environ.get("NAMESPACE", "inference"), help="of the workload (default: %(default)s)"
    )


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    _cluster_arguments(parser)
    parser.add_argument("workload", nargs="?", help="one workload; all of the namespace without it")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: the records as they are")


def _status(arguments: argparse.Namespace) -> int:
    from tpu_migration.clients.kubernetes import from_environment
    from tpu_migration.record import Record, RecordError
    from tpu_migration.records import Records, all_records
    from tpu_migration.status import describe

    kube = from_environment()
    if arguments.workload:
        record = Records(kube, arguments.namespace, arguments.workload).read()
        if record is None:
            print(f"{arguments.workload} has no migration in namespace {arguments.namespace}", file=sys.stderr)
            return EXIT_ERROR
        found: dict[str, Record | RecordError] = {arguments.workload: record}
    else:
        found = all_records(kube, arguments.namespace)
    records = [each for each in found.values() if isinstance(each, Record)]
    damaged = {workload: each for workload, each in found.items() if not isinstance(each, Record)}
    for workload, error in damaged.items():
        print(f"{workload}: {error}", file=sys.stderr)
    if arguments.format == "json":
        print(json.dumps([json.loads(each.to_json()) for each in records], indent=2))
        return 0
    if not found:
        print(f"no migrations in namespace {arguments.namespace}")
    for each in records:
        print(describe(kube, each))
    return EXIT_ERROR if damaged else 0


def _restore_arguments(parser: argparse.ArgumentParser) -> None:
    _cluster_arguments(parser)
    parser.add_argument("workload", help="whose users to send home")
    parser.add_argument("--reason", default="asked for at a terminal", help="kept in the record")


def _restore(arguments: argparse.Namespace) -> int:
    from tpu_migration.clients.kubernetes import from_environment
    from tpu_migration.clock import SystemClock
    from tpu_migration.restore import restore

    done = restore(
        from_environment(),
        arguments.namespace,
        arguments.workload,
        actor=f"{os.environ.get('USER', 'a person')} at a terminal",
        reason=arguments.reason,
        clock=SystemClock(),
    )
    share = "the target" if done.target_percent else "the source"
    print(f"{arguments.workload}: users are sent to {share} ({done.reason}); epoch {done.epoch}")
    if not done.target_percent:
        print("The run, if there is one, sees this at its next look, releases the TPU and ends red.")
    return 0


def _approve_arguments(parser: argparse.ArgumentParser) -> None:
    _cluster_arguments(parser)
    parser.add_argument("workload", help="whose migration waits")
    parser.add_argument("--reject", action="store_true", help="say no")
    parser.add_argument("--reason", default="", help="kept beside the answer")


def _approve(arguments: argparse.Namespace) -> int:
    from tpu_migration.answers import WAY_BACK, answer, answer_way_back, open_question
    from tpu_migration.clients.kubernetes import from_environment
    from tpu_migration.clock import SystemClock

    kube, name = from_environment(), arguments.workload
    what, run = open_question(kube, arguments.namespace, name)
    by = f"{os.environ.get('USER', 'a person')} at a terminal"
    approved, reason, clock = not arguments.reject, arguments.reason, SystemClock()
    if what == WAY_BACK:
        answer_way_back(kube, arguments.namespace, name, run, approved=approved, by=by, reason=reason, clock=clock)
    else:
        answer(kube, arguments.namespace, name, what, approved=approved, by=by, reason=reason, clock=clock)
    print(f"{name}: the {what} is {'approved' if approved else 'rejected'}; run {run} sees it at its next look.")
    return 0


def _guard_arguments(parser: argparse.ArgumentParser) -> None:
    from tpu_migration.guard import add_arguments

    add_arguments(parser)


def _guard(arguments: argparse.Namespace) -> int:
    from tpu_migration.clients.kubernetes import from_environment
    from tpu_migration.guard import run

    return run(
        from_environment(),
        arguments.namespace,
        arguments.identity,
        once=arguments.once,
        metrics_port=arguments.metrics_port,
    )


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    from tpu_migration.bench.loadgen import add_arguments

    add_arguments(parser)


def _bench(arguments: argparse.Namespace) -> int:
    from tpu_migration.bench.loadgen import main as bench

    return bench(arguments)


def _parity_arguments(parser: argparse.ArgumentParser) -> None:
    from tpu_migration.bench.parity import add_arguments

    add_arguments(parser)


def _parity(arguments: argparse.Namespace) -> int:
    from tpu_migration.bench.parity import main as parity

    return parity(arguments)


def _prober_arguments(parser: argparse.ArgumentParser) -> None:
    from tpu_migration.bench.prober import add_arguments

    add_arguments(parser)


def _prober(arguments: argparse.Namespace) -> int:
    from tpu_migration.bench.prober import main as prober

    return prober(arguments)


def _judge_arguments(parser: argparse.ArgumentParser) -> None:
    from tpu_migration.judge_cli import add_arguments

    add_arguments(parser)


def _judge(arguments: argparse.Namespace) -> int:
    from tpu_migration.judge_cli import main as judge

    return judge(arguments)


def _translate_arguments(parser: argparse.ArgumentParser) -> None:
    from tpu_migration.translate_cli import add_arguments

    add_arguments(parser)


def _translate(arguments: argparse.Namespace) -> int:
    from tpu_migration.translate_cli import main as translate

    return translate(arguments)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    from tpu_migration.plan_cli import add_arguments

    add_arguments(parser)


def _plan(arguments: argparse.Namespace) -> int:
    from tpu_migration.plan_cli import main as plan

    return plan(arguments)


def _preflight_arguments(parser: argparse.ArgumentParser) -> None:
    from tpu_migration.preflight_cli import add_arguments

    add_arguments(parser)


def _preflight(arguments: argparse.Namespace) -> int:
    from tpu_migration.preflight_cli import main as preflight

    return preflight(arguments)


def _deploy_arguments(parser: argparse.ArgumentParser) -> None:
    from tpu_migration.deploy_cli import add_arguments

    add_arguments(parser)


def _deploy(arguments: argparse.Namespace) -> int:
    from tpu_migration.deploy_cli import main as deploy

    return deploy(arguments)


def _janitor_arguments(parser: argparse.ArgumentParser) -> None:
    from tpu_migration.janitor_cli import add_arguments

    add_arguments(parser)


def _janitor(arguments: argparse.Namespace) -> int:
    from tpu_migration.janitor_cli import main as janitor

    return janitor(arguments)


class Command(NamedTuple):
    """One command: what it does, its arguments, the function that runs it, and what its exit statuses mean."""

    what: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    exits: Mapping[int, str]
    usage_status: int = 2

    def told_exits(self) -> str:
        """Write the exit statuses as one line of help."""
        return "Exit status: " + "; ".join(f"{status} {meaning}" for status, meaning in self.exits.items())


_USAGE = {2: "bad usage"}

COMMANDS: dict[str, Command] = {
    "status": Command(
        "show migrations as their records in the cluster tell them",
        _status_arguments,
        _status,
        {0: "told", 1: "no such migration, a damaged record, or no answer", **_USAGE},
    ),
    "restore": Command(
        "send users to the safe route, now",
        _restore_arguments,
        _restore,
        {0: "users are sent to the safe route", 1: "they are not; stderr says why: try again", **_USAGE},
    ),
    "approve": Command(
        "answer what a migration, or the way back, waits for people to decide",
        _approve_arguments,
        _approve,
        {0: "the answer is in the record", 1: "nothing waits for one, or it was answered", **_USAGE},
    ),
    "plan": Command(
        "tell whether a model fits, what it costs and what is lost on TPU",
        _plan_arguments,
        _plan,
        {0: "fits, or tight", 1: "does not fit, or blocked", 2: "the input cannot be read, or bad usage"},
    ),
    "preflight": Command(
        "check a live workload for a migration; changes nothing",
        _preflight_arguments,
        _preflight,
        {0: "ready", 1: "blocked, or cannot be judged", 2: "bad parameters, or bad usage"},
    ),
    "deploy": Command(
        "set up vLLM without Airflow, or go back to GPU; moves nobody to TPU",
        _deploy_arguments,
        _deploy,
        {0: "the stack stands", 1: "it does not; stderr says why", **_USAGE},
    ),
    "janitor": Command(
        "find node pools that outlived their run, and delete them if asked to",
        _janitor_arguments,
        _janitor,
        {0: "nothing is left to do", 1: "a pool goes, remains or is unknown, or no answer", **_USAGE},
    ),
    "translate": Command(
        "translate vLLM manifests from GPU to TPU",
        _translate_arguments,
        _translate,
        {0: "translated", 1: "a blocker; stderr names it", 2: "the input is no Kubernetes YAML, or bad usage"},
    ),
    "bench": Command(
        "load an OpenAI-compatible server and write down each request",
        _bench_arguments,
        _bench,
        {0: "measured", 2: "bad arguments, or no server", 3: "void: the client was the bottleneck"},
    ),
    "parity": Command(
        "compare the answers of two servers",
        _parity_arguments,
        _parity,
        {0: "compared; the figures are in the file", 1: "a server stopped answering", 2: "bad arguments or tasks"},
    ),
    "judge": Command(
        "judge a candidate's benchmark against a baseline's",
        _judge_arguments,
        _judge,
        {0: "pass", 1: "fail", 2: "inconclusive", 3: "void", 64: "bad usage, or the input cannot be read: no verdict"},
        usage_status=64,
    ),
    "prober": Command(
        "stream through the Gateway all the time and count what fails",
        _prober_arguments,
        _prober,
        {0: "told to stop", **_USAGE},
    ),
    "guard": Command(
        "be the dead man's switch of a namespace",
        _guard_arguments,
        _guard,
        {0: "told to stop, or looked once", 1: "with --once: it could not help", **_USAGE},
    ),
}


if __name__ == "__main__":
    sys.exit(main())
