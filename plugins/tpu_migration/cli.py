"""Serve the command line: the same stages, records and restores, without Airflow."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable

from tpu_migration.errors import MigrationError

EXIT_ERROR = 1


def main(argv: list[str] | None = None) -> int:
    """Run one command; an error prints one clear line and exits with 1."""
    parser = argparse.ArgumentParser(
        prog="tpu-migration", description="Move live vLLM workloads on GKE from GPUs to Cloud TPU, with a way back."
    )
    parser.add_argument("--verbose", action="store_true", help="log what is done")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (help_text, add_arguments, _) in _COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        if _is_asked(name, argv):
            add_arguments(command)
    arguments = parser.parse_args(argv)
    level = logging.INFO if arguments.verbose or arguments.command in ("guard", "prober") else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    try:
        return _COMMANDS[arguments.command][2](arguments)
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
    parser.add_argument("--format", choices=("text", "json"), default="text")


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
    parser.add_argument("workload")
    parser.add_argument("--reason", default="asked for at a terminal")


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
    print("The run, if there is one, sees this at its next look, releases the TPU and ends red.")
    return 0


def _approve_arguments(parser: argparse.ArgumentParser) -> None:
    _cluster_arguments(parser)
    parser.add_argument("workload")
    parser.add_argument("--reject", action="store_true", help="say no")
    parser.add_argument("--reason", default="", help="kept in the record beside the answer")


def _approve(arguments: argparse.Namespace) -> int:
    from tpu_migration.answers import answer, open_question
    from tpu_migration.clients.kubernetes import from_environment
    from tpu_migration.clock import SystemClock

    kube, name = from_environment(), arguments.workload
    what = open_question(kube, arguments.namespace, name)
    by = f"{os.environ.get('USER', 'a person')} at a terminal"
    approved = not arguments.reject
    answer(
        kube, arguments.namespace, name, what, approved=approved, by=by, reason=arguments.reason, clock=SystemClock()
    )
    print(f"{name}: the {what} is {'approved' if approved else 'rejected'}; the run sees it at its next look.")
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


_Command = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]

_COMMANDS: dict[str, _Command] = {
    "status": ("show migrations as their records in the cluster tell them", _status_arguments, _status),
    "restore": ("send users to the safe route, now", _restore_arguments, _restore),
    "approve": ("answer what a migration waits for people to decide", _approve_arguments, _approve),
    "plan": ("tell whether a model fits, what it costs and what is lost on TPU", _plan_arguments, _plan),
    "preflight": ("check a live workload for a migration; changes nothing", _preflight_arguments, _preflight),
    "deploy": (
        "set up vLLM without Airflow, or go back to GPU; moves nobody to TPU",
        _deploy_arguments,
        _deploy,
    ),
    "janitor": ("find node pools that outlived their run, and delete them if asked to", _janitor_arguments, _janitor),
    "translate": ("translate vLLM manifests from GPU to TPU", _translate_arguments, _translate),
    "bench": ("load an OpenAI-compatible server and write down each request", _bench_arguments, _bench),
    "parity": ("compare the answers of two servers", _parity_arguments, _parity),
    "judge": ("judge a candidate's benchmark against a baseline's", _judge_arguments, _judge),
    "prober": ("stream through the Gateway all the time and count what fails", _prober_arguments, _prober),
    "guard": ("be the dead man's switch of a namespace", _guard_arguments, _guard),
}


if __name__ == "__main__":
    sys.exit(main())
