"""Read and write YAML as kubectl understands it: its numbers, its strings, and no key given twice."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from tpu_migration.domain.translation.model import InputError, Manifest

# libyaml's parser and emitter are some ten times faster; PyYAML's own do the same where it is missing.
_FastLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FastDumper: type[yaml.SafeDumper] = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

_TAG = "tag:yaml.org,2002:"
# kubectl's parser (go-yaml) knows neither dates nor `=`, reads 12:30 as text and 1e3 as a number; PyYAML differs.
_OTHERWISE = {f"{_TAG}timestamp", f"{_TAG}value", f"{_TAG}int", f"{_TAG}float"}
_INT = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
# A string that looks so must be quoted for every parser to read a string: 12e5678 is one to PyYAML only.
_NUMERIC = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?|0[xo][0-9a-fA-F]+|[yYnN]")
# More nodes than this, aliases written out, are a bomb and no manifest.
_LARGEST = 2_000_000
# libyaml's composer recurses in C and would take the process with it; no manifest nests half as deep.
_DEEPEST = 100
_LOOKS_DEEP = re.compile(r"(?:[-?:] +){50}|^ {100}", re.M)
_BRACKET = re.compile(r"[\[\]{}]")


class _Loader(_FastLoader):  # type: ignore[misc, valid-type]
    """Load scalars as kubectl does, and refuse a mapping that gives a key twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._flat: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Merging changes the node: its own keys are compared before, once.
        if id(node) not in self._flat:
            self._flat.add(id(node))
            seen = set()
            for key, _ in node.value:
                if key.tag != f"{_TAG}merge" and isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        problem = f"the key {key.value!r} is given twice in one mapping"
                        raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                    seen.add(key.value)
        super().flatten_mapping(node)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OTHERWISE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))


class _Dumper(_FastDumper):  # type: ignore[misc, valid-type]
    """Write YAML that other parsers read alike: no aliases, strings that look like numbers quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = None
    if "\n" in value:
        style = "|"
    elif _NUMERIC.fullmatch(value):
        style = "'"
    return dumper.represent_scalar(f"{_TAG}str", value, style=style)


_Dumper.add_representer(str, _text)


def dump(documents: Sequence[Manifest]) -> str:
    """Write documents as one YAML text."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=10_000, explicit_start=len(documents) > 1)


def parse(text: str) -> list[tuple[Any, int]]:
    """Read YAML documents, each with the line where it begins. Raise InputError, with the line, if it is none."""
    try:
        return list(_documents(text))
    except yaml.reader.ReaderError as error:
        # Its position counts bytes or characters, by the parser: find the character itself.
        odd = chr(error.character) if isinstance(error.character, int) else str(error.character)
        line = text.count("\n", 0, max(text.find(odd), 0)) + 1
        raise InputError(f"malformed YAML: the character {odd!r} is not allowed", f"line {line}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        lines = text.splitlines()
        line_text = lines[mark.line] if mark and mark.line < len(lines) else ""
        hint = ": a template? render it first" if "{{" in line_text or "{%" in line_text else ""
        if line_text.lstrip(" ").startswith("\t"):
            hint = ": indent with spaces, not with tabs"
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"malformed YAML: {problem}{hint}", f"line {mark.line + 1}" if mark else "") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"malformed YAML: {error}") from error


def _documents(text: str) -> Iterator[tuple[Any, int]]:
    # A byte-order mark may stand before any document of files that were joined.
    text = text.replace("\ufeff", "") if "\ufeff" in text else text
    _check_depth(text)
    loader = _Loader(text)
    may_alias = "*" in text and "&" in text
    try:
        while loader.check_node():
            node = loader.get_node()
            line = _line(node)
            if may_alias and _size(node, {}) > _LARGEST:
                raise InputError("malformed YAML: its aliases repeat too much: write it out", f"line {line}")
            yield loader.construct_document(node), line
    finally:
        loader.dispose()


def _line(place: yaml.Node | yaml.Event) -> int:
    return place.start_mark.line + 1 if place.start_mark else 1


def _check_depth(text: str) -> None:
    """Raise InputError for YAML that nests too deep; only a text that may do so is parsed for it."""
    depth = highest = 0
    for match in _BRACKET.finditer(text):
        depth = depth + 1 if match[0] in "[{" else max(depth - 1, 0)
        highest = max(highest, depth)
    if highest < _DEEPEST and not _LOOKS_DEEP.search(text):
        return
    depth = 0
    for event in yaml.parse(text, Loader=_FastLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise InputError(f"malformed YAML: it nests more than {_DEEPEST} deep", f"line {_line(event)}")


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Count nodes with every alias written out. Raise InputError for a node that holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = -1
        inner = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in inner)
    if known[id(node)] < 0:
        raise InputError("malformed YAML: an alias refers to what it is in", f"line {_line(node)}")
    return known[id(node)]
