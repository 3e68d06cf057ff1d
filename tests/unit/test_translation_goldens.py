"""Golden files: manifests in the styles of many authors, and all that the translation says of each."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml

from tests.unit.kubernetes_schemas import problems
from tests.unit.translation_builders import IMAGE, slice_of
from tests.unit.translation_goldens import FOLDER, as_golden, names, translated
from tpu_migration.domain.translation import dump, load, translate_documents

NAMES = names()
_LIVE_ANNOTATIONS = ("deployment.kubernetes.io/", "meta.helm.sh/")


def test_there_are_enough_styles_and_each_has_its_golden_file():
    assert len(NAMES) >= 25
    assert {path.name for path in FOLDER.glob("*.expected.yaml")} == {f"{name}.expected.yaml" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_translation_is_the_golden_one(name):
    expected = yaml.safe_load((FOLDER / f"{name}.expected.yaml").read_text())
    found = yaml.safe_load(dump([as_golden(translated(name))]))
    assert found == expected, "if meant: python -m tests.unit.translation_goldens, and read the difference"


@pytest.mark.parametrize("name", NAMES)
def test_an_api_server_accepts_every_object(name):
    assert [problem for manifest in translated(name).manifests for problem in problems(manifest)] == []


@pytest.mark.parametrize("name", NAMES)
def test_translating_again_changes_nothing(name):
    once = translated(name)
    again = translate_documents(dump(once.manifests), target=slice_of(), image=IMAGE)
    assert again.manifests == once.manifests
    assert again.changes == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_changed_without_saying_so(name):
    """Every difference between a source object and its translation lies under the path of a recorded change."""
    documents = load((FOLDER / f"{name}.yaml").read_text())[0]
    result = translated(name)
    source = {d["metadata"]["name"]: d for d in documents if d["kind"] == "Deployment"}
    # In a file of several workloads a path begins with its own.
    said = [re.sub(r"^Deployment \S+ ", "", change.path).split(" ")[0] for change in result.changes]
    for manifest in result.manifests:
        original = source.get(manifest["metadata"]["name"].removesuffix("-tpu"))
        if manifest["kind"] != "Deployment" or original is None or original == manifest:
            continue
        for path in differences(_without_live(original), manifest):
            assert any(path.startswith(prefix) or prefix.startswith(path) for prefix in said), path


def _without_live(document: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the API server and other tools keep for themselves."""
    result = copy.deepcopy(document)
    result.pop("status", None)
    for key in ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"):
        result["metadata"].pop(key, None)
    for key in [key for key in result["metadata"].get("annotations", ()) if key.startswith(_LIVE_ANNOTATIONS)]:
        del result["metadata"]["annotations"][key]
    result["spec"]["template"].get("metadata", {}).pop("creationTimestamp", None)
    return result


def differences(one: Any, two: Any, path: str = "") -> list[str]:
    """Name the deepest mappings' keys that differ; a list counts as a whole."""
    if isinstance(one, dict) and isinstance(two, dict):
        return [
            place
            for key in one.keys() | two.keys()
            for place in differences(one.get(key), two.get(key), f"{path}.{key}" if path else key)
        ]
    if path.endswith("containers") and isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return [
            place
            for index, pair in enumerate(zip(one, two, strict=True))
            for place in differences(*pair, f"{path}[{index}]")
        ]
    return [path] if one != two else []
