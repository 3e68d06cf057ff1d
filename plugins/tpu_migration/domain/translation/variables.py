"""Resolve a container's environment variables to where their values are written, and rewrite them there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tpu_migration.domain.translation.model import Manifest
from tpu_migration.domain.translation.shell import VARIABLE
from tpu_migration.domain.values import copied


class Configs:
    """Hold the ConfigMaps; a change makes a copy, so that the source's own stay as they are."""

    def __init__(self, originals: Mapping[str, Manifest]) -> None:
        self._originals = originals
        self.patched: dict[str, Manifest] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._originals

    def data(self, name: str) -> dict[str, str]:
        """Read the data of a ConfigMap as it stands, changes included."""
        document = self.patched.get(name) or self._originals.get(name) or {}
        return {str(key): str(value) for key, value in (document.get("data") or {}).items()}

    def set(self, name: str, key: str, value: str | None) -> None:
        """Write a value into the copy of a ConfigMap; None takes the key out."""
        document = self.patched.setdefault(name, copied(dict(self._originals[name])))
        data = document.setdefault("data", {})
        if value is None:
            data.pop(key, None)
        else:
            data[key] = value


@dataclass(frozen=True)
class Binding:
    """Say where a variable's value is written: an entry of `env`, or a ConfigMap's key, or out of sight."""

    name: str
    value: str | None
    entry: dict[str, Any] | None = None
    config: str | None = None
    key: str | None = None


class Variables:
    """Hold a container's environment as Kubernetes would build it: envFrom first, then env in order."""

    def __init__(self, container: Manifest, configs: Configs) -> None:
        self._container = container
        self._configs = configs

    def bindings(self) -> dict[str, Binding]:
        """Build the environment as it stands now."""
        found: dict[str, Binding] = {}
        for binding in self._in_order():
            found[binding.name] = binding
        return found

    def _in_order(self) -> Iterator[Binding]:
        for source in self._container.get("envFrom") or []:
            reference = source.get("configMapRef") or {}
            name = reference.get("name")
            if name in self._configs:
                for key, value in self._configs.data(str(name)).items():
                    yield Binding(f"{source.get('prefix', '')}{key}", value, config=str(name), key=key)
        for entry in self._container.get("env") or []:
            name = str(entry.get("name"))
            reference = (entry.get("valueFrom") or {}).get("configMapKeyRef") or {}
            if "valueFrom" not in entry:
                yield Binding(name, str(entry.get("value", "") or ""), entry=entry)
            elif reference.get("name") in self._configs:
                config, key = str(reference["name"]), str(reference.get("key"))
                yield Binding(name, self._configs.data(config).get(key), config=config, key=key)
            else:
                yield Binding(name, None)

    def expand(self, text: str, *, shell: bool, local: Mapping[str, str] | None = None) -> str | None:
        """Expand `$(VAR)`, in a shell also `$VAR` and `${VAR}`; None if anything in it cannot be resolved."""
        bindings = self.bindings() if VARIABLE.search(text) else {}  # most texts name none
        for _ in range(8):
            if not self.references(text, shell=shell):
                break
            missing = False

            def put(match: re.Match[str]) -> str:
                nonlocal missing
                name = match["kube"] or match["brace"] or match["bare"]
                if not shell and match["kube"] is None:
                    return match[0]
                value = (local or {}).get(name)
                if value is None:
                    binding = bindings.get(name)
                    value = binding.value if binding else None
                if value is None:
                    value = match["default"]
                if value is None:
                    missing = True
                    return match[0]
                return str(value)

            text = VARIABLE.sub(put, text)
            if missing:
                return None
        if shell and ("$" in text or "`" in text):
            return None
        return text.replace("$$", "$")

    @staticmethod
    def references(text: str, *, shell: bool) -> list[str]:
        """Name the variables that a text refers to."""
        names = []
        for match in VARIABLE.finditer(text):
            if match["kube"]:
                names.append(match["kube"])
            elif shell:
                names.append(match["brace"] or match["bare"])
        return names

    def can_set(self, name: str) -> bool:
        """Tell whether the variable's value is written where it can be changed."""
        binding = self.bindings().get(name)
        return binding is not None and (binding.entry is not None or binding.config is not None)

    def set(self, name: str, value: str) -> str:
        """Change a variable where it is written; give the place, for the list of changes."""
        binding = self.bindings()[name]
        if binding.entry is not None:
            binding.entry["value"] = value
            return f"env {name}"
        if binding.config is None or binding.key is None:
            raise KeyError(f"the value of {name} is out of sight")
        self._configs.set(binding.config, binding.key, value)
        return f"ConfigMap {binding.config} key {binding.key}"
