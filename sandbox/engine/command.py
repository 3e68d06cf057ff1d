"""Find the vLLM command in a container's argv, whichever way the manifest wrote it."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass

_SHELLS = {"sh", "bash", "dash", "ash"}
_MODULES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.main")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_SEPARATORS = {";", "&&", "||", "|", "&", "(", ")", "\n"}
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+))")


class NotVllm(ValueError):
    """Say that an argv starts no vLLM server; `status` is the shell's exit status for it."""

    def __init__(self, message: str, status: int = 127) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Command:
    """A vLLM server's flags, the name its errors carry, and what a shell around it exported."""

    prog: str
    flags: list[str]
    env: dict[str, str]


def find_command(argv: list[str], env: dict[str, str], *, bare: bool = True) -> Command:
    """Return the vLLM command of `argv`.

    Accepts `vllm serve …`, `serve …`, `python -m vllm.entrypoints.openai.api_server …`, a shell's
    `-c` script around one of these, and, if `bare`, the model and flags alone (the GPU image's
    entrypoint is `vllm serve`; the TPU image's runs its arguments as they are, so a bare list is
    "not found" there). Raises NotVllm.
    """
    found = _plain(argv)
    if found:
        return Command(found[0], found[1], {})
    if not argv:
        if bare:
            return Command("vllm serve", [], {})
        raise NotVllm("/bin/bash: no command given", 0)
    name = os.path.basename(argv[0])
    if name in _SHELLS:
        return _from_script(_script(argv), env)
    if name == "env":
        rest = argv[1:]
        extra = {}
        while rest and _ASSIGNMENT.match(rest[0]):
            key, _, value = rest.pop(0).partition("=")
            extra[key] = value
        inner = find_command(rest, {**env, **extra}, bare=False)
        return Command(inner.prog, inner.flags, {**extra, **inner.env})
    if bare and (argv[0].startswith("-") or "/" in argv[0] or not re.fullmatch(r"python[\d.]*", name)):
        return Command("vllm serve", argv, {})
    problem = "invalid option" if argv[0].startswith("-") else "not found"
    raise NotVllm(f"/entrypoint.sh: exec: {argv[0]}: {problem}", 2 if problem == "invalid option" else 127)


def _plain(words: list[str]) -> tuple[str, list[str]] | None:
    """Return (prog, flags) if the words call vLLM's server directly."""
    names = [os.path.basename(word) for word in words[:2]]
    if names[:2] == ["vllm", "serve"]:
        return "vllm serve", words[2:]
    if names[:1] == ["serve"]:
        return "vllm serve", words[1:]
    if names and re.fullmatch(r"python[\d.]*", names[0]):
        for index, word in enumerate(words[1:-1], start=1):
            if word == "-m" and words[index + 1] in _MODULES:
                flags = words[index + 2 :]
                if words[index + 1] == _MODULES[1]:
                    return ("vllm serve", flags[1:]) if flags[:1] == ["serve"] else None
                return "api_server.py", flags
            if not word.startswith("-"):
                break
    return None


def _script(argv: list[str]) -> str:
    for index, word in enumerate(argv[1:], start=1):
        if re.fullmatch(r"-[a-z]*c", word):
            if index + 1 < len(argv):
                return argv[index + 1]
            break
    raise NotVllm(f"{argv[0]}: -c: option requires an argument", 2)


def _from_script(script: str, env: dict[str, str]) -> Command:
    """Return the first vLLM server that a shell script starts, with the variables set before it."""
    lexer = shlex.shlex(script.replace("\\\n", " "), posix=True, punctuation_chars=";&|()\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = "#"
    exported: dict[str, str] = {}
    words: list[str] = []
    commands: list[list[str]] = []
    for token in lexer:
        if set(token) <= set("".join(_SEPARATORS)):
            commands.append(words)
            words = []
        else:
            words.append(token)
    commands.append(words)
    for raw in commands:
        scope = {**env, **exported}
        words = [part for word in raw for part in _split(word, scope)]
        if words and words[0] == "export":
            words = words[1:]
        assigned = {}
        while words and _ASSIGNMENT.match(words[0]):
            key, _, value = words.pop(0).partition("=")
            assigned[key] = value
        exported.update(assigned)
        if words and words[0] == "exec":
            words = words[1:]
        found = _plain([word for word in words if word])
        if found:
            return Command(found[0], found[1], exported)
    raise NotVllm("the simulated engine finds no vLLM server in the shell script")


def _split(word: str, env: dict[str, str]) -> list[str]:
    """Expand variables; a word that is one variable alone splits at blanks, as it does unquoted."""
    value = _expand(word, env)
    return value.split() if _VARIABLE.fullmatch(word) else [value]


def _expand(word: str, env: dict[str, str]) -> str:
    return _VARIABLE.sub(lambda found: env.get(found[1] or found[3], found[2] or ""), word)
