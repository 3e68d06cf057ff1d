"""Write the golden files of tests/unit/translation anew: `python -m tests.unit.translation_goldens [NAME …]`.
With `--public` it writes those of ../shared/manifests: facts about them only, for the manifests are not ours.

NAME.yaml is a GPU manifest as its author wrote it, NAME.expected.yaml what the translation makes of it. Read
the difference (`git diff tests/unit/translation`) before you commit: a golden file that nobody read proves nothing.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.unit.translation_builders import IMAGE, slice_of
from tpu_migration.domain.translation import Finding, Translation, dump, translate_documents

FOLDER = Path(__file__).parent / "translation"


def names() -> list[str]:
    """List the golden cases."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.name.endswith(".expected.yaml"))


def translated(name: str) -> Translation:
    """Translate a case's input for the default slice."""
    return translate_documents((FOLDER / f"{name}.yaml").read_text(), target=slice_of(), image=IMAGE)


def as_golden(result: Translation) -> dict[str, Any]:
    """Give a translation the shape of a golden file: what a person decides on first, manifests last."""
    return {
        "blockers": [_line(finding) for finding in result.blockers],
        "warnings": [_line(finding) for finding in result.warnings],
        "changes": [asdict(change) for change in result.changes],
        "manifests": result.manifests,
    }


def _line(finding: Finding) -> str:
    return f"{finding.path}: {finding.message}" + (f" ({finding.remedy})" if finding.remedy else "")


def main(chosen: list[str]) -> None:
    if chosen == ["--public"]:
        from tests.unit.test_translation_public_goldens import PUBLIC, facts

        for path in sorted(PUBLIC.glob("*.yaml")):
            (FOLDER / "public" / path.name).write_text(dump([facts(path.stem)]))
        return
    for name in chosen or names():
        (FOLDER / f"{name}.expected.yaml").write_text(dump([as_golden(translated(name))]))


if __name__ == "__main__":
    main(sys.argv[1:])
