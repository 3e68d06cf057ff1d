"""Each failure that a person can meet has its entry in the runbook, and each entry is of a failure that there is."""

from __future__ import annotations

import re

import pytest

from tests.docs.markdown import ROOT
from tests.docs.messages import RUNBOOK, all_words, codes, entries, messages, parts, tells_of

# Sections with the words of Airflow, Celery, Compose.
FOREIGN = {"Containers, queues, packages"}
# Words of others that our messages quote: GKE, Airflow.
QUOTED = ("incompatible operation", "Dag gpu_fallback is paused")


def test_every_message_has_an_entry():
    known = [each for entry in entries() for each in entry.messages]
    missing = [each for each in messages() if not any(tells_of(entry, each.text) for entry in known)]
    told = "\n".join(f"  {each.where} ({each.kind}): {each.text}" for each in missing)
    assert not missing, f"add to docs/runbook.md what these mean and what to do:\n{told}"


def test_every_entry_is_of_words_that_the_product_still_says():
    words = all_words()
    gone = [
        f"{entry.section}: {message}"
        for entry in entries()
        if entry.section not in FOREIGN
        for message in entry.messages
        if not all(part in words or part in QUOTED for part in parts(message) if len(part) > 6)
    ]
    assert not gone, "docs/runbook.md explains what nothing says any more:\n" + "\n".join(gone)


def test_every_entry_says_what_it_means_and_what_to_do():
    for entry in entries():
        cells = re.split(r"(?<!\\) \| ", entry.line.strip("| "))
        assert len(cells) == 3, entry.line
        assert cells[2].strip(), entry.line


def test_every_section_of_messages_says_what_was_done_already():
    for section in re.split(r"^## ", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]:
        if "|---|" in section:
            assert "*Done already:*" in section, section.splitlines()[0]


def test_every_finding_of_preflight_is_explained():
    page = (ROOT / "docs" / "preflight.md").read_text()
    found = {code for code in codes("Finding", 1) if re.fullmatch(r"[a-z-]+", code)}
    assert {code for code in found if f"`{code}`" not in page} == set()


def test_every_check_of_the_gate_is_explained():
    page = (ROOT / "docs" / "gate.md").read_text()
    names = codes("Check", 0) | codes("at_most", 0) | codes("at_least", 0) | codes("missing", 0)
    assert {name for name in names if f"`{name}`" not in page} == set()


@pytest.mark.parametrize(
    ("entry", "message", "known"),
    [
        ("node pool … is gone", "node pool … is gone though its creation ended well", True),
        ("node pool … was lost", "node pool … is gone though its creation ended well", False),
        ("…: …", "anything: at all", False),
        ("… failed: …", "preflight failed: no", False),
    ],
)
def test_an_entry_tells_of_a_message_by_its_words(entry, message, known):
    assert tells_of(entry, message) is known
