"""Write docs/reference/*.md from the very objects that the product works with.

    make docs            # or: python -m tests.docs.reference

`tests/docs/test_reference.py` fails while a page is stale. Words come from the code: descriptions of parameters,
docstrings, the remark beside a field. What reads badly there is mended there.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from tests.docs.accelerator_page import accelerators
from tests.docs.dataclass_tables import as_json, default_of, docstring, members_of, remarks
from tests.docs.fault_page import faults
from tests.docs.markdown import ROOT, code, page, table

FOLDER = ROOT / "docs" / "reference"


# ------------------------------------------------------------------ pages


def parameters() -> str:
    """The parameters of every DAG that takes some."""
    from dags import gpu_fallback, tpu_migration
    from tpu_migration.domain.plan import Plan

    text = page(
        "Parameters",
        "dags/*.py and domain/plan.py",
        """\
What the trigger form asks for, and the keys of `--conf`. A key that is not known is refused. The same names are what
`--param NAME=VALUE` of `tpu-migration preflight` and `deploy` takes. Seconds end in `_s`.
""",
    )
    for name, module in (("tpu_migration", tpu_migration), ("gpu_fallback", gpu_fallback)):
        text += f"\n## DAG {name}\n"
        section = ""
        rows: list[tuple[str, ...]] = []
        for key, param in module.PARAMS.items():
            if param.schema["section"] != section:
                text += _parameter_table(rows)
                section, rows = param.schema["section"], []
                text += f"\n### {section}\n\n" if name == "tpu_migration" else f"\n### {section} (gpu_fallback)\n\n"
            rows.append((code(key), _allowed(param.schema), code(as_json(param.value)), _told(param)))
        text += _parameter_table(rows)
    free = ", ".join(code(f.name) for f in fields(Plan) if f.metadata.get("not_hashed"))
    text += f"\nA parameter of `tpu_migration` (but {free}) that changes in mid-run is refused, by the plan's hash.\n"
    return text


def _parameter_table(rows: list[tuple[str, ...]]) -> str:
    return table(["parameter", "values", "default", "what"], rows) if rows else ""


def _told(param: Any) -> str:
    return f"{param.schema['title']}. {param.description}"


def _allowed(schema: Mapping[str, Any]) -> str:
    items = schema.get("items") or {}
    if choices := schema.get("enum") or items.get("enum"):
        listed = ", ".join(code(each) for each in choices)
        return f"any of {listed}" if items else listed
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    kind = next(each for each in kinds if each != "null")
    kind = {"string": "text", "array": "list"}.get(kind, kind)
    if items:
        kind = f"list of {items['type']}"
    bounds = items or schema
    if "minimum" in bounds and "maximum" in bounds:
        return f"{kind}, {bounds['minimum']} to {bounds['maximum']}"
    return f"{kind}, at most {bounds['maxLength']} characters" if "maxLength" in bounds else kind


def policies() -> str:
    """The sections of a gate policy, and what each policy of include/policies sets."""
    from tpu_migration.domain.gate.policy import SECTIONS, Policy, load_policy

    files = sorted((ROOT / "include" / "policies").glob("*.yaml"))
    made = {path.stem: load_policy(path.read_text()) for path in files}
    hints = get_type_hints(Policy)
    needed = ", ".join(code(each) for each in SECTIONS)
    text = page(
        "Gate policies",
        "include/policies and domain/gate/sections.py",
        f"""\
