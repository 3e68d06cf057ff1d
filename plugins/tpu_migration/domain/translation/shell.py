"""Split a shell script into commands and words with their places, so that a word can be edited and no more.

Not a shell: expansions are kept as written. It knows quotes, comments, line continuations, redirections and
here-documents, which is what start scripts use around `vllm serve`.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

_SPACE = re.compile(r"(?:[ \t]|\\\n)+")
_REDIRECT = re.compile(r"\d*(?:&>>?|>>|>\||>&|<&|<>|<<<|>|<)(?:[ \t]|\\\n)*")
_HEREDOC = re.compile(r"<<(?P<dash>-?)[ \t]*(?P<quote>['\"]?)(?P<end>[A-Za-z_]\w*)(?P=quote)")
_STOP = " \t\n;&|()<>"
ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)\+?=")
# `$$(VAR)` is Kubernetes' way to write a literal `$(VAR)`.
VARIABLE = re.compile(
    r"(?<!\$)\$(?:\((?P<kube>[A-Za-z_][\w.-]*)\)"
    r"|\{(?P<brace>[A-Za-z_]\w*)(?::?-(?P<default>[^{}]*))?\}|(?P<bare>[A-Za-z_]\w*))"
)


@dataclass(frozen=True)
class Word:
    """Hold one word: its place in the script, and its text without quotes, expansions as written."""

    start: int
    end: int
    text: str
    quoted: bool


Command = tuple[Word, ...]


def commands(script: str) -> list[Command]:
    """Split a script into simple commands, in order; redirections are left out."""
    found: list[Command] = []
    words: list[Word] = []
    heredocs: list[tuple[str, bool]] = []
    at = 0
    while at < len(script):
        char = script[at]
        if space := _SPACE.match(script, at):
            at = space.end()
        elif char == "#":
            at = _line_end(script, at)
        elif heredoc := _HEREDOC.match(script, at):
            heredocs.append((heredoc["end"], bool(heredoc["dash"])))
            at = heredoc.end()
        elif redirect := _REDIRECT.match(script, at):
            at = redirect.end()
            if at < len(script) and script[at] not in _STOP:
                at = _word(script, at).end
        elif char in "\n;&|()":
            if words:
                found.append(tuple(words))
                words = []
            at += 1
            if char == "\n":
                at = _skip_heredocs(script, at, heredocs)
                heredocs = []
        else:
            word = _word(script, at)
            words.append(word)
            at = word.end
    if words:
        found.append(tuple(words))
    return found


def _line_end(script: str, at: int) -> int:
    end = script.find("\n", at)
    return len(script) if end < 0 else end


def _skip_heredocs(script: str, at: int, heredocs: list[tuple[str, bool]]) -> int:
    for end, dash in heredocs:
        while at < len(script):
            stop = _line_end(script, at)
            line = script[at:stop]
            at = stop + 1
            if (line.lstrip("\t") if dash else line) == end:
                break
    return at


def _word(script: str, start: int) -> Word:
    """Read one word. An unclosed quote or expansion runs to the end of the script."""
    text: list[str] = []
    quoted = False
    at = start
    while at < len(script) and script[at] not in _STOP:
        char = script[at]
        if char == "'":
            quoted = True
            end = script.find("'", at + 1)
            end = len(script) if end < 0 else end
            text.append(script[at + 1 : end])
            at = end + 1
        elif char == '"':
            quoted = True
            at = _double_quoted(script, at + 1, text)
        elif char == "\\" and script[at + 1 : at + 2] == "\n":
            at += 2
        elif char == "\\":
            text.append(script[at + 1 : at + 2])
            at += 2
        elif char in "$`":
            end = _expansion(script, at)
            text.append(script[at:end])
            at = end
        else:
            text.append(char)
            at += 1
    # A stray operator character cannot be a word: take it, so that the caller always advances.
    return Word(start, max(min(at, len(script)), start + 1), "".join(text), quoted)


def _double_quoted(script: str, at: int, text: list[str]) -> int:
    while at < len(script) and script[at] != '"':
        if script[at] == "\\" and script[at + 1 : at + 2] == "\n":
            at += 2
        elif script[at] == "\\" and script[at + 1 : at + 2] in {'"', "\\", "$", "`"}:
            text.append(script[at + 1])
            at += 2
        elif script[at] in "$`":
            end = _expansion(script, at)
            text.append(script[at:end])
            at = end
        else:
            text.append(script[at])
            at += 1
    return at + 1


def _expansion(script: str, at: int) -> int:
    """Find the end of `$x`, `${…}`, `$(…)` or a back-quoted command."""
    if script[at] == "`":
        end = script.find("`", at + 1)
        return len(script) if end < 0 else end + 1
    pairs = {"(": ")", "{": "}"}
    opening = script[at + 1 : at + 2]
    if opening not in pairs:
        return at + 1
    depth = 0
    for place in range(at + 1, len(script)):
        if script[place] == opening:
            depth += 1
        elif script[place] == pairs[opening]:
            depth -= 1
            if depth == 0:
                return place + 1
    return len(script)


def quote(value: str) -> str:
    """Quote a value for a script; `$(VAR)`, `${VAR}` and `$VAR` in it stay expandable."""
    if VARIABLE.search(value):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("`", "\\`") + '"'
    return shlex.quote(value)


class Edits:
    """Collect edits of a text by place and apply them at once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._edits: list[tuple[int, int, str]] = []

    def replace(self, word: Word, new: str) -> None:
        """Put other text in the place of a word."""
        self._edits.append((word.start, word.end, new))

    def remove(self, word: Word) -> None:
        """Take a word out, together with the blanks and continuations before it."""
        start = word.start
        while (before := self._blank_before(start)) < start:
            start = before
        if start == 0 or self.text[start - 1] in "\n;&|(":
            # The first word of a command: what separates it from the command before stays.
            self._edits.append((word.start, self._blank_after(word.end), ""))
        else:
            self._edits.append((start, word.end, ""))

    def insert_after(self, place: int, text: str) -> None:
        """Put text behind a place."""
        self._edits.append((place, place, text))

    def _blank_before(self, at: int) -> int:
        if self.text[at - 2 : at] == "\\\n":
            return at - 2
        return at - 1 if at > 0 and self.text[at - 1] in " \t" else at

    def _blank_after(self, at: int) -> int:
        space = _SPACE.match(self.text, at)
        return space.end() if space else at

    def result(self) -> str:
        """Apply all edits; an edit inside a longer one is swallowed by it."""
        out: list[str] = []
        at = 0
        for start, end, new in sorted(self._edits, key=lambda edit: (edit[0], -edit[1])):
            if start < at:
                if start == end:
                    out.append(new)
                continue
            out.extend((self.text[at:start], new))
            at = end
        out.append(self.text[at:])
        return "".join(out)
