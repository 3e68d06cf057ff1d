"""Goldens of other people's manifests: digests, counts and our own words about them, none of their text."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import yaml

from tests.unit.kubernetes_schemas import problems
from tests.unit.translation_builders import IMAGE, SHARED, line_of, slice_of
from tests.unit.translation_goldens import FOLDER
from tpu_migration.domain.translation import InputError, dump, translate_documents

PUBLIC = SHARED / "manifests"
NAMES = sorted(path.stem for path in (FOLDER / "public").glob("*.yaml"))

pytestmark = pytest.mark.skipif(not PUBLIC.is_dir(), reason="../shared/manifests is not here")


def facts(name: str) -> dict[str, Any]:
    """Say what a translation does: what it makes, sets and says, and a digest of the rest."""
    text = (PUBLIC / f"{name}.yaml").read_text()
    found: dict[str, Any] = {"input_sha256": _digest(text)}
    try:
        result = translate_documents(text, target=slice_of(), image=IMAGE)
    except InputError as error:
        return {**found, "error": str(error)}
    line = line_of(result)
    return {
        **found,
        "output_sha256": _digest(dump(result.manifests)),
        "objects": [f"{m['kind']} {m['metadata']['name']}" for m in result.manifests],
        "flags": [option.name for option in line.options],
        "model": line.model()[1],
        "served_names": line.served_names(),
        "changes": [f"{change.path}: {change.why}" for change in result.changes],
        "warnings": [f"{finding.path}: {finding.message}" for finding in result.warnings],
        "blockers": [f"{finding.path}: {finding.message}" for finding in result.blockers],
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_every_public_manifest_has_its_golden_file():
    assert sorted(path.stem for path in PUBLIC.glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_translation_of_a_public_manifest_is_the_golden_one(name):
    expected = yaml.safe_load((FOLDER / "public" / f"{name}.yaml").read_text())
    found = facts(name)
    assert found["input_sha256"] == expected["input_sha256"], "the public manifest itself is another one"
    assert found == expected, "if meant: python -m tests.unit.translation_goldens --public, and read the difference"


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("hpa")])
def test_an_api_server_accepts_every_object(name):
    result = translate_documents((PUBLIC / f"{name}.yaml").read_text(), target=slice_of(), image=IMAGE)
    assert [problem for manifest in result.manifests for problem in problems(manifest)] == []
