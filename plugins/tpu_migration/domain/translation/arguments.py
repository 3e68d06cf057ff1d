"""Parse vLLM's arguments in any style and rewrite them in place, leaving the rest as its author wrote it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tpu_migration.domain.translation.buffers import Buffer, FileBuffer, Token
from tpu_migration.domain.translation.variables import Variables
from tpu_migration.domain.translation.vocabulary import MULTIPLE, SHORT, full_name, is_switch

_NUMBER = re.compile(r"-\d+(\.\d+)?$")
_SCALED = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT]?)$")
_TRUE = {"true": True, "false": False}


@dataclass
class Option:
    """Hold one option as it is written: `name` without dashes and in full, `values` with variables as written."""

    name: str
    written: str
    negated: bool
    values: list[str]
    head: Token
    tail: list[Token] = field(default_factory=list)
    glued: bool = False
    key: str = ""  # of a dotted option: --speculative-config.method has the key "method"
    removed: bool = False

    @property
    def path(self) -> str:
        return f"{self.head.buffer.path} {self.written}"

    @property
    def text(self) -> str:
        """Write the option as its author did, on one line."""
        if self.glued:
            return f"{self.written}={self.values[0]}"
        return " ".join([self.written, *self.values])


class CommandLine:
    """Hold the arguments of one vLLM server. A later option wins over an earlier one, as with argparse."""

    def __init__(
        self,
        tokens: Sequence[Token],
        variables: Variables,
        *,
        positional_model: bool,
        local: dict[str, str] | None = None,
        start: Token | None = None,
    ) -> None:
        self.variables = variables
        self.local = local or {}
        self._tokens = list(tokens)
        self._positional_model = positional_model
        self._last = self._tokens[-1] if self._tokens else start
        self.options: list[Option] = []
        self.positionals: list[Token] = []
        self._parse()
        glued = sum(option.glued for option in self.options)
        self._glue = glued * 2 >= sum(bool(option.values) for option in self.options)

    def _parse(self) -> None:
        at = 0
        while at < len(self._tokens):
            token = self._tokens[at]
            if not token.text.startswith("-") or token.text in {"-", "--"} or _NUMBER.match(token.text):
                self.positionals.append(token)
                at += 1
                continue
            option = _head(token)
            at += 1
            if not option.glued:
                while at < len(self._tokens) and _takes(option, self._tokens[at].text):
                    option.values.append(self._tokens[at].text)
                    option.tail.append(self._tokens[at])
                    at += 1
            self.options.append(option)

    def add_file(self, buffer: FileBuffer) -> None:
        """Put the options of a configuration file before those of the command line, which win over them."""
        options = []
        for key, value in buffer.values.items():
            name, negated = full_name(f"--{key}")
            values = [] if isinstance(value, bool) else _texts(value)
            off = value is False
            options.append(Option(name, f"--{key}", negated != off, values, Token(f"--{key}", buffer, key)))
        self.options = options + self.options

    def get(self, name: str) -> Option | None:
        """Find the option that wins among those of a name; None where there is none."""
        return next((option for option in reversed(self.options) if option.name == name and not option.removed), None)

    def all(self, *names: str) -> list[Option]:
        """List all options of these names."""
        return [option for option in self.options if option.name in names and not option.removed]

    def value(self, name: str) -> str | None:
        """Resolve an option's value, variables expanded; None where it is absent or out of sight."""
        option = self.get(name)
        if option is None or not option.values:
            return None
        return self.resolve(option.values[0], option.head.buffer)

    def resolve(self, text: str, buffer: Buffer) -> str | None:
        """Expand the variables in a value."""
        return self.variables.expand(text, shell=buffer.shell, local=self.local)

    def integer(self, name: str) -> int | None:
        """Read an option as vLLM reads integers: 32768, 32k (thousands), 32K (1,024s); None for auto."""
        return integer(self.value(name))

    @property
    def model_token(self) -> Token | None:
        """Give the model's positional argument."""
        return self.positionals[0] if self._positional_model and self.positionals else None

    def model(self) -> tuple[str | None, str | None]:
        """Give the model as written and as resolved."""
        if (option := self.get("model")) is not None and option.values:
            return option.values[0], self.resolve(option.values[0], option.head.buffer)
        token = self.model_token
        if token is None:
            return None, None
        return token.text, self.resolve(token.text, token.buffer)

    def served_names(self) -> list[str | None]:
        """List the names that clients may ask for: the given ones, else the model id. None: out of sight."""
        option = self.get("served-model-name")
        if option is not None and option.values:
            return [self.resolve(value, option.head.buffer) for value in option.values]
        written, resolved = self.model()
        return [resolved] if written is not None else []

    def remove(self, option: Option) -> None:
        """Take an option and its values out."""
        option.removed = True
        for token in [option.head, *option.tail]:
            option.head.buffer.remove(token.key) if token is option.head else token.buffer.remove(token.key)

    def set(self, option: Option, value: str) -> str | None:
        """Give an option another value: in the variable that it comes from, if it is nothing else.

        Return where the value was written when that is not the option itself.
        """
        written = option.values[0] if option.values else ""
        names = self.variables.references(written, shell=option.head.buffer.shell)
        if len(names) == 1 and names[0] not in self.local and self.variables.can_set(names[0]):
            whole = {f"$({names[0]})", f"${{{names[0]}}}", f"${names[0]}"}
            if written in whole:
                return self.variables.set(names[0], value)
        option.values = [value]
        buffer = option.head.buffer
        if isinstance(buffer, FileBuffer):
            buffer.replace(option.head.key, value)
        elif option.glued or not option.tail:
            option.glued = True
            buffer.replace(option.head.key, f"{option.written}={value}")
        else:
            option.tail[0].buffer.replace(option.tail[0].key, value)
            for token in option.tail[1:]:
                token.buffer.remove(token.key)
        return None

    def rename(self, option: Option, written: str, value: str | None = None) -> None:
        """Write an option under another name; keep its values unless one is given."""
        option.written = written
        option.name, option.negated = full_name(written)
        buffer = option.head.buffer
        if isinstance(buffer, FileBuffer):
            old = buffer.values.get(option.head.key)
            buffer.remove(option.head.key)
            name = f"no-{option.name}" if option.negated else option.name
            buffer.values[name] = value if value is not None else (True if not option.values else old)
            option.head = Token(written, buffer, name)
            return
        if value is None and option.values and not option.glued:
            buffer.replace(option.head.key, written)
            return
        if value is None and option.values:
            value = option.values[0]
        buffer.replace(option.head.key, written if value is None else f"{written}={value}")
        for token in option.tail:
            token.buffer.remove(token.key)
        option.glued, option.tail = value is not None, []
        option.values = [] if value is None else [value]

    def add(self, name: str, *values: str) -> None:
        """Append an option in the style that its author uses."""
        if self._last is None:
            raise ValueError("a command line without a place to write to")
        if len(values) == 1 and self._glue:
            tokens = [f"--{name}={values[0]}"]
        else:
            tokens = [f"--{name}", *values]
        self._last.buffer.insert_after(self._last.key, tokens)
        head = Token(tokens[0], self._last.buffer, self._last.key)
        self.options.append(Option(name, f"--{name}", False, list(values), head))

    @property
    def path(self) -> str:
        """Say where appended options are written."""
        return self._last.buffer.path if self._last else ""


