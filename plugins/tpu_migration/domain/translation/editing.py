"""Set and drop options, recording each difference with its reason."""

from __future__ import annotations

from tpu_migration.domain.translation.arguments import CommandLine, Option
from tpu_migration.domain.translation.model import Notes


def put(line: CommandLine, name: str, value: str, why: str, notes: Notes) -> None:
    """Give an option a value where it stands, or append it; earlier ones of the same name go."""
    given = line.all(name)
    for other in given[:-1]:
        drop(line, other, "given again further on, which wins", notes)
    option = given[-1] if given else None
    if option is None:
        line.add(name, value)
        notes.change(f"{line.path} --{name}", None, value, why)
        return
    before = line.resolve(option.values[0], option.head.buffer) if option.values else None
    if before == value:
        return
    old, path = option.text, option.path
    place = line.set(option, value)
    if place is None:
        notes.change(path, old, option.text, why)
    else:
        notes.change(place, before, value, why)


def drop(line: CommandLine, option: Option, why: str, notes: Notes) -> None:
    """Take an option out, with its values."""
    line.remove(option)
    notes.change(option.path, option.text, None, why)
