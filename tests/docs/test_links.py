"""No link of the documents leads nowhere: files, anchors, and pages that nothing leads to."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.markdown import ROOT, anchors, documents, links

DOCUMENTS = documents()


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _targets(path: Path) -> list[tuple[Path, str]]:
    """Return the file and the anchor of each link that stays in this repository."""
    found = []
    for link in links(path.read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        file, _, anchor = link.partition("#")
        found.append(((path.parent / unquote(file)).resolve() if file else path, anchor))
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_every_link_leads_to_a_file_and_an_anchor_that_are_there(path):
    broken = []
    for target, anchor in _targets(path):
        if not target.exists():
            broken.append(f"{target} is not there")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text()):
            broken.append(f"{target.name} has no heading #{anchor}; it has {sorted(anchors(target.read_text()))}")
    assert not broken


def test_every_page_can_be_reached_from_the_readme():
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for target, _ in _targets(path):
            if target.is_dir():  # GitHub lists what is in it
                todo += target.glob("*.md")
            elif target.suffix == ".md":
                todo.append(target)
    assert {_name(path) for path in set(DOCUMENTS) - seen} == set()


def test_the_index_has_every_page_of_docs_itself():
    index = ROOT / "docs" / "README.md"
    listed = {target for target, _ in _targets(index)}
    pages = {path for path in DOCUMENTS if path.is_relative_to(index.parent) and path.parent.name != "adr"} - {index}
    assert {_name(path) for path in pages - listed} == set()


def test_anchors_are_made_as_github_makes_them():
    text = "# A `code` heading: Airflow's, 3.3!\n## [Linked](x.md)\n```\n# no heading\n```\n## Linked\n"
    assert anchors(text) == {"a-code-heading-airflows-33", "linked", "linked-1"}


def test_code_holds_no_links():
    assert links("see [a](b.md) and `[c](d.md)`\n\n    [e](f.md)\n```\n[g](h.md)\n```\n") == ["b.md"]