def _head(token: Token) -> Option:
    written, separator, value = token.text.partition("=")
    if not written.startswith("--") and re.match(r"-O[^=]", written) and written not in SHORT:
        # -O3 and -O.mode are one token.
        return Option("optimization-level", "-O", False, [token.text[2:]], token, glued=True)
    base, _, key = written.partition(".")
    name, negated = full_name(base)
    values = [value] if separator else []
    return Option(name, written, negated, values, token, glued=bool(separator), key=key)


def _takes(option: Option, text: str) -> bool:
    """Tell whether an option takes this token as a (further) value."""
    if text.startswith("-") and not _NUMBER.match(text):
        return False
    if is_switch(option.name):
        # Older servers took a word after a switch: --enable-chunked-prefill False.
        return not option.values and text.lower() in _TRUE
    return not option.values or option.name in MULTIPLE


def _texts(value: Any) -> list[str]:
    if isinstance(value, list):
        return [str(item) for item in value]
    if isinstance(value, dict):
        return [json.dumps(value)]
    return [] if value is None else [str(value)]


def integer(text: str | None) -> int | None:
    """Read an integer as vLLM does; None for None, auto, -1 and what is no integer."""
    match = _SCALED.match((text or "").strip())
    if not match:
        return None
    number, unit = match.groups()
    power = "kmgt".find(unit.lower()) + 1 if unit else 0
    return int(float(number) * (1024 if unit.isupper() else 1000) ** power)
