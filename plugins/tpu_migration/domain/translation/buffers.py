"""Hold the texts that a command line is written in (lists, scripts, YAML files) and edit them in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import yaml

from tpu_migration.domain.translation.shell import Edits, Word, commands, quote


class Buffer(Protocol):
    """Collect edits of tokens by their key; `commit` writes the result back to where the text came from."""

    path: str
    shell: bool

    def replace(self, key: Any, text: str) -> None: ...

    def remove(self, key: Any) -> None: ...

    def insert_after(self, key: Any, tokens: Sequence[str]) -> None: ...

    def commit(self) -> None: ...


@dataclass(frozen=True)
class Token:
    """Hold one argument as the program would get it, but for variables, and where it is written."""

    text: str
    buffer: Buffer
    key: Any
    quoted: bool = False


class ListBuffer:
    """Hold a container's `command` or `args`."""

    shell = False

    def __init__(self, path: str, items: Sequence[Any], store: Callable[[list[str]], None]) -> None:
        self.path = path
        self.items = [str(item) for item in items]
        self._store = store
        self._replaced: dict[int, str] = {}
        self._removed: set[int] = set()
        self._inserted: dict[int, list[str]] = {}

    def tokens(self) -> list[Token]:
        """List the items as tokens; -1 is the key of the place before the first."""
        return [Token(item, self, index) for index, item in enumerate(self.items)]

    def replace(self, key: int, text: str) -> None:
        self._replaced[key] = text

    def remove(self, key: int) -> None:
        self._removed.add(key)

    def insert_after(self, key: int, tokens: Sequence[str]) -> None:
        self._inserted.setdefault(key, []).extend(tokens)

    def commit(self) -> None:
        """Write the edited list back."""
        result = list(self._inserted.get(-1, []))
        for index, item in enumerate(self.items):
            if index not in self._removed:
                result.append(self._replaced.get(index, item))
            result.extend(self._inserted.get(index, []))
        self._store(result)


class TextBuffer:
    """Hold a shell script, or a variable's value that a shell splits into words."""

    shell = True

    def __init__(self, path: str, text: str, store: Callable[[str], None]) -> None:
        self.path = path
        self.text = text
        self._store = store
        self._edits = Edits(text)

    def commands(self) -> list[list[Token]]:
        """Split the text into simple commands of tokens."""
        return [[Token(word.text, self, word, word.quoted) for word in command] for command in commands(self.text)]

    def replace(self, key: Word, text: str) -> None:
        self._edits.replace(key, quote(text))

    def remove(self, key: Word) -> None:
        self._edits.remove(key)

    def insert_after(self, key: Word | None, tokens: Sequence[str]) -> None:
        words = " ".join(quote(token) for token in tokens)
        if key is None:
            self._edits.insert_after(len(self.text), f" {words}" if self.text else words)
        else:
            self._edits.insert_after(key.end, f" {words}")

    def commit(self) -> None:
        """Write the edited text back, if it changed."""
        result = self._edits.result()
        if result != self.text:
            self._store(result)


class FileBuffer:
    """Hold the YAML file that `vllm serve --config` names; keys are its top-level keys."""

    shell = False

    def __init__(self, path: str, values: dict[str, Any], store: Callable[[str], None]) -> None:
        self.path = path
        self.values = dict(values)
        self._original = dict(values)
        self._store = store

    def replace(self, key: str, text: str) -> None:
        self.values[key] = yaml.safe_load(text) if isinstance(self.values.get(key), int | float) else text

    def remove(self, key: str) -> None:
        self.values.pop(key, None)

    def insert_after(self, key: str, tokens: Sequence[str]) -> None:
        raise NotImplementedError("what a configuration file lacks is given on the command line")

    def commit(self) -> None:
        """Write the file's new text, if it changed."""
        if self.values != self._original:
            self._store(yaml.safe_dump(self.values, sort_keys=False))
