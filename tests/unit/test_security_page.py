"""Each claim of docs/security.md names what shows it, and that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()


def test_every_test_that_is_named_exists():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    defined = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    assert len(named) >= 20
    assert named - defined == set()


def test_every_file_that_is_named_exists():
    named = set(re.findall(r"`((?:tests|plugins|include)/[\w./-]+)`", PAGE))
    assert len(named) > 8
    assert [each for each in named if not (ROOT / each).is_file()] == []


def test_every_threat_says_what_is_left():
    threats = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
    assert len(threats) == 7
    for row in ("needs", "can", "stops it", "left"):
        assert len(re.findall(rf"^\| {row} \|", PAGE, re.MULTILINE)) == len(threats)
