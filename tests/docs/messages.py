"""Find every failure message that the product can show, from its code; the runbook must know each (`docs/runbook.md`).

A message is a template: its literal words, with `…` for what is filled in. Found are

- what is said when one of the package's own errors is raised, or one with which a task of Airflow's ends;
- the reasons of failed stages (`Failed`);
- what an engine's trouble is called (`Trouble`);
- the sentences of those who watch users, drift and trends: what the modules in `_SENTENCES` return, yield or collect;
- warnings and errors in logs.

Findings of preflight and checks of the gate have a code each, and stand in the pages of these; see `codes`.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "plugins" / "tpu_migration"
RUNBOOK = ROOT / "docs" / "runbook.md"

# Whoever returns or yields a text here tells people what is wrong.
_SENTENCES = ("domain/watch.py", "drift.py", "domain/trend.py")
_FEWEST_LETTERS = 10  # an entry of fewer says nothing of any one message
_LOGS = ("warning", "error", "exception")
_AIRFLOW = {"AirflowFailException", "AirflowSkipException"}
TEARDOWN = "restore (the teardown)"


class Message(NamedTuple):
    """One message: where it comes from, what kind of thing says it, and its words."""

    where: str
    kind: str
    text: str


@functools.cache
def sources() -> Mapping[str, Sequence[ast.AST]]:
    """Return every node of each file of the package and of the DAGs, by the file's name."""
    files = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
    files |= {f"dags/{path.name}": path for path in sorted((ROOT / "dags").glob("*.py"))}
    return {name: list(ast.walk(ast.parse(path.read_text()))) for name, path in files.items()}


@functools.cache
def messages() -> Sequence[Message]:
    """Return all messages of the product, in the order of its files."""
    errors = _own_errors() | _AIRFLOW
    return tuple(dict.fromkeys(found for name, nodes in sources().items() for found in _in_file(name, nodes, errors)))


def _own_errors() -> set[str]:
    """Return the names of MigrationError and of everything below it."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for nodes in sources().values()
        for node in nodes
        if isinstance(node, ast.ClassDef)
    }
    errors = {"MigrationError"}
    while more := {name for name, of in bases.items() if of & errors} - errors:
        errors |= more
    return errors


def _in_file(name: str, nodes: Sequence[ast.AST], errors: set[str]) -> Iterator[Message]:
    for function in (node for node in nodes if isinstance(node, ast.FunctionDef)):
        if function.name == "__str__":
            continue
        local = {
            node.targets[0].id: node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in ast.walk(function):
            said = _said(node, name in _SENTENCES, errors)
            if said is not None:
                kind, expression = said
                for text in _texts(expression, local):
                    yield Message(f"{name}:{node.lineno}", kind, text)


def _said(node: ast.AST, sentences: bool, errors: set[str]) -> tuple[str, ast.expr] | None:
    """Return the kind and the expression of what a node tells people, None for one that tells nothing."""
    if isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in errors or called == "Failed":
            arguments = node.args[:1] or [each.value for each in node.keywords if each.arg == "reason"]
            return (called, arguments[0]) if arguments else None
        if called == "Trouble":
            return called, node.args[1]
        if called in _LOGS and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "log":
            return "log", node.args[0]
    elif sentences and (
        isinstance(node, ast.Return | ast.Yield)
        or (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript))
    ):
        return ("sentence", node.value) if node.value is not None else None
    return None


def _texts(node: ast.expr, local: Mapping[str, ast.expr]) -> Iterator[str]:
    """Return the templates of an expression: both branches of a condition; none where no word of it is literal."""
    if isinstance(node, ast.IfExp):
        yield from _texts(node.body, local)
        yield from _texts(node.orelse, local)
        return
    if isinstance(node, ast.Name) and isinstance(local.get(node.id), ast.JoinedStr | ast.Constant):
        node = local[node.id]
    text = _text(node)
    if re.search(r"\w{3,}.*\s.*\w{2,}", text.replace("…", " ")):
        yield text


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[-.\d]*[sdfr]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(each) for each in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"


def codes(called: str, position: int) -> set[str]:
    """Return the codes that are given to a call, literally, at a position of its arguments."""
    return {
        node.args[position].value
        for nodes in sources().values()
        for node in nodes
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == called
        and len(node.args) > position
        and isinstance(node.args[position], ast.Constant)
        and isinstance(node.args[position].value, str)
    }


def all_words() -> str:
    """Return every text of the product, a line each, for looking up whether words of a document are still there."""
    nodes = [node for each in sources().values() for node in each]
    return "\n".join(" ".join(_text(node).split()) for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr))


class Entry(NamedTuple):
    """One line of the runbook: the section, and the messages that stand in its first cell."""

    section: str
    messages: tuple[str, ...]
    line: str


def entries() -> list[Entry]:
    """Read the runbook's tables."""
    found, section = [], ""
    for line in RUNBOOK.read_text().splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("|") and (said := _codes(line.split(" | ")[0])):
            found.append(Entry(section, said, line))
    return found


def _codes(cell: str) -> tuple[str, ...]:
    return tuple((a or b).strip() for a, b in re.findall(r"``(.+?)``|`([^`]+)`", cell))


def parts(entry: str) -> list[str]:
    """Return the literal parts of an entry's message."""
    return [part.strip() for part in entry.replace("\\|", "|").split("…") if part.strip()]


def tells_of(entry: str, message: str) -> bool:
    """Tell whether an entry's words occur in a message, in their order; an entry of few words tells of nothing."""
    literal = parts(entry)
    if sum(map(len, literal)) < _FEWEST_LETTERS:
        return False
    return re.search(".*?".join(re.escape(part) for part in literal), message, re.DOTALL) is not None


def in_runbook(message: str) -> bool:
    """Tell whether the runbook has an entry for a message, whatever the teardown says of every end."""
    return any(tells_of(each, message) for entry in entries() if entry.section != TEARDOWN for each in entry.messages)
