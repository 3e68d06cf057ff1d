"""Write and read the Markdown of the documents: tables and cells, anchors, links, blocks of commands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; a cell's `|` is escaped, its line breaks are spaces."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(each) for each in line) + " |" for line in lines) + "\n"


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def code(value: object) -> str:
    """Return text as code; nothing for nothing."""
    text = str(value)
    if not text:
        return ""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def page(title: str, source: str, prose: str) -> str:
    """Return the beginning of a page that is made from code."""
    return f"# {title}\n\n<!-- Made by `make docs` from {source}; a change goes there. -->\n\n{prose}"


def documents() -> list[Path]:
    """Return every Markdown file that people read: the root's and those under docs."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def without_code(text: str) -> str:
    """Return a document without its code, in which nothing is a link."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def links(text: str) -> list[str]:
    """Return the targets of a document's links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", without_code(text))


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number, base = 0, anchor
        while anchor in found:
            number += 1
            anchor = f"{base}-{number}"
        found.add(anchor)
    return found


class Command(NamedTuple):
    """One command of a document: where it stands, its words, and the marker of its block (`real`, `docker`, …)."""

    where: str
    text: str
    marker: str


def commands(path: Path) -> Iterator[Command]:
    """Return the commands of a document's blocks: fenced as `bash`, or indented by four spaces, and of its prose.

    A word after the fence's `bash` is the marker: why the block cannot be run here. Lines go on after a backslash, and
    within a quote. What stands two spaces and more behind a command explains it. Indented blocks hold other things,
    too (diagrams, YAML): whoever reads this tells by the first word.
    """
    kind, marker, held, start = "", "", "", 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        where = f"{path.relative_to(ROOT)}:{number}"
        if fence := re.match(r"```(\w*) ?(.*)$", line):
            kind, marker = ("", "") if kind else (fence[1] or "text", fence[2].strip())
            continue
        if kind == "bash" or (not kind and line.startswith("    ")):
            text = line if kind else line.strip() if not held else line
        else:
            text = ""
            if not kind:
                yield from (Command(where, each, "prose") for each in re.findall(r"`([^`]+)`", line))
        start = start if held else number
        whole = text.count("'") % 2 == 0 or re.search(r"\s{2,}#|\s#\s", text)
        held = f"{held}\n{text}" if held else re.sub(r"(?<=\S)\s{2,}.*$", "", text) if whole else text
        if held.endswith("\\") or held.count("'") % 2 == 1:
            continue
        if held.strip() and not held.lstrip().startswith("#"):
            yield Command(f"{path.relative_to(ROOT)}:{start}", re.sub(r"\\\n\s*", "", held), marker)
        held = ""
