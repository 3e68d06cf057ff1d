"""Translate a text of Kubernetes YAML: several documents, Lists, and others between them, kept in order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tpu_migration.domain.accelerators import Slice
from tpu_migration.domain.translation.model import InputError, Manifest, Names, Notes, Sizing, Translation
from tpu_migration.domain.translation.neighbours import Neighbours
from tpu_migration.domain.translation.objects import name_of
from tpu_migration.domain.translation.shape import READ_KINDS, check_shape, prune
from tpu_migration.domain.translation.translate import Options, translate_workload
from tpu_migration.domain.translation.workload import is_tpu, vllm_workloads
from tpu_migration.domain.translation.yamltext import parse
from tpu_migration.domain.values import copied

# Helm's templates; a Jinja chat template in an argument has braces too, but none of these words.
_TEMPLATE = re.compile(r"\{\{-?\s*(\.|\$\.|include\b|template\b|if\b|range\b|with\b|end\b|define\b|toYaml\b|tpl\b)")


def load(text: str) -> tuple[list[Manifest], list[int]]:
    """Read Kubernetes YAML: the objects, Lists opened, and the line where each begins.

    Raises InputError, with the line, for malformed YAML, templates and what is no Kubernetes object.
    """
    try:
        found = parse(text)
    except InputError as error:
        # Where a template stands, it is why the rest is no YAML.
        if match := _template(text):
            raise _template_error(text, match) from error
        raise
    documents: list[Manifest] = []
    lines: list[int] = []
    for document, line in found:
        items = _items(document)
        documents.extend(items)
        lines.extend([line] * len(items))
    if not documents:
        raise InputError("no Kubernetes YAML: there is no object in it")
    if _template(text):
        _refuse_templates(text, documents, lines)
    check_shape(documents, lines)
    return documents, lines


def _template(text: str, start: int = 0) -> re.Match[str] | None:
    """Find a template's expression outside of comments."""
    for match in _TEMPLATE.finditer(text, start):
        if not text[text.rfind("\n", 0, match.start()) + 1 : match.start()].lstrip().startswith("#"):
            return match
    return None


def _template_error(text: str, match: re.Match[str]) -> InputError:
    line = text.count("\n", 0, match.start()) + 1
    return InputError("this is a template, not YAML: render it first (helm template, kustomize build)", f"line {line}")


def _refuse_templates(text: str, documents: Sequence[Any], lines: Sequence[int]) -> None:
    """Refuse expressions where the translation reads; a ConfigMap or a custom kind may hold them as its data."""
    for document, line in zip(documents, lines, strict=True):
        if isinstance(document, dict) and document.get("kind") in READ_KINDS and _TEMPLATE.search(_joined(document)):
            start = sum(len(part) for part in text.splitlines(keepends=True)[: line - 1])
            match = _template(text, start) or _template(text)
            if match is not None:
                raise _template_error(text, match)


def _joined(value: Any) -> str:
    """Join all strings in a value."""
    if isinstance(value, dict):
        return "\n".join(_joined(part) for pair in value.items() for part in pair)
    return "\n".join(map(_joined, value)) if isinstance(value, list) else str(value)


def _items(document: Any) -> list[Any]:
    if document is None:
        return []
    if (
        isinstance(document, dict)
        and str(document.get("kind", "")).endswith("List")
        and isinstance(document.get("items"), list)
    ):
        return [inner for item in document["items"] for inner in _items(item)]
    return [document]


def translate_documents(
    text: str,
    *,
    target: Slice,
    image: str,
    names: Names | None = None,
    replicas: int | None = None,
    sizing: Sizing | None = None,
) -> Translation:
    """Translate every vLLM Deployment of a text; each other document is passed through, in its place.

    Raises InputError for what is no Kubernetes YAML or has no vLLM workload in it.
    """
    documents, _ = load(text)
    notes = Notes()
    around = Neighbours([prune(document) for document in documents])
    workloads = vllm_workloads(around.objects)
    if not workloads:
        hint = (
            "; build it first (kubectl kustomize)" if any(d.get("kind") == "Kustomization" for d in documents) else ""
        )
        raise InputError(f"no vLLM workload: no container runs `vllm serve` or its API server{hint}")
    options = Options(target, image, names, None, replicas, sizing or Sizing())
    placed: dict[int, list[Manifest]] = {}
    for workload in workloads:
        if is_tpu(workload):
            where = f"{workload.get('kind')} {name_of(workload)}"
            notes.warn(where, "it runs on TPUs already: passed through unchanged")
            continue
        notes.about = f"{workload.get('kind')} {name_of(workload)}" if len(workloads) > 1 else ""
        own = around.index(workload) or 0
        for manifest, index in translate_workload(workload, around, options, notes):
            # What stands for no document of the text goes behind the Deployment.
            placed.setdefault(own if index is None else index, []).append(manifest)
    return Translation(_in_order(documents, placed, notes), notes.changes, notes.warnings, notes.blockers)


def _key(document: Manifest) -> tuple[Any, ...]:
    metadata = document.get("metadata") or {}
    return document.get("kind"), metadata.get("namespace"), metadata.get("name")


def _in_order(documents: Sequence[Manifest], placed: dict[int, list[Manifest]], notes: Notes) -> list[Manifest]:
    made = {_key(manifest) for manifests in placed.values() for manifest in manifests}
    result: list[Manifest] = []
    for index, document in enumerate(documents):
        if index in placed:
            result.extend(placed[index])
        elif _key(document) in made:
            message = "the text has an object of this name already: the translation takes its place"
            notes.warn(f"{document.get('kind')} {name_of(document)}", message)
        else:
            result.append(copied(document))
    return result
