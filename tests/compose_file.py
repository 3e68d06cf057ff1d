"""Read docker-compose.yaml as Compose does: variables filled in, profiles chosen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker-compose.yaml"
DOCKERFILE = ROOT / "Dockerfile"
# $$, ${NAME} and ${NAME:?what to do}: the forms that the file uses.
_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?::\?([^}]*))?\})")


class NotSet(ValueError):
    """A variable that the file demands is not set; the message is the file's own."""


@dataclass(frozen=True)
class Service:
    """One service, as far as a process has it too."""

    name: str
    command: tuple[str, ...]  # empty: the image's own
    environment: dict[str, str]
    health: tuple[str, ...]  # as a command line; empty: none
    after: dict[str, str]  # service → the condition under which this one may start
    body: dict[str, Any]


def read(values: Mapping[str, str], path: Path = COMPOSE) -> dict[str, Any]:
    """Return the parsed file with its variables filled in; raises NotSet as Compose would refuse it."""
    return _filled(yaml.safe_load(path.read_text()), values)


def services(values: Mapping[str, str], profile: str) -> dict[str, Service]:
    """Return the services that start under a profile."""
    found = read(values)["services"]
    return {name: _service(name, body) for name, body in found.items() if profile in body.get("profiles", [profile])}


def image_stages() -> dict[str, str]:
    """Return the stages of the Dockerfile, in order: name → its base, then its instructions, a line each."""
    parts = re.split(r"^FROM (.+) AS (\S+)$", DOCKERFILE.read_text(), flags=re.MULTILINE)
    return {name: f"{base}\n{body}" for base, name, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)}


def copied_into(stage: str) -> list[tuple[str, str]]:
    """Return what a stage copies from the checkout, as (source, target)."""
    found = []
    for line in re.findall(r"^COPY (?!--from)(.+)$", image_stages()[stage], flags=re.MULTILINE):
        *sources, target = line.split()
        found += [(source, target) for source in sources]
    return found


def _service(name: str, body: dict[str, Any]) -> Service:
    command = body.get("command") or []
    kind, *test = (body.get("healthcheck") or {}).get("test") or ["NONE"]
    return Service(
        name,
        tuple(command),
        {key: str(value) for key, value in (body.get("environment") or {}).items()},
        tuple(["sh", "-c", *test] if kind == "CMD-SHELL" else test),
        {other: how["condition"] for other, how in (body.get("depends_on") or {}).items()},
        body,
    )


def _filled(node: Any, values: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(each, values) for each in node]
    return _VARIABLE.sub(lambda found: _value(found, values), node) if isinstance(node, str) else node


def _value(found: re.Match[str], values: Mapping[str, str]) -> str:
    dollar, name, remedy = found.groups()
    if dollar:
        return "$"
    if not values.get(name):
        raise NotSet(f"{name} is not set: {remedy}")
    return values[name]
