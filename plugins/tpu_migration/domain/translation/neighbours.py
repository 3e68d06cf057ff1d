"""Look up the objects around a workload by kind, name, reference or selector, in files of any length."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from tpu_migration.domain.translation.labels import TARGET_LABEL, Selector, pod_selector, selects
from tpu_migration.domain.translation.model import Manifest
from tpu_migration.domain.translation.objects import name_of

_PAIR = tuple[str, Any]


def namespace_of(document: Manifest) -> str | None:
    """Give an object's namespace; a file may leave it to kubectl (None)."""
    space = (document.get("metadata") or {}).get("namespace")
    return None if space is None else str(space)


def near(document: Manifest, namespace: str | None) -> bool:
    """Tell whether an object may be in a namespace: the same one, or either is not written down."""
    space = namespace_of(document)
    return space is None or namespace is None or space == namespace


class Neighbours:
    """Index the objects of one file; `objects` stay as they are and keep their order."""

    def __init__(self, objects: Sequence[Manifest]) -> None:
        self.objects = objects
        self._places = {id(document): index for index, document in enumerate(objects)}
        self._kinds: dict[str, list[Manifest]] = defaultdict(list)
        for document in objects:
            self._kinds[str(document.get("kind"))].append(document)
        self._maps: dict[tuple[str, str | None], dict[str, Manifest]] = {}

    def index(self, document: Manifest | None) -> int | None:
        """Find an object's place in the file; None for one that is not of it."""
        return self._places.get(id(document))

    def of_kind(self, kind: str, namespace: str | None) -> list[Manifest]:
        """List the objects of a kind in a namespace."""
        return [document for document in self._kinds.get(kind, ()) if near(document, namespace)]

    def by_name(self, kind: str, namespace: str | None) -> dict[str, Manifest]:
        """Map names to objects of a kind in a namespace. Do not change the mapping."""
        key = kind, namespace
        if key not in self._maps:
            self._maps[key] = {name_of(document): document for document in self.of_kind(kind, namespace)}
        return self._maps[key]

    def pointing_at(self, kind: str, name: str, namespace: str | None) -> list[Manifest]:
        """List the objects of a kind whose targetRef or scaleTargetRef has a name."""
        return [document for document in self._references.get((kind, name), ()) if near(document, namespace)]

    @cached_property
    def _references(self) -> dict[tuple[str, str], list[Manifest]]:
        found: dict[tuple[str, str], list[Manifest]] = defaultdict(list)
        for document in self.objects:
            spec = document.get("spec")
            if not isinstance(spec, Mapping):
                continue
            for key in ("targetRef", "scaleTargetRef"):
                if isinstance(reference := spec.get(key), Mapping) and isinstance(reference.get("name"), str):
                    found[str(document.get("kind")), reference["name"]].append(document)
        return found

    def naming(self, kinds: Iterable[str], name: str, namespace: str | None) -> list[Manifest]:
        """List the objects of some kinds that have a name anywhere in their spec, such as a backend's."""
        wanted = set(kinds)
        return [
            document
            for document in self._named.get(name, ())
            if document.get("kind") in wanted and near(document, namespace)
        ]

    @cached_property
    def _named(self) -> dict[str, list[Manifest]]:
        found: dict[str, list[Manifest]] = defaultdict(list)
        for kind in ("HTTPRoute", "Ingress", "GRPCRoute", "TLSRoute", "TCPRoute"):
            for document in self._kinds.get(kind, ()):
                for name in dict.fromkeys(_names(document.get("spec"))):
                    found[name].append(document)
        return found

    def selecting(self, labels: Mapping[str, str], namespace: str | None, kind: str | None = None) -> list[Manifest]:
        """List the objects whose selector picks a pod with these labels, in the file's order."""
        found = [
            document
            for document, selector in self._candidates(labels)
            if (kind is None or document.get("kind") == kind)
            and near(document, namespace)
            and selects(selector, labels)
        ]
        return sorted(found, key=lambda document: self._places[id(document)])

    @cached_property
    def selector_keys(self) -> frozenset[str]:
        """Name every label that a selector of the file asks for by value."""
        return frozenset(key for _, selector in self._selectors for key in selector.get("matchLabels") or {})

    @cached_property
    def _selectors(self) -> list[tuple[Manifest, Selector]]:
        return [(document, selector) for document in self.objects if (selector := pod_selector(document)) is not None]

    @cached_property
    def _buckets(self) -> tuple[dict[_PAIR, list[tuple[Manifest, Selector]]], list[tuple[Manifest, Selector]]]:
        """Sort selectors by the rarest label that each asks for; apart: those that ask for none."""
        usage = Counter(pair for _, selector in self._selectors for pair in _pairs(selector))
        buckets: dict[_PAIR, list[tuple[Manifest, Selector]]] = defaultdict(list)
        loose: list[tuple[Manifest, Selector]] = []
        for document, selector in self._selectors:
            rarest = min(_pairs(selector), key=lambda pair: usage[pair], default=None)
            (buckets[rarest] if rarest is not None else loose).append((document, selector))
        return buckets, loose

    def _candidates(self, labels: Mapping[str, str]) -> Iterator[tuple[Manifest, Selector]]:
        buckets, loose = self._buckets
        for pair in labels.items():
            yield from buckets.get(pair, ())
        yield from loose


def _pairs(selector: Selector) -> list[_PAIR]:
    return list((selector.get("matchLabels") or {}).items())


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "name" and isinstance(inner, str):
                yield inner
            else:
                yield from _names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _names(inner)


def is_of(document: Manifest, deployment: str) -> bool:
    """Tell whether an object is one that an earlier translation made for this target."""
    return ((document.get("metadata") or {}).get("labels") or {}).get(TARGET_LABEL) == deployment
