"""Translate a text of Kubernetes YAML: several documents, Lists, and others between them, kept in order."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import yaml

from tpu_migration.domain.accelerators import Slice
from tpu_migration.domain.translation.model import InputError, Manifest, Names, Notes, Sizing, Translation
from tpu_migration.domain.translation.objects import name_of
from tpu_migration.domain.translation.shape import check_shape, prune
from tpu_migration.domain.translation.translate import Placed, translate_workload
from tpu_migration.domain.translation.workload import is_tpu, vllm_workloads

# Helm's templates; a Jinja chat template in an argument has braces too, but none of these words.
_TEMPLATE = re.compile(r"\{\{-?\s*(\.|\$\.|include\b|template\b|if\b|range\b|with\b|end\b|define\b|toYaml\b|tpl\b)")
_NUMERIC = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?|0[xo][0-9a-fA-F]+|[yYnN]")


class _Loader(yaml.SafeLoader):
    """Load dates as the strings that they are in JSON."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Write YAML that other parsers read alike: no aliases, strings that look like numbers quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None
    if "\n" in value:
        style = "|"
    elif _NUMERIC.fullmatch(value):
        # 12e5678 is a string to PyYAML and a number to kubectl.
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def dump(documents: Sequence[Manifest]) -> str:
    """Write documents as one YAML text."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=10_000, explicit_start=len(documents) > 1)


def load(text: str) -> tuple[list[Manifest], list[int]]:
    """Read Kubernetes YAML: the objects, Lists opened, and the line where each begins.

    Raises InputError, with the line, for malformed YAML, templates and what is no Kubernetes object.
    """
    if match := _TEMPLATE.search(text):
        line = text.count("\n", 0, match.start()) + 1
        raise InputError(
            "this is a template, not YAML: render it first (helm template, kustomize build)", f"line {line}"
        )
    found: list[tuple[Any, int]] = []
    try:
        loader = _Loader(text)
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                break
            found.append((loader.construct_document(node), node.start_mark.line + 1))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"line {mark.line + 1}" if mark else ""
        line_text = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
        hint = ": a template? render it first" if "{{" in line_text or "{%" in line_text else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"malformed YAML: {problem}{hint}", where) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"malformed YAML: {error}") from error
    documents: list[Manifest] = []
    lines: list[int] = []
    for document, line in found:
        items = _items(document)
        documents.extend(items)
        lines.extend([line] * len(items))
    if not documents:
        raise InputError("no Kubernetes YAML: there is no object in it")
    check_shape(documents, lines)
    return documents, lines


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
    pruned = [prune(document) for document in documents]
    workloads = vllm_workloads(pruned)
    if not workloads:
        hint = (
            "; build it first (kubectl kustomize)" if any(d.get("kind") == "Kustomization" for d in documents) else ""
        )
        raise InputError(f"no vLLM workload: no container runs `vllm serve` or its API server{hint}")
    placed: dict[int, list[Manifest]] = {}
    for workload in workloads:
        index = next(at for at, document in enumerate(pruned) if document is workload)
        if is_tpu(workload):
            notes.warn(
                f"{workload.get('kind')} {name_of(workload)}", "it runs on TPUs already: passed through unchanged"
            )
            continue
        result = translate_workload(workload, pruned, target, image, names, None, replicas, sizing or Sizing(), notes)
        _place(result, index, placed)
    manifests = _in_order(documents, placed, notes)
    return Translation(manifests, notes.changes, notes.warnings, notes.blockers)


def _place(result: Placed, workload: int, placed: dict[int, list[Manifest]]) -> None:
    """Put what stands for no document of the text behind the Deployment."""
    for manifest, index in result.manifests:
        placed.setdefault(workload if index is None else index, []).append(manifest)


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
            result.append(copy.deepcopy(document))
    return result
