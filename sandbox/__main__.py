"""The sandbox's command line: `python -m sandbox up|down|status|fault`."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from sandbox import faults as fault_table
from sandbox.faults import Faults
from sandbox.images import RealVllm
from sandbox.kube import KubeClient
from sandbox.kubeconfig import UnusableKubeconfig, read_kubeconfig
from sandbox.state import DEFAULT_DIRECTORY, FAULTS_FILE, STATE_FILE, NotUp, is_up, read_state
from sandbox.supervisor import end


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    options = _parser().parse_args(argv)
    try:
        return int(options.command(options))
    except NotUp as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sandbox", description="An embedded GKE for one machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, what: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what)
        added.add_argument("--dir", type=Path, default=DEFAULT_DIRECTORY, help="state directory (.sandbox)")
        added.set_defaults(command=run)
        return added

    up = command("up", _up, "bring the embedded cloud up and stay until Ctrl-C")
    up.add_argument("--speed", type=float, default=60.0, help="how much faster the cloud acts (60)")
    up.add_argument("--workloads", type=int, default=1, help="how many vLLM services to start with (1)")
    up.add_argument("--replicas", type=int, default=2, help="replicas of each (2)")
    up.add_argument("--users", type=float, default=0.0, metavar="RATE", help="streaming users, requests a second")
    up.add_argument("--seed", type=int, default=1, help="seed of the users (1)")
    up.add_argument("--kubeconfig", type=Path, help="attach to this Kubernetes API instead of the embedded one")
    up.add_argument("--pod-cidr", default="", help="the pods' network, on an interface here; with --kubeconfig")
    up.add_argument("--engine", choices=("simulated", "vllm"), default="simulated", help="of every vLLM container")
    up.add_argument("--vllm-bin", type=Path, help="the vllm program, with --engine vllm")
    up.add_argument("--model", type=Path, help="the directory of its model, with --engine vllm")
    up.add_argument("--vllm-flags", default="", help="further flags for it, as one word: '--enforce-eager …'")
    command("down", _down, "end the sandbox and every process of it")
    status = command("status", _status, "show what runs")
    status.add_argument("--json", action="store_true", help="print state.json")
    fault = command("fault", _fault, "switch a fault on or off, or list them all")
    fault.add_argument("name", nargs="?", help="the fault; none: list")
    fault.add_argument("options", nargs="?", default="{}", help="its options as a JSON object")
    fault.add_argument("--off", action="store_true", help="switch it off")
    return parser


def _up(options: argparse.Namespace) -> int:
    # Loaded here: the other commands must answer at once, without Google's client libraries.
    from sandbox.addresses import UnusableNetwork
    from sandbox.attach import CannotAttach
    from sandbox.embedded import Options
    from sandbox.up import AlreadyUp, run

    real = None
    if options.engine == "vllm":
        if not (options.vllm_bin and options.model):
            print("sandbox: --engine vllm needs --vllm-bin and --model", file=sys.stderr)
            return 2
        real = RealVllm(options.vllm_bin.resolve(), options.model.resolve(), tuple(shlex.split(options.vllm_flags)))
    if bool(options.kubeconfig) != bool(options.pod_cidr):
        print("sandbox: --kubeconfig and --pod-cidr go together; see docs/sandbox.md, Attach", file=sys.stderr)
        return 2
    wanted = Options(
        directory=options.dir,
        speed=options.speed,
        workloads=options.workloads,
        replicas=options.replicas,
        users_rate=options.users,
        seed=options.seed,
        kubeconfig=options.kubeconfig,
        pod_cidr=options.pod_cidr,
        real_vllm=real,
    )
    try:
        return asyncio.run(run(wanted))
    except (AlreadyUp, CannotAttach, UnusableKubeconfig, UnusableNetwork, TimeoutError) as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 1


def _down(options: argparse.Namespace) -> int:
    state = read_state(options.dir)
    killed = asyncio.run(end(state["id"], state["pid"], state.get("pid_started")))
    (options.dir / STATE_FILE).unlink(missing_ok=True)
    print(f"The sandbox in {options.dir} is down" + (f" ({len(killed)} processes killed)." if killed else "."))
    return 0


def _status(options: argparse.Namespace) -> int:
    state = read_state(options.dir)
    if options.json:
        print(json.dumps(state, indent=2))
        return 0 if is_up(state) else 1
    if not is_up(state):
        print(f"The sandbox of {options.dir} has died; `python -m sandbox down` removes what is left.")
        return 1
    for line in asyncio.run(_describe(state, options.dir)):
        print(line)
    return 0


async def _describe(state: dict[str, Any], directory: Path) -> list[str]:
    access = read_kubeconfig(Path(state["kubeconfig"]), directory)
    lines = [f"gateway {state['gateway_url']}  speed {state['speed']:g}  engine {state['engine']}"]
    async with KubeClient(access) as kube:
        for route in await kube.list("httproutes"):
            refs = route["spec"]["rules"][0].get("backendRefs") or []
            shares = ", ".join(f"{ref['name']} {ref.get('weight', 1)}" for ref in refs)
            lines.append(f"route   {route['metadata']['name']}: {shares}")
        for pod in await kube.list("pods"):
            status = pod.get("status") or {}
            conditions = {c["type"]: c["status"] for c in status.get("conditions") or []}
            ready = "ready" if conditions.get("Ready") == "True" else "not ready"
            name, node = pod["metadata"]["name"], pod["spec"].get("nodeName", "no node")
            lines.append(f"pod     {name}: {status.get('phase')}, {ready}, {status.get('podIP', '-')}, {node}")
    users = Path(state["users_file"]) if state.get("users_file") else None
    if users is not None and users.exists():
        lines.append(f"users   {' '.join(users.read_text().split())}")
    for name, given in Faults(Path(state["faults_file"])).active().items():
        lines.append(f"fault   {name} {json.dumps(given)}")
    return lines


def _fault(options: argparse.Namespace) -> int:
    known = {fault.name: fault for fault in fault_table.describe()}
    if options.name is None:
        for name, fault in known.items():
            print(f"{name:20} {fault.what}; options {json.dumps(fault.options)}")
        return 0
    if options.name not in known:
        print(f"sandbox: no fault {options.name!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    state = read_state(options.dir)
    faults = Faults(options.dir / FAULTS_FILE)
    if options.off:
        faults.clear(options.name)
        print(f"{options.name} is off")
        return 0
    try:
        given = json.loads(options.options)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        print(f"sandbox: the options must be a JSON object, not {options.options}", file=sys.stderr)
        return 2
    if unknown := sorted(set(given) - set(known[options.name].options)):
        there = ", ".join(known[options.name].options)
        print(f"sandbox: {options.name} has no option {', '.join(unknown)}; there are {there}", file=sys.stderr)
        return 2
    faults.set(options.name, given)
    print(f"{options.name} is on in {state['id']}: {json.dumps(given)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