What the gate measures and what passes ([how it decides](../gate.md#how-it-decides)). The plan's `policy`
names a file of `include/policies`. An unknown key is an error; a section that is null leaves its checks out;
{needed} must be written down, as null at least.
Where a file leaves a key out, the default holds. A policy of your own: [how-to](../how-to/policies.md).

""",
    )
    text += table(
        ["policy", "version", "confidence", "looks", "for"],
        [(code(n), p.version, p.confidence, p.looks, p.description) for n, p in made.items()],
    )
    for f in fields(Policy):
        kind = next((each for each in (hints[f.name], *get_args(hints[f.name])) if is_dataclass(each)), None)
        if kind is None:
            continue
        told = remarks(kind)
        rows = []
        for each in fields(kind):
            values = []
            for policy in made.values():
                section = getattr(policy, f.name)
                values.append("–" if section is None else code(as_json(getattr(section, each.name))))
            rows.append((code(each.name), default_of(each), *values, told.get(each.name, "")))
        text += f"\n## {f.name}\n\n{docstring(kind)}\n"
        text += table(["key", "default", *made, "what"], rows)
    return text


def record() -> str:
    """The record's fields and phases."""
    from tpu_migration import record as module
    from tpu_migration.domain import phases

    text = page(
        "The record",
        "record.py and domain/phases.py",
        f"""\
The ConfigMap `tpu-migration-WORKLOAD` beside the workload: `record.json` is the whole; `phase` and `epoch` stand
by themselves, too. `tpu-migration status WORKLOAD --format json` prints it. Times are Unix seconds. Written by
compare-and-swap only; schema version {module.SCHEMA_VERSION}; an unknown field is refused. Never edit it: to go back,
[undo](../how-to/undo.md).
""",
    )
    for kind in (
        module.Record,
        module.Source,
        module.Shift,
        module.Fallback,
        module.StageRun,
        module.Attempt,
        module.Approval,
    ):
        text += f"\n## {kind.__name__}\n\n{docstring(kind)}\n{members_of(kind)}"
    rows = [
        (
            code(phase.value),
            "ended" if phase in phases.ENDED else "",
            "yes" if phase in phases.USERS_MAY_BE_ON_TARGET | phases.AFTER_COMMIT else "",
            told,
        )
        for phase, told in zip(phases.Phase, _phase_remarks(), strict=True)
    ]
    text += "\n## Phases\n\n" + table(["phase", "end", "users may be on TPU", "what is true"], rows)
    return text


def _phase_remarks() -> list[str]:
    from tpu_migration.domain.phases import Phase

    return re.findall(r"    [A-Z_]+ = \"\w+\"  # (.*)", inspect.getsource(Phase))


def commands() -> str:
    """Every command with its arguments."""
    from tpu_migration.cli import COMMANDS

    text = page("Commands", "cli.py, sandbox/__main__.py and the Makefile", "## tpu-migration\n\n")
    text += table(
        ["command", "what"], [(f"[{name}](#tpu-migration-{name})", each.what) for name, each in COMMANDS.items()]
    )
    text += "\n`--verbose` before the command logs what is done. Each has `--help`; [exit statuses](exit-codes.md).\n"
    for name, each in COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"tpu-migration {name}")
        each.add_arguments(parser)
        text += f"\n### tpu-migration {name}\n\n{each.what}\n\n{_arguments(parser)}"
    text += "\n## deployment/deploy_all.py\n\nThe same as [tpu-migration deploy](#tpu-migration-deploy).\n"
    text += "\n## python -m sandbox\n"
    for name, parser in _sandbox_parsers().items():
        text += f"\n### python -m sandbox {name}\n\n{parser.description}\n\n{_arguments(parser)}"
    text += "\n## make\n\n"
    told = re.findall(
        r"^## make (\S+)(?: (\[.*?\]))?(?: (\[.*?\]))? +(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    rows = [(code(" ".join(part for part in ("make", *each[:3]) if part)), each[3]) for each in told]
    return text + table(["target", "what"], rows)


def _sandbox_parsers() -> dict[str, argparse.ArgumentParser]:
    from sandbox.__main__ import _parser

    (action,) = [each for each in _parser()._actions if isinstance(each, argparse._SubParsersAction)]
    return dict(action.choices)


def _arguments(parser: argparse.ArgumentParser) -> str:
    rows = [_argument(parser, each) for each in parser._actions if not isinstance(each, argparse._HelpAction)]
    return table(["argument", "what"], rows) if rows else ""


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> tuple[str, str]:
    values = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
    value = "" if action.nargs == 0 else str(action.metavar or values or action.dest.upper())
    if action.option_strings:
        shown = ", ".join(code(f"{each} {value}".strip()) for each in action.option_strings)
    else:
        shown = code(action.metavar or action.dest.upper())
    needed = action.required and bool(action.option_strings)
    text = (action.help or "") % {**vars(action), "prog": parser.prog} if action.help else ""
    default = action.default
    if default not in (None, "", False, [], {}) and default is not argparse.SUPPRESS and not _says(text, default):
        text += f"{' ' if text else ''}(default: {code(default)})"
    return shown + (" (required)" if needed else ""), text


def _says(text: str, default: object) -> bool:
    """Tell whether a help names the default itself."""
    shown = f"{default:g}" if isinstance(default, float) else str(default)
    return "default" in text or f"({shown})" in text


def exit_codes() -> str:
    """What each command's exit statuses mean."""
    from tpu_migration.cli import COMMANDS

    text = page(
        "Exit statuses",
        "cli.py",
        """\
Where a command fails, one line on stderr names the thing, its state and the remedy; [the runbook](../runbook.md) has
more.

""",
    )
    rows = [(code(name), status, meaning) for name, each in COMMANDS.items() for status, meaning in each.exits.items()]
    text += table(["tpu-migration", "status", "meaning"], rows)
    text += "\n| elsewhere | status | meaning |\n|---|---|---|\n"
    text += "| `make demo` | 0 | users ended up safe, and the run as expected |\n"
    text += "| | 1 (make: 2) | not so; the lines `NOT AS EXPECTED` say what |\n"
    text += "| `python -m sandbox …` | 0, 1, 2 | done; it is not up, or cannot be; bad usage |\n"
    return text


def settings() -> str:
    """What is read from the environment and from Airflow."""
    from deployment.make_env import values
    from tpu_migration import settings as module
    from tpu_migration.domain.fleet import Place

    text = page("Settings", "settings.py", "")
    head = ["name", "read by", "default", "what"]
    for title, listed in (
        ("Environment variables", module.ENVIRONMENT),
        ("Airflow variables", module.VARIABLES),
        ("Airflow connections", module.CONNECTIONS),
    ):
        rows = [(code(each.name), each.reader, code(each.default), each.what) for each in listed]
        text += f"## {title}\n\n{table(head, rows)}\n"
    text += "## An entry of tpu_migration_fleet\n\n"
    text += docstring(Place) + "\nIn the variable `namespaces` is a list: each makes a place.\n\n"
    told = remarks(Place)
    text += table(
        ["field", "default", "what"],
        [(code("namespaces" if f.name == "namespace" else f.name), default_of(f), told[f.name]) for f in fields(Place)],
    )
    names = ", ".join(code(name) for name in values())
    text += f"""
## .env of docker-compose.yaml

`make up` writes it once ([compose](../compose.md)): {names}.

What belongs to Airflow itself (executor, database, secrets) is Airflow's own;
[docker-compose.yaml](../../docker-compose.yaml) has what is set there.
"""
    return text


PAGES: Mapping[str, Callable[[], str]] = {
    "parameters": parameters,
    "policies": policies,
    "record": record,
    "faults": faults,
    "commands": commands,
    "exit-codes": exit_codes,
    "settings": settings,
    "accelerators": lambda: page("Machines and prices", "include/accelerators.yaml", accelerators()),
}


def main() -> None:
    """Write every page."""
    FOLDER.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        (FOLDER / f"{name}.md").write_text(make())
        print(FOLDER.relative_to(ROOT) / f"{name}.md")


if __name__ == "__main__":
    main()
